"""Runs ``deltaweights`` with the same random names every time, so that a recorded call can be met again."""

import secrets

from deltaweights.cli import main

secrets.token_hex = lambda nbytes=None: "0" * 2 * (nbytes or 32)
main()
