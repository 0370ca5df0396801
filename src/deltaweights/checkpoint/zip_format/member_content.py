"""Read the content of a member of a zip archive, stored or deflated."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from deltaweights.checkpoint.checksums import crc_mismatch
from deltaweights.checkpoint.files import FileSlice, InputFile
from deltaweights.checkpoint.zip_format.archive import Member
from deltaweights.checkpoint.zip_format.rules import DEFLATED
from deltaweights.errors import MalformedInput

PIECE = 1024 * 1024
"""Most bytes of content that are inflated at a time."""

_PACKED = 128 * 1024
"""Bytes of a deflated member read at a time. zlib copies what a piece has no room for, so this is small."""

_FETCH_AGAIN = "fetch the archive again"


def read_member(file: InputFile, member: Member) -> Iterator[memoryview]:
    """Yield the content of ``member`` in order, in pieces that are valid until the next one.

    Raises ``MalformedInput`` when it is not the recorded content, at the latest after the last piece, and
    ``InputOutputError`` when the archive cannot be read.
    """
    crc = 0
    part = FileSlice(file, file.path / member.name, member.offset, member.packed)
    for piece in _inflate(part, member.size) if member.method == DEFLATED else part.chunks():
        crc = zlib.crc32(piece, crc)
        yield piece
    fault = crc_mismatch(crc, member.crc32)
    if fault is not None:
        raise _damage(part.path, "stored bytes are damaged", *fault)


def _inflate(part: InputFile, size: int) -> Iterator[memoryview]:
    """Yield the content of the deflate stream ``part``, which must have ``size`` bytes."""
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
            piece = inflater.decompress(data, min(PIECE, left + 1))  # one byte more than allowed shows an excess
        except zlib.error as error:
            raise _damage(part.path, "not a deflate stream", error) from None
        if len(piece) > left:
            raise _damage(part.path, "deflate stream holds more than is recorded", f"more than {size} bytes", size)
        if not piece and not data:
            raise _damage(part.path, "the deflate stream is cut short", f"{size - left} bytes", size)
        left -= len(piece)
        yield memoryview(piece)
    if left:
        raise _damage(part.path, "deflate stream holds less than is recorded", f"{size - left} bytes", size)
    if at < part.size or inflater.unused_data:
        extra = part.size - at + len(inflater.unused_data)
        raise _damage(part.path, "bytes after the end of the deflate stream", extra, 0)


def _damage(where: Path, problem: str, found: object, expected: object = None) -> MalformedInput:
    return MalformedInput(problem, where=where, found=found, expected=expected, remedy=_FETCH_AGAIN)
