"""Drills: functions of ours to write from memory, graded by the tests that hold ours; see README.md."""
