"""What crosses a process boundary, and nothing else. README.md is the wire specification."""
