"""The zip archive that ``torch.save`` writes, parsed strictly.

Enters: an open file. Leaves: where each member's bytes stand, how many they are and which CRC-32 is recorded for them, once it is
proven that the two records of every member agree and that records and members tile the file exactly. Never: the members' own bytes
(weights are read later, by range), decompression, or a guess: what two zip readers could understand in two ways is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.sniff import HEAD_BYTES, looks_like_safetensors, what_is_it
from deltaweights.errors import MalformedInput

MAX_DIRECTORY = 64 * 2**20
"""Bytes of a central directory that are read at most; torch writes about 60 per tensor."""

MAX_MEMBERS = 200_000

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_DESCRIPTORS = (struct.Struct("<4s3L"), struct.Struct("<4sL2Q"))

_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_DESCRIPTOR_FOLLOWS = 0x0008
_UTF8 = 0x0800
_ZIP64 = 0x0001
_EXTRAS = {_ZIP64: "zip64", 0x4246: "torch's alignment", 0x5455: "times", 0x7875: "owner"}
"""Extra fields that may stand beside a member; any other (such as a second name) could change what it means."""

_MARK16, _MARK32 = 0xFFFF, 0xFFFFFFFF
"""A field with all bits set says: see the zip64 record."""

_AGAIN = "the file is damaged or was tampered with: download it again"


@dataclass(frozen=True)
class Member:
    """One stored member: its bytes are ``[offset, offset + size)`` of the file."""

    name: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Archive:
    """The members in the order of the file, and the central directory byte for byte."""

    members: tuple[Member, ...]
    directory: bytes


@dataclass(frozen=True)
class _Directory:
    """Where the central directory stands."""

    offset: int
    size: int
    count: int


@dataclass(frozen=True)
class _Entry:
    """What the central directory says of one member; ``offset`` is that of its local header."""

    raw_name: bytes
    name: str
    flags: int
    crc32: int
    size: int
    offset: int


def read_archive(file: InputFile) -> Archive:
    """Parse the archive's records. Raises ``MalformedInput`` for any that break the rules above."""
    where = _find_directory(file)
    directory = file.read(where.offset, where.size)
    entries = sorted(_entries(file, directory, where.count), key=lambda entry: entry.offset)
    return Archive(tuple(_members(file, entries, where.offset)), directory)


def _refuse(
    file: InputFile, problem: str, found: object = None, expected: object = None, remedy: str = _AGAIN
) -> MalformedInput:
    return MalformedInput(problem, where=file.path, found=found, expected=expected, remedy=remedy)


# The end of the file: end record, and before it the zip64 locator and end record.


def _find_directory(file: InputFile) -> _Directory:
    at = file.size - _END.size
    end = file.read(at, _END.size) if at >= 0 else b""
    if not end.startswith(b"PK\5\6") or not end.endswith(b"\0\0"):
        raise _no_end_record(file)
    _, disk, start_disk, count_here, count, size, offset, _ = _END.unpack(end)
    before_end = at
    locator = file.read(at - _LOCATOR.size, _LOCATOR.size) if at >= _LOCATOR.size else b""
    if locator.startswith(b"PK\6\7"):
        before_end, wide = _read_end64(file, at - _LOCATOR.size, locator)
        narrow = (disk, start_disk, count_here, count, size, offset)
        for small, large, mark in zip(narrow, wide, (_MARK16,) * 4 + (_MARK32,) * 2, strict=True):
            if small not in (large, mark):
                raise _refuse(file, "the zip's end record and its zip64 end record disagree", narrow, wide)
        disk, start_disk, count_here, count, size, offset = wide
    if disk or start_disk:
        raise _refuse(file, "part of a zip over several disks", remedy="join the parts first")
    if count_here != count:
        raise _refuse(file, "the zip's counts of members disagree", count_here, count)
    if count > MAX_MEMBERS:
        raise _refuse(file, "too many members in the zip", count, f"at most {MAX_MEMBERS}")
    if size > MAX_DIRECTORY:
        raise _refuse(file, "oversized zip central directory", f"{size} bytes", f"at most {MAX_DIRECTORY}")
    _expect_place(file, "central directory", before_end - size, offset)
    return _Directory(offset, size, count)


def _read_end64(file: InputFile, at: int, locator: bytes) -> tuple[int, tuple[int, ...]]:
    """Return where the zip64 end record begins, and disk, start disk, count here, count, size, offset from it."""
    _, disk, offset, disks = _LOCATOR.unpack(locator)
    if disk or disks != 1:
        raise _refuse(file, "part of a zip over several disks", remedy="join the parts first")
    _expect_place(file, "zip64 end record", at - _END64.size, offset)
    signature, length, _, _, *wide = _END64.unpack(file.read(offset, _END64.size))
    if signature != b"PK\6\6" or length != _END64.size - 12:  # the length counts neither signature nor itself
        raise _refuse(file, "false zip64 end record", f"{signature!r} with {length} bytes", "b'PK\\x06\\x06' with 44")
    return offset, tuple(wide)


