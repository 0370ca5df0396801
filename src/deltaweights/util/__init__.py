"""What any part of the program may need, and what knows nothing of checkpoints."""
