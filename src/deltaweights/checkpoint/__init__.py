"""Reading checkpoints: headers into lazy tensors, bytes by position."""
