"""Files of git that a signature covers: others make such signatures on request, ours never covers them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import PurePosixPath

from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest import digested
from deltaweights.manifest.verify_source import VerifySource

GIT_NAMES = frozenset({".git", ".gitattributes", ".github", ".gitignore"})
"""What OpenSSF Model Signing leaves out, unless it is told not to."""


def signed_git_files(source: VerifySource, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 (hex) of those of ``names`` that are files of git in ``source``, read now."""
    found = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] not in GIT_NAMES or ".." in parts:
            continue
        sha256 = hashlib.sha256()
        try:
            with closing(source.open(name)) as file:
                for _ in digested(file.chunks(), sha256):
                    pass
        except (InputOutputError, MalformedInput):
            continue  # "is signed, and missing"
        found[name] = sha256.hexdigest()
    return found
