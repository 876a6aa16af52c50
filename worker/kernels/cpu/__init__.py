"""Kernels in C for the CPU, beside the Python that calls them."""
