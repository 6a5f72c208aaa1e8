"""The watching loop: what is due, graded as you save it; see README.md."""
