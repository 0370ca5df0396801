"""Signatures of results, in the format of OpenSSF Model Signing."""
