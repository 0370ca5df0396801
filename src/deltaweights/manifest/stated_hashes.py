"""Compare files with what is stated of them: by a manifest, by SHA256SUMS, or by the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing

from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.records import FileRecord
from deltaweights.manifest.verify_source import StatedFile, VerifySource

Fault = tuple[str, str | None, str | None]  # the problem, what was found, what was expected


def size_fault(source: VerifySource, name: str, stated: StatedFile) -> Fault | None:
    """Return what is wrong with the size of a file; None also where it is not known."""
    size = source.size(name)
    if size is None or stated.size is None or size == stated.size:
        return None
    return "has another size", f"{size} bytes", f"{stated.size} bytes"


def compare_stated(source: VerifySource, name: str, stated: StatedFile, found: FileRecord) -> Iterator[Fault]:
    """Yield what is wrong with a file that has been read. One of which only git's SHA-1 is stated is read again: it is small."""
    if stated.sha256 is not None:
        if found.sha256 != stated.sha256:
            yield "has another sha256", found.sha256, stated.sha256
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
