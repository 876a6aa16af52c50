"""`tern soak`: a server under load and random faults, whose every answer is checked."""
