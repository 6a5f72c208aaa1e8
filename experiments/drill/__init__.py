"""Drills: what one writes from memory, the graders that judge it, and what they say."""
