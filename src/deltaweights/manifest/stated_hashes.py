"""Compare files with what is stated of them: by a manifest, by SHA256SUMS, or by the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path

from deltaweights.checkpoint.file_type import LFS_POINTER
from deltaweights.checkpoint.small_files import json_object
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.file_parts import is_loadable
from deltaweights.manifest.records import FileRecord
from deltaweights.manifest.verify_source import StatedFile, VerifySource
from deltaweights.util import limits

POINTER = "is a git-LFS pointer, not the file itself: run git lfs pull"
MOST_POINTER = 1024  # bytes, by its specification

APPLE_DOUBLE, MOST_LITTER = bytes.fromhex("00051607"), 1024 * 1024
"""What macOS's ``._`` files, the attributes of another file, begin with, and the most bytes of one."""

Fault = tuple[str, str | None, str | None]  # the problem, what was found, what was expected


def size_fault(source: VerifySource, name: str, stated: StatedFile) -> Fault | None:
    """Return what is wrong with the size of a file; None also where it is not known."""
    size = source.size(name)
    if size is None or stated.size is None or size == stated.size:
        return None
    if is_pointer(source, name, size):
        return POINTER, f"{size} bytes", f"{stated.size} bytes"
    return "has another size", f"{size} bytes", f"{stated.size} bytes"


def is_pointer(source: VerifySource, name: str, size: int) -> bool:
    """Return whether a file is what a clone without git-LFS has in the place of a large one."""
    if size > MOST_POINTER:
        return False
    try:
        with closing(source.open(name)) as file:
            return file.read(0, min(file.size, len(LFS_POINTER))) == LFS_POINTER
    except (InputOutputError, MalformedInput):
        return False


def is_posing(source: VerifySource, name: str) -> bool:
    """Return whether a file with the name of litter could be weights or code: ``._model.safetensors`` that macOS did not write."""
    size = source.size(name)
    if not is_loadable(name) or not size:
        return False
    if size > MOST_LITTER:
        return True
    try:
        with closing(source.open(name)) as file:
            return file.read(0, min(file.size, len(APPLE_DOUBLE))) != APPLE_DOUBLE
    except (InputOutputError, MalformedInput):
        return True


def compare_stated(source: VerifySource, name: str, stated: StatedFile, found: FileRecord) -> Iterator[Fault]:
    """Yield what is wrong with a file that has been read. One of which only git's SHA-1 is stated is read again: it is small."""
    if stated.sha256 is not None:
        if found.sha256 != stated.sha256:
            problem = POINTER if is_pointer(source, name, found.size) else "has another sha256"
            yield problem, found.sha256, stated.sha256
    elif stated.git_sha1 is not None:
        try:
            sha1 = git_sha1(source, name)
        except (InputOutputError, MalformedInput) as error:
            yield f"cannot be verified: {error}", None, None
        else:
            if sha1 != stated.git_sha1:
                yield "has another git hash", sha1, stated.git_sha1


def git_sha1(source: VerifySource, name: str) -> str:
    """Return the SHA-1 that git gives to a file's content. Raises ``InputOutputError`` and ``MalformedInput``."""
    with closing(source.open(name)) as file:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        for chunk in file.chunks():
            digest.update(chunk)
    return digest.hexdigest()


def missing_shards(source: VerifySource, files: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each index among ``files`` with the shards that it names and that are not there. One that is malformed names none."""
    for name in sorted(files):
        if name.endswith(".index.json"):
            shards: set[str] = set()
            with suppress(InputOutputError, MalformedInput, AttributeError, TypeError, KeyError):
                document = json_object(source.read(name, limits.INDEX.size), Path(source.where(name)))
                shards = {shard for shard in document["weight_map"].values() if isinstance(shard, str)}
            yield from ((name, shard) for shard in sorted(shards - set(files)))
