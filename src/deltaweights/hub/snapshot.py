"""What the place of a file in the Hub's cache says of it: its repository, its commit, and its hash."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from deltaweights.hub.repo_cache import PREFIX
from deltaweights.hub.repo_listing import SHA256
from deltaweights.hub.tree_cache import cached_tree

MAX_LINKS = 16  # from a path to its file


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
    """Return the SHA-256 that the cache has of ``path``: the name of the LFS blob that it is a link to, or what ``hf`` noted.

    Of the links the first to a blob tells: the blob may itself be a link, to a name that is Xet's hash.
    """
    with contextlib.suppress(OSError):  # it is being changed
        for _ in range(MAX_LINKS):
            path = Path(os.path.realpath(path.parent)) / path.name
            if not path.is_symlink():
                return _noted_sha256(path)
            path = path.parent / path.readlink()
            if path.name and Path(os.path.realpath(path.parent)).name == "blobs" and SHA256.fullmatch(path.name):
                return path.name
    return None


def _noted_sha256(path: Path) -> str | None:
    """Return what ``hf`` noted of a file in a snapshot, or in a folder in one."""
    snapshot = next(
        (folder for folder in path.parents if snapshot_at(folder) and folder.parent.name == "snapshots"), None
    )
    if snapshot is None:
        return None
    file = cached_tree(snapshot.parent.parent, snapshot.name).get(path.relative_to(snapshot).as_posix())
    return None if file is None else file.sha256
