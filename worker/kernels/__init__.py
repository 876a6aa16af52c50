"""Functions on tensors, one idea per file: what it fuses, the device kernels, the torch reference."""
