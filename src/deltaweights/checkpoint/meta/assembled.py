"""Tensors put together from parts: stacked, side by side, or with their rows in another order.

Enters: byte sources of the parts, and what their containers recorded of them. Leaves: byte sources and checksums of the whole.
Never: a part in memory: bytes go from the file to the caller's buffer, and the parts' checksums are made from what was delivered.

All shapes here are of matrices, rows times bytes per row; a vector is a matrix of one column.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from deltaweights.checkpoint.checksums import Crc32, crc_fault
from deltaweights.checkpoint.tensors import ByteSource, Checksum, Running
from deltaweights.checkpoint.weights_file import ContiguousSource


@dataclass(frozen=True)
class Stacked:
    """Parts of ``nbytes`` each, one below the other."""

    parts: tuple[ByteSource, ...]
    nbytes: int

    def read_into(self, out: memoryview, start: int) -> None:
        for part, begin, piece in _stacked(self.nbytes, start, len(out)):
            self.parts[part].read_into(out[piece], begin)


def _stacked(nbytes: int, start: int, length: int) -> Iterator[tuple[int, int, slice]]:
    """Yield the parts that bytes ``[start, start + length)`` are in: which, from where on, and which of the bytes."""
    done = 0
    while done < length:
        part, begin = divmod(start + done, nbytes)
        stop = min(length, done + nbytes - begin)
        yield part, begin, slice(done, stop)
        done = stop


@dataclass(frozen=True)
class SideBySide:
    """Parts of as many rows, ``width`` bytes each, one to the right of the other."""

    parts: tuple[ByteSource, ...]
    width: int

    def read_into(self, out: memoryview, start: int) -> None:
        """See ``ByteSource``. What belongs to a part is one range of its bytes."""
        for part, begin, pieces in _side_by_side(self.width, len(self.parts), start, len(out)):
            source, views = self.parts[part], [out[piece] for piece in pieces]
            if isinstance(source, ContiguousSource):
                source.file.scatter_into(views, source.offset + begin)
                continue
            ends = accumulate(map(len, views), initial=begin)
            for view, at in zip(views, ends, strict=False):
                source.read_into(view, at)


def _side_by_side(width: int, parts: int, start: int, length: int) -> Iterator[tuple[int, int, list[slice]]]:
    """Yield, for each part that has any of bytes ``[start, start + length)``, from where on, and which of the bytes."""
    row_bytes = width * parts
    row = start // row_bytes
    for part in range(parts):
        places = range(row * row_bytes + part * width - start, length, row_bytes)
        pieces = [slice(max(place, 0), min(place + width, length)) for place in places if place + width > 0]
        if pieces:
            skipped = len(places) - len(pieces)  # a first row of which this part's bytes came before
            begin = (row + skipped) * width + pieces[0].start - places[skipped]
            yield part, begin, pieces


@dataclass(frozen=True)
class RotaryRows:
    """The rows of a query or key matrix in the order of Hugging Face, from one in Meta's.

    Meta rotates neighbours, Hugging Face halves: of each head's ``head`` rows first the even ones, then the odd ones (``permute``
    of transformers' convert_llama_weights_to_hf.py: view (heads, head / 2, 2, dim), swap the middle axes). ``width`` is bytes per
    row.
    """

    part: ByteSource
    head: int
    width: int

    def read_into(self, out: memoryview, start: int) -> None:
        """See ``ByteSource``. One read per row."""
        done = 0
        while done < len(out):
            row, skip = divmod(start + done, self.width)
            stop = min(len(out), done + self.width - skip)
            self.part.read_into(out[done:stop], self._stored_at(row) * self.width + skip)
            done = stop

    def _stored_at(self, row: int) -> int:
        head, place = divmod(row, self.head)
        odd, pair = divmod(place, self.head // 2)
        return head * self.head + 2 * pair + odd


# The checksums of the parts, made from the bytes of the whole.


@dataclass(frozen=True)
class StackedChecksum:
    """Those of stacked parts, whose files are ``names``."""

    parts: tuple[Checksum, ...]
    names: tuple[str, ...]
    nbytes: int

    def start(self) -> Running:
        return _Distributed(self)

    def pieces(self, start: int, length: int) -> Iterator[tuple[int, list[slice]]]:
        """Yield which part which of ``length`` bytes from ``start`` on belong to."""
        for part, _, piece in _stacked(self.nbytes, start, length):
            yield part, [piece]


@dataclass(frozen=True)
class SideBySideChecksum:
    """Those of parts side by side, whose files are ``names``."""

    parts: tuple[Checksum, ...]
    names: tuple[str, ...]
    width: int

    def start(self) -> Running:
        return _Distributed(self)

    def pieces(self, start: int, length: int) -> Iterator[tuple[int, list[slice]]]:
        """Yield which part which of ``length`` bytes from ``start`` on belong to."""
        for part, _, pieces in _side_by_side(self.width, len(self.parts), start, length):
            yield part, pieces


class _Distributed:
    """Gives each part's running checksum the bytes that are the part's."""

    def __init__(self, whole: StackedChecksum | SideBySideChecksum) -> None:
        self._whole, self._running, self._done = whole, [part.start() for part in whole.parts], 0

    def update(self, data: memoryview) -> None:
        for part, pieces in self._whole.pieces(self._done, len(data)):
            for piece in pieces:
                self._running[part].update(data[piece])
        self._done += len(data)

    def fault(self) -> tuple[str, str] | None:
        for name, running in zip(self._whole.names, self._running, strict=True):
            fault = running.fault()
            if fault is not None:
                return f"{fault[0]} in {name}", fault[1]
        return None


@dataclass(frozen=True)
class RotaryRowsChecksum:
    """The CRC-32 of stored rows, made from rows that come in the order of ``RotaryRows``."""

    stored: Crc32
    head: int
    width: int

    def start(self) -> Running:
        return _RotaryCrc32(self)


class _RotaryCrc32:
    """A CRC is linear: that of a head's rows is that of the even ones with zeros for the odd ones, xor the other way round.

    The even rows go on from the heads before, the odd ones begin with an empty register, which zlib, whose values are inverted,
    calls all ones.
    """

    def __init__(self, rows: RotaryRowsChecksum) -> None:
        self._rows, self._done = rows, 0
        self._even, self._odd = 0, _EMPTY
        self._zeros = bytes(rows.width)

    def update(self, data: memoryview) -> None:
        width, head = self._rows.width, self._rows.head
        at = 0
        while at < len(data):
            row, begin = divmod(self._done, width)
            piece = data[at : at + width - begin]
            at += len(piece)
            self._done += len(piece)
            place = row % head
            ends = begin + len(piece) == width
            if place < head // 2:
                self._even = zlib.crc32(piece, self._even)
                if ends:
                    self._even = zlib.crc32(self._zeros, self._even)
                continue
            if begin == 0:
                self._odd = zlib.crc32(self._zeros, self._odd)
            self._odd = zlib.crc32(piece, self._odd)
            if ends and place == head - 1:
                self._even, self._odd = self._even ^ self._odd ^ _EMPTY, _EMPTY

    def fault(self) -> tuple[str, str] | None:
        return crc_fault(self._even, self._rows.stored.value)


_EMPTY = 0xFFFFFFFF
