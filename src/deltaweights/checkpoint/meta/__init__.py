"""LLaMA in Meta's own layout."""
