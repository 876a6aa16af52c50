"""What the bundled model is taught, by kind of task; scripts/bundled_tasks.py mixes them."""
