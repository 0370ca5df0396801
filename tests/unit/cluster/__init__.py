"""Tests of merges that several processes share."""

from __future__ import annotations

from pathlib import Path

SIZE = 6_000
"""Maximum shard size, with which the tiny pair has more than ten shards."""

Pair = tuple[Path, Path]
"""Folders of a base and a delta."""


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
