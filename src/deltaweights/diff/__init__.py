"""Comparing two checkpoints: tensors met by name (diff), read side by side (reading), and how far they are apart (figures)."""
