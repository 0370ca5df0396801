"""What the paths of the Hub's cache say: ``models--ORG--NAME/{snapshots/COMMIT/FILE -> ../../blobs/HASH}``.

Enters: paths. Leaves: the repository and commit that a folder is a snapshot of, and the sha256 under which the Hub knows a file.
Never: a byte of a file; what a name says is what the Hub stated when the file was fetched, not what its bytes are now.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

PREFIX = "models--"
SHA256 = re.compile(r"[0-9a-f]{64}")
"""The name of a large file's blob. Small files' are git's sha1, of 40 digits."""


@dataclass(frozen=True)
class Snapshot:
    """A repository's id, and one of its commits."""

    repo: str
    commit: str


def snapshot_at(path: Path) -> Snapshot | None:
    """Return which snapshot ``path``, a folder or a file directly in one, belongs to; None when it is in no cache."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow the file's link to its blob)
    for folder in (absolute, absolute.parent):
        if folder.parent.name == "snapshots":
            repository = folder.parent.parent.name
            if repository.startswith(PREFIX):
                return Snapshot(repository.removeprefix(PREFIX).replace("--", "/"), folder.name)
    return None


def stated_sha256(path: Path) -> str | None:
    """Return the sha256 that the cache files ``path`` under; None when it is no link to a large file's blob."""
    try:
        blob = Path(os.path.realpath(path))
        is_link = path.is_symlink()
    except OSError:  # it is being changed
        return None
    return blob.name if is_link and blob.parent.name == "blobs" and SHA256.fullmatch(blob.name) else None
