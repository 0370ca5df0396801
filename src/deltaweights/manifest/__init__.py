"""Digests, manifests, and checking a folder against its manifest."""
