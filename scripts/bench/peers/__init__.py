"""Other engines, each in an environment of its own, asked for the same tokens as ours in the same run.

environments.py  which engines, and how each is installed      peer.py  a process that answers with seconds
drivers/         the program of each such process              compare.py  the table
"""
