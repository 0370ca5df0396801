"""One weights file, whatever its format, and where the bytes of its tensors are."""

from __future__ import annotations

from dataclasses import dataclass

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class ContiguousSource:
    """A tensor whose row-major bytes stand in one piece at ``offset``."""

    file: InputFile
    offset: int

    def read_into(self, out: memoryview, start: int) -> None:
        self.file.read_into(out, self.offset + start)


@dataclass(frozen=True)
class WeightsFile:
    """One weights file, its header read and checked.

    ``header_digest`` is ``blake3:`` and the digest of all bytes that say where the tensors are. ``loose`` lists stored bytes that
    no tensor covers exactly, as tensors of their own, so that their checksums can be compared. ``checks`` names what is checked by
    whoever reads all tensors and all that is loose: "header", and "crc32" where checksums are recorded. ``notes`` are remarks for
    people.
    """

    file: InputFile
    container: str
    header_digest: str
    tensors: dict[str, LazyTensor]
    checks: tuple[str, ...] = ("header",)
    loose: tuple[LazyTensor, ...] = ()
    notes: tuple[str, ...] = ()
