"""Tell what somebody gave to verify, and open it."""

from __future__ import annotations

import os
from pathlib import Path

from deltaweights.manifest.verify_source import LocalSource, VerifySource


def open_source(given: str | os.PathLike[str]) -> VerifySource:
    """Return the files that ``given`` names. Raises ``InputOutputError`` when they cannot be listed."""
    return LocalSource(Path(given))
