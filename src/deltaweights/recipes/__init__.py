"""Recipes: the known pairs of delta and base, the rules that merge them, and known models."""
