"""Digest a member of an archive while it passes by, with the tensors in it."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest_files import digest_file
from deltaweights.manifest.parse import TensorRow
from deltaweights.manifest.records import FileRecord
from deltaweights.manifest.tar_reader import TarMember
from deltaweights.util.limits import HEADER

MOST_HEAD = HEADER.size + 1024 * 1024


class PassingFile(InputFile):
    """A file that is read once, in order. What has been read of its head, up to its header's end, is kept until it is passed."""

    def __init__(self, path: Path, size: int, chunks: Iterator[memoryview]) -> None:
        self.path, self.size = path, size
        self._chunks, self._head = chunks, bytearray()

    def read_into(self, out: memoryview, offset: int) -> None:
        end = offset + len(out)
        while len(self._head) < end:
            piece = next(self._chunks, None) if len(self._head) < MOST_HEAD else None
            if piece is None:
                raise InputOutputError("cannot be read out of order", where=self.path)
            self._head += piece
        out[:] = self._head[offset:end]

    def chunks(self) -> Iterator[memoryview]:
        head, self._head = bytes(self._head), bytearray()
        if head:
            yield memoryview(head)
        yield from self._chunks

    def check_unchanged(self) -> None:
        """Do nothing: the archive is checked as a whole."""


def digest_member(
    member: TarMember, path: Path, pieces: list[bytes] | None, *, with_tensors: bool
) -> tuple[FileRecord, dict[str, TensorRow], Exception | None]:
    """Return the record of a member, the rows of its tensors, and what is wrong with them; ``pieces`` gets what is to be kept."""
    file = PassingFile(path, member.size, member.chunks)
    fault: Exception | None = None
    if with_tensors:
        try:
            weights = open_safetensors(file)
        except (InputOutputError, MalformedInput) as error:
            fault = error
        else:
            sha256, rows = _run(digest_file(file, weights.tensors.values()))
            return FileRecord(member.size, sha256), rows, None
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
        if pieces is not None:
            pieces.append(bytes(chunk))
    return FileRecord(member.size, digest.hexdigest()), {}, fault


def _run(steps: Generator[int, None, tuple[str, dict[str, TensorRow]]]) -> tuple[str, dict[str, TensorRow]]:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: tuple[str, dict[str, TensorRow]] = stop.value
            return result
