"""Runs ``deltaweights`` with the same random names every time, so that a recorded call can be found again."""

import os
import secrets

from deltaweights.cli import main

secrets.token_hex = lambda nbytes=None: "0" * 2 * (nbytes or 32)
if "FAULTS_NO_EXCHANGE" in os.environ:
    from deltaweights.util.open_folder import OpenFolder

    setattr(OpenFolder, "exchange", lambda *_: False)  # noqa: B010  (mypy would require a method of the same type)
main()
