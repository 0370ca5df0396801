"""Parse a zip archive strictly: anything that two zip readers could understand differently is refused.

The two records of every member must agree, and records and members must tile the file exactly.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from deltaweights.checkpoint.checksums import crc_mismatch
from deltaweights.checkpoint.files import FileSlice, InputFile
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.zip_format.central_directory import (
    CentralDirectory,
    CentralEntry,
    extra_fields,
    read_directory,
)
from deltaweights.checkpoint.zip_format.rules import (
    DEFLATED,
    DESCRIPTOR_FOLLOWS,
    MARK32,
    TORCH_ZIP,
    ZIP64,
    ZipInput,
    ZipRules,
)
from deltaweights.errors import MalformedInput

_LOCAL = struct.Struct("<4s5H3L2H")
HEAD = 512
"""Bytes in which a local header nearly always ends."""

_DESCRIPTORS = (struct.Struct("<4s3L"), struct.Struct("<4sL2Q"))  # the latter if a size needs more than four bytes

PIECE = 1024 * 1024
"""Most bytes of content that are inflated at a time."""

_PACKED = 128 * 1024
"""Bytes of a deflated member read at a time. zlib copies what a piece has no room for, so this is small."""


@dataclass(frozen=True)
class Member:
    """``size`` bytes of content, stored or deflated in ``packed`` bytes from ``offset`` on. A folder's name ends in a slash."""

    name: str
    offset: int
    size: int
    crc32: int
    packed: int
    method: int


@dataclass(frozen=True)
class Archive:
    """The members in the order of the file, and the bytes of the central directory."""

    members: tuple[Member, ...]
    directory: bytes


def read_archive(file: InputFile, rules: ZipRules = TORCH_ZIP) -> Archive:
    """Parse the archive's records. Raises ``MalformedInput`` when one breaks the ``rules``, ``InputOutputError``."""
    archive = ZipInput(file, rules)
    directory = read_directory(archive)
    return Archive(tuple(_members(archive, directory)), directory.data)


def _members(archive: ZipInput, directory: CentralDirectory) -> Iterator[Member]:
    """Go from local header to local header; each must lead exactly to the next one, the last to the central directory."""
    entries = directory.entries
    begins = [entry.offset for entry in entries]
    if not begins:
        raise archive.refuse("an archive without members")
    if begins[0]:
        raise archive.refuse("bytes before the archive", f"first member at byte {begins[0]}", "at byte 0")
    archive.file.prefetch((entry.offset, HEAD) for entry in entries)
    for entry, following in zip(entries, [*begins[1:], directory.offset], strict=True):
        if following - entry.offset < _LOCAL.size:
            raise _overlap(archive, entry)
        yield _member(archive, entry, following)


def _member(archive: ZipInput, entry: CentralEntry, following: int) -> Member:
    file = archive.file
    header = _LOCAL.unpack(file.read(entry.offset, _LOCAL.size))
    signature, flags, method, name_length, extra_length = header[0], header[2], header[3], *header[9:]
    if signature != b"PK\3\4":
        raise archive.refuse(f"no local header of zip member {entry.name} where the directory says", signature)
    begin = entry.offset + _LOCAL.size
    data = begin + name_length + extra_length
    if data + entry.packed > following:
        raise _overlap(archive, entry)
    tail = file.read(begin, name_length + extra_length)
    if tail[:name_length] != entry.raw_name:
        raise archive.refuse("local and central name of a zip member differ", tail[:name_length][:80], entry.name)
    if (flags, method) != (entry.flags, entry.method):
        raise archive.refuse(f"local and central header of zip member {entry.name} differ", (flags, method))
    wide = extra_fields(archive, entry.name, entry.raw_name, tail[name_length:]).get(ZIP64)
    _check_local_sizes(archive, entry, header[6:9], wide)
    _check_descriptor(archive, entry, data + entry.packed, following)
    return Member(entry.name, data, entry.size, entry.crc32, entry.packed, entry.method)


