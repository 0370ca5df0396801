"""Read a tar archive once, in order, in bounded memory: what is in a header never decides how much is read at once.

Only plain files have content. Links, devices and sparse files are told by their kind, for the caller to refuse. What programs
read differently, so that one would unpack other files than another, is refused: a second name for a member, content of what is no
file, a size that is stated twice, and anything behind the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.malformed import MalformedAt

BLOCK, PIECE = 512, 1024 * 1024

MOST_RECORD = 1024 * 1024
"""Bytes of a long name, or of extended attributes."""

MOST_MEMBERS = 100_000

LONG_SIZE = 8**11
"""The least size that a header has no room for in octal digits."""

Read = Callable[[int], bytes]  # returns that many bytes, fewer at the end only

FILE, FOLDER, OTHER = "file", "folder", "other"

_KINDS = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"5": FOLDER, b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device",
    b"6": "a FIFO", b"S": "a sparse file",
}  # fmt: skip

_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL = b"L", b"K", b"x", b"g"


@dataclass(frozen=True)
class TarMember:
    """``kind`` is ``FILE``, ``FOLDER``, or says what else it is. ``chunks`` must be read before the next member is asked for."""

    name: str
    kind: str
    size: int
    chunks: Iterator[memoryview]


class TarReader:
    """The members of the archive whose bytes ``read`` returns. Raises ``MalformedInput``, and what ``read`` raises."""

    def __init__(self, path: Path, read: Read) -> None:
        self._read, self._path = read, path
        self._malformed = MalformedAt(
            path, "the archive is damaged or unusual: get it again, or unpack it and give the folder"
        )
        self._left = 0  # bytes of the current member that have yet to be read

    def __iter__(self) -> Iterator[TarMember]:
        overrides: dict[str, str] = {}
        for count in range(MOST_MEMBERS + 1):
            block = self._exactly(BLOCK)
            if not block.strip(b"\0"):
                self._end(overrides)
                return
            if count == MOST_MEMBERS:
                raise self._malformed("too many members", f"more than {MOST_MEMBERS}")
            kind, name, size = self._header(block)
            if kind in {_LONG_NAME, _LONG_LINK}:
                record = self._record(size).rstrip(b"\0")
                self._add(overrides, {"path": _text(record)} if kind == _LONG_NAME else {})
            elif kind in {_EXTENDED, _GLOBAL}:
                found = self._attributes(self._record(size))
                self._add(overrides, found if kind == _EXTENDED else {})
                if kind == _GLOBAL and set(found) & {"path", "size"}:
                    raise self._malformed("a global name or size")
            else:
                yield from self._member(kind, overrides.get("path", name), self._size(overrides.get("size"), size))
                overrides = {}

    def _add(self, overrides: dict[str, str], found: dict[str, str]) -> None:
        """Take what is stated of the next member. Which of two names counts depends on the program that unpacks it."""
        for key, value in found.items():
            if key in overrides:
                raise self._malformed(f"a second {'name' if key == 'path' else key} for one member", value[:80])
            overrides[key] = value

    def _size(self, attribute: str | None, size: int) -> int:
        """Return the size of a member; its header may only leave out one that is too long for it: some programs read no other."""
        if attribute is None:
            return size
        if not attribute.isascii() or not attribute.isdigit():
            raise self._malformed("size of a member is not a number", attribute[:40])
        stated = int(attribute[:40])
        if stated != size and stated < LONG_SIZE:
            raise self._malformed("a second size for one member", attribute[:40], str(size))
        return stated

    def _end(self, overrides: dict[str, str]) -> None:
        """Read what is behind the last member. Raises ``MalformedInput`` unless it is zeros: some programs look on."""
        left = bool(overrides)
        while not left and (rest := self._read(PIECE)):
            left = bool(rest.strip(b"\0"))
        if left:
            raise self._malformed("something behind the end of the archive")

    def _member(self, kind: bytes, name: str, size: int) -> Iterator[TarMember]:
        if _KINDS.get(kind) == FILE and name.endswith("/"):  # as the oldest archives have folders
            kind = b"5"
        what = _KINDS.get(kind, "of an unknown kind")
        if size and what != FILE:
            raise self._malformed("content of what is no file", f"{name:.80}, {what}, of {size} bytes")
        self._left = size
        padding = -self._left % BLOCK
        yield TarMember(name, what, self._left, self._chunks())
        for _ in self._chunks():
            pass
        self._exactly(padding)

    def _chunks(self) -> Iterator[memoryview]:
        while self._left:
            piece = self._exactly(min(PIECE, self._left))
            self._left -= len(piece)
            yield memoryview(piece)

    def _exactly(self, length: int) -> bytes:
        data = self._read(length)
        if len(data) < length:
            raise self._malformed("the archive is cut short")
        return data

    def _header(self, block: bytes) -> tuple[bytes, str, int]:
        """Return type, name and size of a member."""
        stated = self._number(block[148:156])
        if stated != sum(block[:148]) + 8 * 32 + sum(block[156:]):
            raise self._malformed("not a tar archive, or damaged: a header has another checksum")
        name = _text(block[:100].split(b"\0", 1)[0])
        prefix = _text(block[345:500].split(b"\0", 1)[0]) if block[257:263] == b"ustar\0" else ""
        return block[156:157], f"{prefix}/{name}" if prefix else name, self._number(block[124:136])

    def _number(self, field: bytes) -> int:
        """Return a number in octal digits or, where the first bit is set, in binary."""
        if field[0] & 0x80:
            return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        digits = field.split(b"\0", 1)[0].strip()
        if digits.strip(b"01234567"):
            raise self._malformed("a number in a header is none", digits)
        return int(digits or b"0", 8)

    def _record(self, size: int) -> bytes:
        if size > MOST_RECORD:
            raise self._malformed("a name or an attribute is too long", f"{size} bytes", f"at most {MOST_RECORD}")
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        return data

    def _attributes(self, data: bytes) -> dict[str, str]:
        """Return path and size from lines ``LENGTH KEY=VALUE``."""
        found: dict[str, str] = {}
        at = 0
        while at < len(data):
            digits = data[at : at + 20].split(b" ", 1)[0]
            length = int(digits) if digits.isdigit() else 0
            key, equals, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
            if not equals or data[at + length - 1 : at + length] != b"\n":
                raise self._malformed("extended attributes are malformed")
            if key.startswith(b"GNU.sparse"):
                raise self._malformed("a sparse file", remedy="unpack it, and give the folder")
            if key in {b"path", b"size"}:
                self._add(found, {key.decode(): _text(value)})
            at += length
        return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
