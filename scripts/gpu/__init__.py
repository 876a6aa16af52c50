"""What concerns NVIDIA GPUs: compiling kernels without one, and checking and measuring on one."""
