"""How models write tool calls: one file per format, and `formats.py`, which knows them all."""
