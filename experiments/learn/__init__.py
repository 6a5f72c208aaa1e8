"""The watching loop: what is due, judged as you save it; see README.md."""
