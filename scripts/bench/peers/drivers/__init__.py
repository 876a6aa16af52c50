"""One program per engine, run by that engine's own Python: `python -m scripts.bench.peers.drivers.NAME …`.

A driver loads its model and then answers lines of JSON, see answering.py. It may import its engine, the
standard library and answering.py, and nothing else of Tern.
"""
