"""The central directory of a zip archive: what it says of each member."""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from deltaweights.checkpoint.zip_format.end_record import find_directory
from deltaweights.checkpoint.zip_format.rules import DEFLATED, MARK32, METHODS, STORED, UTF8, ZIP64, ZipInput
from deltaweights.errors import MalformedInput

_CENTRAL = struct.Struct("<4s6H3L5H2L")

_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_ENCRYPTION = {0x0017, 0x9901}
"""The extra fields of PKWARE's and of WinZip's encryption."""

_WINZIP_ENCRYPTED = 99
_OTHER_METHODS = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 98: "PPMd"}

_UNICODE_PATH = 0x7075

_UNIX = {3, 19}
"""Systems (Unix, macOS) that store a file's mode in the upper half of its external attributes."""


@dataclass(frozen=True)
class CentralEntry:
    """The entry of one member; ``offset`` is that of its local header, ``packed`` the stored or compressed size."""

    raw_name: bytes
    name: str
    flags: int
    method: int
    crc32: int
    packed: int
    size: int
    offset: int


@dataclass(frozen=True)
class CentralDirectory:
    """The entries in the order of their local headers, the directory's own bytes, and its offset in the file."""

    entries: tuple[CentralEntry, ...]
    data: bytes
    offset: int


def read_directory(archive: ZipInput) -> CentralDirectory:
    """Read end records and central directory. Raises ``MalformedInput`` when one breaks the rules, ``InputOutputError``."""
    offset, size, count = find_directory(archive)
    data = archive.file.read(offset, size)
    entries = sorted(_entries(archive, data, count), key=lambda entry: entry.offset)
    return CentralDirectory(tuple(entries), data, offset)


def _entries(archive: ZipInput, directory: bytes, count: int) -> Iterator[CentralEntry]:
    at = 0
    names: set[str] = set()
    while at < len(directory):
        entry, at = _read_entry(archive, directory, at)
        if entry.name in names:
            raise archive.refuse("duplicate member in the zip", entry.name)
        names.add(entry.name)
        yield entry
    if len(names) != count:
        raise archive.refuse("the zip's member counts disagree", f"{len(names)} in the central directory", count)


def _read_entry(archive: ZipInput, directory: bytes, at: int) -> tuple[CentralEntry, int]:
    """Return the entry at ``at`` and where the next one begins."""
    problem = f"invalid zip central directory at its byte {at}"
    if not directory.startswith(b"PK\1\2", at) or at + _CENTRAL.size > len(directory):
        raise archive.refuse(problem, directory[at : at + 4], "b'PK\\x01\\x02'")
    fields = _CENTRAL.unpack_from(directory, at)
    made_by, flags, method, crc32, external = fields[1], fields[3], fields[4], fields[7], fields[15]
    packed, size, name_length, extra_length, comment_length, disk, offset = *fields[8:14], fields[16]
    begin = at + _CENTRAL.size
    end = begin + name_length + extra_length
    if end > len(directory) or comment_length or disk:
        raise archive.refuse(problem, "an entry with a comment, or cut short")
    raw_name = directory[begin : begin + name_length]
    name = _safe_name(archive, raw_name, flags)
    _check_method(archive, name, flags, method)
    _check_kind(archive, name, made_by, external)
    wide = extra_fields(archive, name, raw_name, directory[begin + name_length : end]).get(ZIP64, b"")
    marked = [size, packed, offset].count(MARK32)
    if len(wide) != 8 * marked:
        raise archive.refuse(f"invalid zip64 field of zip member {name}", f"{len(wide)} bytes", 8 * marked)
    values = iter(struct.unpack(f"<{marked}Q", wide))
    size, packed, offset = (next(values) if value == MARK32 else value for value in (size, packed, offset))
    _check_sizes(archive, name, method, packed, size)
    return CentralEntry(raw_name, name, flags, method, crc32, packed, size, offset), end


