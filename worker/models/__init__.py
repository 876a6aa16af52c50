"""Model families, each a declaration in one file; registry.py is their table."""