def _expect_place(file: InputFile, what: str, actual: int, recorded: int) -> None:
    if recorded == actual >= 0:
        return
    if 0 <= recorded < actual:
        problem = f"{actual - recorded} bytes before the archive or inside it that belong to nothing"
    else:
        problem = f"the zip's {what} is not where the end record says"
    raise _refuse(file, problem, f"{what} at byte {actual}", f"at byte {recorded}")


def _no_end_record(file: InputFile) -> MalformedInput:
    """Say why no archive ends where the file ends."""
    head = file.read(0, min(file.size, HEAD_BYTES))
    kind = ("a safetensors file", "name it .safetensors") if looks_like_safetensors(head) else what_is_it(head)
    if kind is not None and not head.startswith(b"PK\3\4"):
        return _refuse(file, "not a zip archive as torch.save writes", kind[0], remedy=kind[1])
    # A comment may be as long as a 16-bit number can say; the end record stands before it.
    length = min(file.size, _END.size + _MARK16)
    place = file.read(file.size - length, length).rfind(b"PK\5\6")
    extra = length - place - _END.size
    if place >= 0 and extra > 0:
        return _refuse(file, "bytes after the archive", f"{extra} bytes after the end record", "none, nor a comment")
    if kind is not None:
        return _refuse(
            file, "truncated: the zip has no end record", f"{file.size} bytes", remedy="download it again, in full"
        )
    return _refuse(
        file, "not a file that torch.save wrote", f"{head[:8]!r} at its start", "b'PK\\x03\\x04'", "see what it is"
    )


# The central directory.


def _entries(file: InputFile, directory: bytes, count: int) -> Iterator[_Entry]:
    at = seen = 0
    names: set[str] = set()
    while at < len(directory):
        entry, at = _entry(file, directory, at)
        seen += 1
        if entry.name in names:
            raise _refuse(file, "duplicate member in the zip", entry.name)
        names.add(entry.name)
        yield entry
    if seen != count:
        raise _refuse(file, "the zip's counts of members disagree", f"{seen} in the central directory", count)


def _entry(file: InputFile, directory: bytes, at: int) -> tuple[_Entry, int]:
    """Return the entry at ``at`` and where the next one begins."""
    if not directory.startswith(b"PK\1\2", at) or at + _CENTRAL.size > len(directory):
        raise _refuse(file, f"false zip central directory at its byte {at}", directory[at : at + 4], "b'PK\\x01\\x02'")
    fields = _CENTRAL.unpack_from(directory, at)
    flags, method, crc32 = fields[3], fields[4], fields[7]
    packed, size, name_length, extra_length, comment_length, disk, offset = *fields[8:14], fields[16]
    begin = at + _CENTRAL.size
    end = begin + name_length + extra_length
    if end > len(directory) or comment_length or disk:
        raise _refuse(file, f"false zip central directory at its byte {at}", "an entry with a comment, or cut short")
    raw_name = directory[begin : begin + name_length]
    name = _safe_name(file, raw_name, flags)
    _check_method(file, name, flags, method)
    wide = _extras(file, name, directory[begin + name_length : end]).get(_ZIP64, b"")
    marked = sum(value == _MARK32 for value in (size, packed, offset))
    if len(wide) != 8 * marked:
        raise _refuse(file, f"false zip64 field of zip member {name}", f"{len(wide)} bytes", 8 * marked)
    values = iter(struct.unpack(f"<{marked}Q", wide))
    size, packed, offset = (next(values) if value == _MARK32 else value for value in (size, packed, offset))
    if packed != size:
        raise _refuse(file, f"false sizes of zip member {name}", f"{packed} bytes stored", size)
    return _Entry(raw_name, name, flags, crc32, size, offset), end


