"""Files that torch wrote."""