def _check_local_sizes(
    archive: ZipInput, entry: CentralEntry, narrow: tuple[int, int, int], wide: bytes | None
) -> None:
    """Compare local CRC and sizes with the central ones; if a data descriptor follows, they were unknown and may be zero."""
    unknown = {0} if entry.flags & DESCRIPTOR_FOLLOWS else set()
    mark = set() if wide is None else {MARK32}
    packed, size = {entry.packed} | unknown, {entry.size} | unknown
    # The zip64 field has size, packed size and offset of the header (APPNOTE 4.5.3). The offset belongs in the central
    # directory, but miniz, which torch uses, also writes it here once it needs eight bytes, even without the sizes.
    offset = {entry.offset} if entry.offset >= MARK32 else set()
    allowed_by_length = {0: (), 8: (size | offset,), 16: (size, packed), 24: (size, packed, offset)}
    field = wide or b""
    values = [int.from_bytes(field[at : at + 8], "little") for at in range(0, len(field), 8)]
    if (
        narrow[0] not in {entry.crc32} | unknown
        or narrow[1] not in packed | mark
        or narrow[2] not in size | mark
        or len(field) not in allowed_by_length
        or any(value not in allowed for value, allowed in zip(values, allowed_by_length[len(field)], strict=True))
    ):
        found = f"CRC {narrow[0]:#010x}, sizes {narrow[1:]}{f', zip64 {values}' if values else ''}"
        expected = f"CRC {entry.crc32:#010x}, size {entry.size}"
        if entry.packed != entry.size:
            expected += f" packed into {entry.packed}"
        raise archive.refuse(f"local and central header of zip member {entry.name} differ", found, expected)


def _check_descriptor(archive: ZipInput, entry: CentralEntry, at: int, following: int) -> None:
    """Check that exactly the data descriptor that the flags announce, if any, lies between the member and the next header."""
    gap, allowed = following - at, [b""]
    if entry.flags & DESCRIPTOR_FOLLOWS:
        forms = _DESCRIPTORS if max(entry.packed, entry.size) < MARK32 else _DESCRIPTORS[1:]
        allowed = [form.pack(b"PK\7\x08", entry.crc32, entry.packed, entry.size) for form in forms]
    lengths = [len(descriptor) for descriptor in allowed]
    if gap not in lengths:
        raise archive.refuse(f"bytes after zip member {entry.name} that belong to nothing", gap, lengths)
    if archive.file.read(at, gap) not in allowed:
        raise archive.refuse(f"data descriptor and central header of zip member {entry.name} differ")


def _overlap(archive: ZipInput, entry: CentralEntry) -> MalformedInput:
    return archive.refuse(f"zip member {entry.name} overlaps what follows it, or runs past the end of the members")


def read_member(file: InputFile, member: Member) -> Iterator[memoryview]:
    """Yield its content in pieces valid until the next. Raises ``MalformedInput``, at the latest at the end, if damaged."""
    crc = 0
    part = FileSlice(file, file.path / member.name, member.offset, member.packed)
    for piece in _inflate(part, member.size) if member.method == DEFLATED else part.chunks():
        crc = zlib.crc32(piece, crc)
        yield piece
    fault = crc_mismatch(crc, member.crc32)
    if fault is not None:
        raise _damage(part, "stored bytes are damaged", *fault)


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
            raise _damage(part, "not a deflate stream", error) from None
        if len(piece) > left:
            raise _damage(part, "deflate stream holds more than is recorded", f"more than {size} bytes", size)
        if not piece and not data:
            raise _damage(part, "the deflate stream is cut short", f"{size - left} bytes", size)
        left -= len(piece)
        yield memoryview(piece)
    if left:
        raise _damage(part, "deflate stream holds less than is recorded", f"{size - left} bytes", size)
    if at < part.size or inflater.unused_data:
        extra = part.size - at + len(inflater.unused_data)
        raise _damage(part, "bytes after the end of the deflate stream", extra, 0)


def _damage(part: InputFile, problem: str, found: object, expected: object = None) -> MalformedInput:
    return MalformedAt(part.path, "fetch the archive again")(problem, found, expected)
