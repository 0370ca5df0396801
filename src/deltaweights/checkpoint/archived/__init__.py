"""A checkpoint's folder in a zip archive."""
