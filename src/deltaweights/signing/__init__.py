"""Signed results: who says that a folder is theirs."""
