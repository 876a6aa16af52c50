"""How a linear layer's weights are created, loaded, converted and multiplied: one file per format."""
