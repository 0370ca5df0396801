"""Read the checksums that somebody put beside files: the output of ``sha256sum``, as coreutils and BSD's tools write it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.verify_source import StatedFile, StatedHashes, VerifySource
from deltaweights.util import limits

NAMES = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "sha256sum.txt", "checksums.sha256", "sha256sums")
"""The usual names for the sums of a whole folder, in the order of preference."""

SUFFIX = ".sha256"  # of a file that has the sum of one other, or of several

_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_BSD_LINE = re.compile(rb"(\\?)SHA256 ?\((.+)\) ?= ?([0-9a-fA-F]{64})")
_BARE = re.compile(rb"\s*([0-9a-fA-F]{64})\s*")
_ESCAPES = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}


class MalformedSums(ValueError):
    """Sums that contradict themselves, or name files that are not in their folder."""


def parse_sums(data: bytes) -> dict[str, str]:
    """Return the sha256 of each file by name. Lines that are no sums, such as comments and signatures, are passed over.

    Raises ``MalformedSums`` for a name that leads out of the folder, and for one name with two hashes.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        parsed = _parse_line(line.removesuffix(b"\r"))
        if parsed is None:
            continue
        raw, sha256 = parsed
        name = os.fsdecode(raw)
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        parts = name.split("/")
        if name.startswith("/") or {"", ".", ".."} & set(parts) or "\0" in name:
            raise MalformedSums(f"line {number} names a file that is not in the folder: {name!r:.80}")
        if found.setdefault(name, sha256) != sha256:
            raise MalformedSums(f"line {number} states another hash of {name!r:.80} than a line before")
        if len(found) > limits.MOST_TENSORS:
            raise MalformedSums(f"more than {limits.MOST_TENSORS} files")
    return found


def _parse_line(line: bytes) -> tuple[bytes, str] | None:
    match = _LINE.fullmatch(line)
    if match is not None:
        escape, sha256, name = match.groups()
    else:
        match = _BSD_LINE.fullmatch(line)
        if match is None:
            return None
        escape, name, sha256 = match.groups()
    if escape:
        name = re.sub(rb"\\[\\nr]", lambda found: _ESCAPES[found[0]], name)
    return name, sha256.decode().lower()


def stated_by_sums(source: VerifySource) -> StatedHashes | None:
    """Return what the sums in a folder state, None when there are none.

    A file of the usual name counts alone; else all ``*.sha256`` count together. One of these may hold a hash alone: of the file
    whose name it has but for the suffix. ``fault`` of what is returned says why sums cannot be used.
    """
    readable = source.entries.readable
    names = [name for name in NAMES if name in readable][:1]
    names = names or sorted(name for name in readable if name.endswith(SUFFIX))
    if not names:
        return None
    origin = names[0] if len(names) == 1 else f"{len(names)} files *{SUFFIX}"
    found: dict[str, str] = {}
    for name in names:
        try:
            _add(found, _sums_in(source, name), name)
        except (InputOutputError, MalformedInput, MalformedSums) as error:
            return StatedHashes(origin, {}, documents=frozenset(names), fault=(name, str(error)))
    for name in names:  # a file cannot state its own hash
        found.pop(name, None)
    if not found:
        return StatedHashes(origin, {}, documents=frozenset(names), fault=(names[0], "there is no sum in it"))
    files = {name: StatedFile(sha256) for name, sha256 in found.items()}
    return StatedHashes(origin, files, documents=frozenset(names))


def _add(found: dict[str, str], sums: Iterable[tuple[str, str]], where: str) -> None:
    for name, sha256 in sums:
        if found.setdefault(name, sha256) != sha256:
            raise MalformedSums(f"{where} states another hash of {name!r:.80} than what was read before")


def _sums_in(source: VerifySource, name: str) -> Iterator[tuple[str, str]]:
    data = source.read(name, limits.MOST_SUMS)
    bare = _BARE.fullmatch(data)
    if bare is not None and name.endswith(SUFFIX):
        yield name.removesuffix(SUFFIX), bare[1].decode().lower()
    yield from parse_sums(data).items()
