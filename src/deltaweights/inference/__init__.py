"""What current transformers makes of a folder: whether it loads, and what it answers. The only room that imports transformers."""
