"""Which tokens run next. Torch-free; everything it holds can be rebuilt from its clients."""