def _safe_name(file: InputFile, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise _refuse(file, "the name of a zip member is not UTF-8", raw[:80]) from None
    if (
        {"", ".", ".."} & set(name.split("/"))  # also: absolute, or a folder of its own
        or "\\" in name
        or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
    ):
        raise _refuse(file, "unsafe name of a zip member", name[:80], "a plain relative path")
    return name


def _check_method(file: InputFile, name: str, flags: int, method: int) -> None:
    if flags & _ENCRYPTED:
        raise _refuse(file, f"zip member {name} is encrypted", remedy="decrypt it first")
    if method:
        raise _refuse(
            file,
            f"zip member {name} is compressed (torch.load(mmap=True) would take the compressed bytes for weights)",
            "deflated" if method == 8 else f"method {method}",
            "stored",
            "load it with torch.load(mmap=False) and write it again with torch.save",
        )
    if flags & ~(_DESCRIPTOR_FOLLOWS | _UTF8):
        raise _refuse(file, f"zip member {name} has flags that torch.save does not write", f"{flags:#06x}")


def _extras(file: InputFile, name: str, blob: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(blob):
        if at + 4 > len(blob):
            raise _refuse(file, f"extra fields of zip member {name} are cut short")
        kind, length = struct.unpack_from("<2H", blob, at)
        at += 4
        if kind not in _EXTRAS or kind in fields or at + length > len(blob):
            raise _refuse(file, f"false extra field of zip member {name}", f"{kind:#06x} of {length} bytes")
        fields[kind] = blob[at : at + length]
        at += length
    return fields


# The members themselves, in the order of the file.


def _members(file: InputFile, entries: list[_Entry], end: int) -> Iterator[Member]:
    """Walk from local header to local header; each must lead exactly to the next one, the last to ``end``."""
    begins = [entry.offset for entry in entries]
    if not begins:
        raise _refuse(file, "an archive without members")
    if begins[0]:
        raise _refuse(file, "bytes before the archive", f"first member at byte {begins[0]}", "at byte 0")
    for entry, following in zip(entries, [*begins[1:], end], strict=True):
        if following - entry.offset < _LOCAL.size:
            raise _overlap(file, entry)
        yield _member(file, entry, following)


def _member(file: InputFile, entry: _Entry, following: int) -> Member:
    header = _LOCAL.unpack(file.read(entry.offset, _LOCAL.size))
    signature, flags, method, name_length, extra_length = header[0], header[2], header[3], *header[9:]
    if signature != b"PK\3\4":
        raise _refuse(file, f"no local header of zip member {entry.name} where the directory says", signature)
    begin = entry.offset + _LOCAL.size
    data = begin + name_length + extra_length
    if data + entry.size > following:
        raise _overlap(file, entry)
    tail = file.read(begin, name_length + extra_length)
    if tail[:name_length] != entry.raw_name:
        raise _refuse(file, "local and central name of a zip member differ", tail[:name_length][:80], entry.name)
    if (flags, method) != (entry.flags, 0):
        raise _refuse(file, f"local and central header of zip member {entry.name} differ", (flags, method))
    wide = _extras(file, entry.name, tail[name_length:]).get(_ZIP64)
    _check_local_sizes(file, entry, header[6:9], wide)
    _check_descriptor(file, entry, data + entry.size, following)
    return Member(entry.name, data, entry.size, entry.crc32)


def _check_local_sizes(file: InputFile, entry: _Entry, narrow: tuple[int, int, int], wide: bytes | None) -> None:
    """Compare the local CRC and sizes; with a descriptor to come they may also be zero, being unknown when written."""
    unknown = {0} if entry.flags & _DESCRIPTOR_FOLLOWS else set()
    sizes = {entry.size} | unknown
    marks = set() if wide is None else {_MARK32}
    # miniz, which torch uses, also puts the header's own offset here once that needs eight bytes.
    place = {entry.offset} if entry.offset >= _MARK32 else set()
    field = wide or b""
    values = [int.from_bytes(field[at : at + 8], "little") for at in range(0, len(field), 8)]
    if (
        narrow[0] not in {entry.crc32} | unknown
        or not set(narrow[1:]) <= sizes | marks
        or not set(values) <= sizes | place
        or len(field) not in {0, 8, 16, 24}
    ):
        found = f"CRC {narrow[0]:#010x}, sizes {narrow[1:]}{f', zip64 {values}' if values else ''}"
        expected = f"CRC {entry.crc32:#010x}, size {entry.size}"
        raise _refuse(file, f"local and central header of zip member {entry.name} differ", found, expected)


def _check_descriptor(file: InputFile, entry: _Entry, at: int, following: int) -> None:
    """Hold what stands between a member's bytes and the next header against the data descriptor that is due there."""
    gap = following - at
    due = [b""]
    if entry.flags & _DESCRIPTOR_FOLLOWS:
        due = [
            form.pack(b"PK\7\x08", entry.crc32, entry.size, entry.size)
            for form in _DESCRIPTORS
            if entry.size < _MARK32 or form.size == 24
        ]
    lengths = [len(descriptor) for descriptor in due]
    if gap not in lengths:
        raise _refuse(file, f"bytes after zip member {entry.name} that belong to nothing", gap, lengths)
    if file.read(at, gap) not in due:
        raise _refuse(file, f"data descriptor and central header of zip member {entry.name} differ")


def _overlap(file: InputFile, entry: _Entry) -> MalformedInput:
    return _refuse(file, f"zip member {entry.name} overlaps what follows it, or runs past the end of the members")
