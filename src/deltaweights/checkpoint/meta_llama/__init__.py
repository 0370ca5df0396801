"""LLaMA in Meta's own format."""
