"""The records of a zip, for torch's files and for archives."""
