"""The end records of a zip archive, which say where its central directory is."""

from __future__ import annotations

import struct

from deltaweights.checkpoint.file_type import HEAD_BYTES, code_of_type, detect_file_type, looks_like_safetensors
from deltaweights.checkpoint.zip_format.rules import MARK16, MARK32, ZipInput
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")

_MULTI_DISK = ("part of a multi-disk zip", None, None, "join the parts first")


def find_directory(archive: ZipInput) -> tuple[int, int, int]:
    """Return offset, bytes and member count of the central directory, on which all end records must agree.

    Raises ``MalformedInput``, also for bytes before or after the archive, and ``InputOutputError``.
    """
    file, rules = archive.file, archive.rules
    at = _find_end(archive)
    _, disk, start_disk, count_here, count, size, offset, _ = _END.unpack(file.read(at, _END.size))
    before_end = at
    locator = file.read(at - _LOCATOR.size, _LOCATOR.size) if at >= _LOCATOR.size else b""
    if locator.startswith(b"PK\6\7"):
        before_end, wide = _read_end64(archive, at - _LOCATOR.size, locator)
        narrow = (disk, start_disk, count_here, count, size, offset)
        for small, large, mark in zip(narrow, wide, (MARK16,) * 4 + (MARK32,) * 2, strict=True):
            if small not in (large, mark):
                raise archive.refuse("the zip's end record and its zip64 end record disagree", narrow, wide)
        disk, start_disk, count_here, count, size, offset = wide
    if disk or start_disk:
        raise archive.refuse(*_MULTI_DISK)
    if count_here != count:
        raise archive.refuse("the zip's member counts disagree", count_here, count)
    if count > rules.most_members:
        raise archive.refuse("too many members in the zip", count, f"at most {rules.most_members}")
    if size > rules.most_directory:
        raise archive.refuse("oversized zip central directory", f"{size} bytes", f"at most {rules.most_directory}")
    _check_place(archive, "central directory", before_end - size, offset)
    return offset, size, count


def _find_end(archive: ZipInput) -> int:
    """Return the offset of the end record: last in the file, except for a comment of exactly the stated length."""
    file = archive.file
    at = file.size - _END.size
    end = file.read(at, _END.size) if at >= 0 else b""
    if end.startswith(b"PK\5\6") and end.endswith(b"\0\0"):
        return at
    tail, place = _last_end(archive)
    comment = len(tail) - place - _END.size
    if archive.rules.comment and place >= 0 and tail[place + 20 : place + 22] == comment.to_bytes(8, "little")[:2]:
        return file.size - len(tail) + place
    raise _no_end_record(archive)


def _last_end(archive: ZipInput) -> tuple[bytes, int]:
    """Return the part of the file that can hold an end record and a comment, and where in it the last end record is, or -1."""
    length = min(archive.file.size, _END.size + MARK16)
    tail = archive.file.read(archive.file.size - length, length)
    return tail, tail.rfind(b"PK\5\6", 0, max(0, length - _END.size + 4))


def _read_end64(archive: ZipInput, at: int, locator: bytes) -> tuple[int, tuple[int, ...]]:
    """Return the offset of the zip64 end record, and its disk, start disk, count here, count, size and offset."""
    _, disk, offset, disks = _LOCATOR.unpack(locator)
    if disk or disks != 1:
        raise archive.refuse(*_MULTI_DISK)
    _check_place(archive, "zip64 end record", at - _END64.size, offset)
    signature, length, _, _, *wide = _END64.unpack(archive.file.read(offset, _END64.size))
    if signature != b"PK\6\6" or length != _END64.size - 12:  # the length counts neither signature nor itself
        found, expected = f"{signature!r} with {length} bytes", "b'PK\\x06\\x06' with 44"
        raise archive.refuse("invalid zip64 end record", found, expected)
    return offset, tuple(wide)


def _check_place(archive: ZipInput, what: str, actual: int, recorded: int) -> None:
    if recorded == actual >= 0:
        return
    problem = f"the zip's {what} is not where the end record says"
    if 0 <= recorded < actual:
        problem = f"{actual - recorded} bytes before the archive or inside it that belong to nothing"
    raise archive.refuse(problem, f"{what} at byte {actual}", f"at byte {recorded}")


def _no_end_record(archive: ZipInput) -> MalformedInput:
    """Return the error that says why no archive ends where the file ends."""
    file, problem = archive.file, f"not {archive.rules.what}"
    head = file.read(0, min(file.size, HEAD_BYTES))
    kind = ("a safetensors file", "name it .safetensors") if looks_like_safetensors(head) else detect_file_type(head)
    if kind is not None and not head.startswith(b"PK\3\4"):
        return archive.refuse(problem, kind[0], remedy=kind[1], code=code_of_type(kind[0]))
    tail, place = _last_end(archive)
    extra = len(tail) - place - _END.size
    if place >= 0 and extra > 0:
        expected = "a comment of the length that the record says" if archive.rules.comment else "none, nor a comment"
        return archive.refuse("bytes after the archive", f"{extra} bytes after the end record", expected)
    if kind is not None:
        problem, remedy = "truncated: the zip has no end record", "download it again, in full"
        return archive.refuse(problem, f"{file.size} bytes", remedy=remedy, code=ErrorCode.INCOMPLETE)
    return archive.refuse(problem, f"{head[:8]!r} at its start", "b'PK\\x03\\x04'", "check what it is")
