"""Benchmarks of the real stack: what it costs, what it carries, what it takes at rest."""
