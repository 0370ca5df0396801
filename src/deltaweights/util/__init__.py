"""Helpers for every part of the program, which know nothing about checkpoints."""
