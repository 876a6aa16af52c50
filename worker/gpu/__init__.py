"""Steps on an NVIDIA GPU, one ahead of their results. Imported only where a GPU computes, or to be
interpreted."""
