"""What a member of a zip archive holds, stored or deflated.

Enters: an open archive and a member of it. Leaves: the member's content in order, in pieces, followed by a refusal when it is not
the content that was recorded. Never: more bytes than were recorded, or more than a piece in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from deltaweights.checkpoint.checksums import crc_fault
from deltaweights.checkpoint.files import InputFile, Window
from deltaweights.checkpoint.zipped.archive import Member
from deltaweights.checkpoint.zipped.rules import DEFLATED
from deltaweights.errors import MalformedInput

PIECE = 1024 * 1024
"""Bytes of content at most that are made at a time."""

_PACKED = 128 * 1024
"""Bytes of a deflated member that are read at a time; what a piece has no room for is copied, so not too many."""

_AGAIN = "fetch the archive again"


def contents(file: InputFile, member: Member) -> Iterator[memoryview]:
    """Yield the content of ``member`` in order, in pieces that are valid until the next one.

    Whoever takes all pieces has the content that was recorded: else ``MalformedInput`` is raised, at the latest after the last one.
    Raises ``InputOutputError`` when the archive cannot be read.
    """
    crc = 0
    part = Window(file, file.path / member.name, member.offset, member.packed)
    for piece in _inflated(part, member.size) if member.method == DEFLATED else part.chunks():
        crc = zlib.crc32(piece, crc)
        yield piece
    fault = crc_fault(crc, member.crc32)
    if fault is not None:
        found, recorded = fault
        raise MalformedInput("stored bytes are damaged", where=part.path, found=found, expected=recorded, remedy=_AGAIN)


def _inflated(part: InputFile, size: int) -> Iterator[memoryview]:
    """Yield the ``size`` bytes that the deflate stream ``part`` stands for."""
    inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    buffer = memoryview(bytearray(_PACKED))
    at, left = 0, size
    while not inflater.eof:
        data: bytes | memoryview = inflater.unconsumed_tail
        if not data:
            data = buffer[: part.size - at]
            part.read_into(data, at)
            at += len(data)
        try:
            piece = inflater.decompress(
                data, min(PIECE, left + 1)
            )  # one more than there may be tells too much from enough
        except zlib.error as error:
            raise _damage(part.path, "not a deflate stream", error) from None
        if len(piece) > left:
            raise _damage(part.path, "deflated bytes stand for more than is recorded", f"more than {size} bytes", size)
        if not piece and not data:
            raise _damage(part.path, "the deflate stream is cut short", f"{size - left} bytes", size)
        left -= len(piece)
        yield memoryview(piece)
    if left:
        raise _damage(part.path, "deflated bytes stand for less than is recorded", f"{size - left} bytes", size)
    if at < part.size or inflater.unused_data:
        extra = part.size - at + len(inflater.unused_data)
        raise _damage(part.path, "bytes after the end of the deflate stream", extra, 0)


def _damage(where: Path, problem: str, found: object, expected: object = None) -> MalformedInput:
    return MalformedInput(problem, where=where, found=found, expected=expected, remedy=_AGAIN)