def _safe_name(archive: ZipInput, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & UTF8 else archive.rules.unflagged)
    except UnicodeDecodeError:
        raise archive.refuse("the name of a zip member is not UTF-8", raw[:80]) from None
    path = name.removesuffix("/") if archive.rules.folders else name
    # The first part covers absolute paths, and folders where none are allowed.
    if {"", ".", ".."} & set(path.split("/")) or re.search(r"[\x00-\x1f\x7f-\x9f\\]", name):
        raise archive.refuse("unsafe name of a zip member", name[:80], "a plain relative path")
    return name


def _check_method(archive: ZipInput, name: str, flags: int, method: int) -> None:
    rules = archive.rules
    if flags & _ENCRYPTED or method == _WINZIP_ENCRYPTED:
        raise _encrypted(archive, name)
    if rules.script is not None and rules.script.fullmatch(name):
        remedy = "save the model's state_dict with torch.save"
        raise archive.refuse("a TorchScript program", name, "a dict of tensors", remedy)
    if method not in rules.methods:
        how = f" with {_OTHER_METHODS[method]}" if method in _OTHER_METHODS else ""
        found = METHODS.get(method, f"method {method}")
        expected = " or ".join(METHODS[known] for known in rules.methods)
        problem = f"zip member {name} is compressed{how}{rules.objection}"
        raise archive.refuse(problem, found, expected, rules.instead)
    if flags & ~rules.flags:
        raise archive.refuse(f"zip member {name} has flags that {rules.writer} does not write", f"{flags:#06x}")


def _encrypted(archive: ZipInput, name: str) -> MalformedInput:
    return archive.refuse(f"zip member {name} is encrypted", remedy="decrypt it first")


def _check_kind(archive: ZipInput, name: str, made_by: int, external: int) -> None:
    """Refuse links and devices. Python writes a mode without a file type, which is accepted."""
    kind = stat.S_IFMT(external >> 16)
    if made_by >> 8 in _UNIX and kind not in {0, stat.S_IFDIR if name.endswith("/") else stat.S_IFREG}:
        kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
        expected = "a folder" if name.endswith("/") else "a file"
        raise archive.refuse(f"zip member {name} is of another kind", kinds.get(kind, "a device"), expected)


def _check_sizes(archive: ZipInput, name: str, method: int, packed: int, size: int) -> None:
    # Incompressible data grows by less than an eighth and some bytes, in zlib's most wasteful setting (deflateBound).
    most = size + size // 8 + 64 if method == DEFLATED else size
    if packed > most or (method == STORED and packed < size) or (size and name.endswith("/")):
        raise archive.refuse(f"impossible sizes of zip member {name}", f"{packed} bytes {METHODS[method]}", size)


def extra_fields(archive: ZipInput, name: str, raw_name: bytes, blob: bytes) -> dict[int, bytes]:
    """Return the extra fields in ``blob`` by kind. Raises ``MalformedInput`` for those not allowed, or that change the member."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(blob):
        if at + 4 > len(blob):
            raise archive.refuse(f"extra fields of zip member {name} are cut short")
        kind, length = struct.unpack_from("<2H", blob, at)
        at += 4
        known = archive.rules.extras is None or kind in archive.rules.extras
        if not known or kind in fields or at + length > len(blob):
            raise archive.refuse(f"invalid extra field of zip member {name}", f"{kind:#06x} of {length} bytes")
        fields[kind] = blob[at : at + length]
        at += length
    if _ENCRYPTION & fields.keys():
        raise _encrypted(archive, name)
    # Version 1, the CRC-32 of the plain name, and the name once more (APPNOTE 4.6.9).
    path = fields.get(_UNICODE_PATH)
    if path is not None and path != struct.pack("<BL", 1, zlib.crc32(raw_name)) + raw_name:
        raise archive.refuse(f"zip member {name} has a second name", path[5:85].decode("utf-8", "replace"))
    return fields
