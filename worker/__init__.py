"""One device: weights, paged KV, kernels, sampling."""
