"""Kernels for NVIDIA GPUs, in Triton. Imported only where a GPU computes, or to be compiled or interpreted.

Every file: what it fuses and its precision, the kernels, one typed wrapper for each, the torch reference.
All of them are safe in a CUDA graph: grids follow shapes, what changes from step to step is read on the
device, nothing is tuned while it runs. Reductions run in an order that depends on shapes and absolute
positions only, never on which other rows are in the step.
"""
