"""What a path in the Hub cache says: ``models--ORG--NAME/{snapshots/COMMIT/FILE -> ../../blobs/HASH}``.

The hash in a name is what the Hub stated when the file was fetched; it says nothing about the bytes there now.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deltaweights.hub.repo_listing import SHA256

PREFIX = "models--"


@dataclass(frozen=True)
class Snapshot:
    """A repository's id, and one of its commits."""

    repo: str
    commit: str


def snapshot_at(path: Path) -> Snapshot | None:
    """Return the snapshot that ``path``, its folder or a file directly in it, belongs to; None outside a cache."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow the file's link to its blob)
    for folder in (absolute, absolute.parent):
        if folder.parent.name == "snapshots":
            repository = folder.parent.parent.name
            if repository.startswith(PREFIX):
                return Snapshot(repository.removeprefix(PREFIX).replace("--", "/"), folder.name)
    return None


def stated_sha256(path: Path) -> str | None:
    """Return the SHA-256 that the cache files ``path`` under; None unless it is a link to an LFS file's blob."""
    try:
        blob = Path(os.path.realpath(path))
        is_link = path.is_symlink()
    except OSError:  # it is being changed
        return None
    return blob.name if is_link and blob.parent.name == "blobs" and SHA256.fullmatch(blob.name) else None
