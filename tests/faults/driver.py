"""Runs ``deltaweights`` with the same random names every time, so that a recorded call can be met again."""

import os
import secrets

from deltaweights.cli import main
from deltaweights.util.open_folder import OpenFolder

secrets.token_hex = lambda nbytes=None: "0" * 2 * (nbytes or 32)
if "FAULTS_NO_EXCHANGE" in os.environ:
    setattr(OpenFolder, "exchange", lambda *_: False)  # noqa: B010  (mypy would have a method of its shape)
main()
