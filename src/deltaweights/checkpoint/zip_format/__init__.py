"""A strict reader of the zip format, for torch's files and for zipped folders."""
