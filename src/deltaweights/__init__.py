"""Rebuild models published as delta weights."""

__version__ = "0.1.0"
