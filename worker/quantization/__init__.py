"""How a checkpoint stores its matrices, and what becomes of them: one file per kind of checkpoint."""
