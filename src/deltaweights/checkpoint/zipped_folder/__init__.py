"""Checkpoints in a zipped folder: read in place, or unpacked."""
