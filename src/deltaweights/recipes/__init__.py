"""Recipes: known pairs of base and delta, as data, with the rules that merge them and the hashes by which files are known."""
