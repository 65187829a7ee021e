"""Sources: checkpoints seen as named tensors, headers first, tensors one at a time."""
