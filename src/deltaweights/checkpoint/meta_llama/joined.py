"""Tensors joined from parts: stacked, side by side, or with their rows in another order.

Bytes go from the files straight to the caller's buffer, and the parts' checksums are computed from what was
delivered. All shapes are matrices, rows times bytes per row; a vector is a matrix of one column.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from deltaweights.checkpoint.checksums import Crc32, crc_mismatch
from deltaweights.checkpoint.tensors import ByteSource, Checksum, ContiguousSource, RunningChecksum


@dataclass(frozen=True)
class Stacked:
    """Parts of ``nbytes`` each, one below the other."""

    parts: tuple[ByteSource, ...]
    nbytes: int

    def read_into(self, out: memoryview, start: int) -> None:
        for part, begin, pieces in self.split(start, len(out)):
            self.parts[part].read_into(out[pieces[0]], begin)

    def split(self, start: int, length: int) -> Iterator[tuple[int, int, list[slice]]]:
        """Yield, for each part with some of the bytes ``[start, start + length)``: its number, the offset in it, and the slice."""
        done = 0
        while done < length:
            part, begin = divmod(start + done, self.nbytes)
            stop = min(length, done + self.nbytes - begin)
            yield part, begin, [slice(done, stop)]
            done = stop


@dataclass(frozen=True)
class SideBySide:
    """Parts with the same number of rows, ``width`` bytes each, one to the right of the other."""

    parts: tuple[ByteSource, ...]
    width: int

    def read_into(self, out: memoryview, start: int) -> None:
        for part, begin, pieces in self.split(start, len(out)):
            source, views = self.parts[part], [out[piece] for piece in pieces]
            if isinstance(source, ContiguousSource):
                source.file.scatter_into(views, source.offset + begin)
                continue
            for view, at in zip(views, accumulate(map(len, views), initial=begin), strict=False):
                source.read_into(view, at)

    def split(self, start: int, length: int) -> Iterator[tuple[int, int, list[slice]]]:
        """Yield what ``Stacked.split`` does, with a slice per row."""
        width, row_bytes = self.width, self.width * len(self.parts)
        row = start // row_bytes
        for part in range(len(self.parts)):
            places = range(row * row_bytes + part * width - start, length, row_bytes)
            pieces = [slice(max(place, 0), min(place + width, length)) for place in places if place + width > 0]
            if pieces:
                skipped = len(places) - len(pieces)  # 1 if this part's bytes of the first row come before ``start``
                begin = (row + skipped) * width + pieces[0].start - places[skipped]
                yield part, begin, pieces


@dataclass(frozen=True)
class RotaryRows:
    """The rows of a query or key matrix in Hugging Face's order, read from one in Meta's.

    Meta rotates pairs of neighbours, Hugging Face the two halves: of each head's ``head`` rows first the even ones, then the
    odd ones (``permute`` of transformers' convert_llama_weights_to_hf.py: view (heads, head / 2, 2, dim), swap the middle
    axes). ``width`` is bytes per row.
    """

    part: ByteSource
    head: int
    width: int

    def read_into(self, out: memoryview, start: int) -> None:
        done = 0
        while done < len(out):
            row, skip = divmod(start + done, self.width)
            stop = min(len(out), done + self.width - skip)
            self.part.read_into(out[done:stop], self._stored_row(row) * self.width + skip)
            done = stop

    def _stored_row(self, row: int) -> int:
        head, place = divmod(row, self.head)
        odd, pair = divmod(place, self.head // 2)
        return head * self.head + 2 * pair + odd


@dataclass(frozen=True)
class JoinedChecksum:
    """The checksums of the parts of ``whole``, computed from the bytes of the whole; ``names`` are the parts' files."""

    parts: tuple[Checksum, ...]
    names: tuple[str, ...]
    whole: Stacked | SideBySide

    def start(self) -> RunningChecksum:
        return _RunningJoined(self)


class _RunningJoined:
    def __init__(self, joined: JoinedChecksum) -> None:
        self._joined, self._running, self._done = joined, [part.start() for part in joined.parts], 0

    def update(self, data: memoryview) -> None:
        for part, _, pieces in self._joined.whole.split(self._done, len(data)):
            for piece in pieces:
                self._running[part].update(data[piece])
        self._done += len(data)

    def fault(self) -> tuple[str, str] | None:
        for name, running in zip(self._joined.names, self._running, strict=True):
            fault = running.fault()
            if fault is not None:
                return f"{fault[0]} in {name}", fault[1]
        return None


@dataclass(frozen=True)
class RotaryRowsChecksum:
    """The CRC-32 of the stored rows, computed from rows in the order of ``RotaryRows``."""

    stored: Crc32
    head: int
    width: int

    def start(self) -> RunningChecksum:
        return _RunningRotaryCrc32(self)


_EMPTY = 0xFFFFFFFF


class _RunningRotaryCrc32:
    """Uses that a CRC is linear.

    The CRC of a head's rows is that of the even rows, with zeros for the odd ones, xor that of the odd rows, with zeros for
    the even ones. The even rows continue the CRC of the heads before; the odd rows begin with an empty register, which is
    all ones in zlib, whose values are inverted.
    """

    def __init__(self, rows: RotaryRowsChecksum) -> None:
        self._rows, self._done, self._even, self._odd = rows, 0, 0, _EMPTY
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
        return crc_mismatch(self._even, self._rows.stored.value)
