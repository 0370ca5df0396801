"""Digest files, and the tensors in them, in one pass over their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from deltaweights.checkpoint.checksums import pieces_of, verify_in_pieces
from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.tensors import ContiguousSource, LazyTensor
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest import SourceDigest
from deltaweights.manifest.digests import Digests
from deltaweights.manifest.parse import TensorRow
from deltaweights.manifest.records import FileRecord
from deltaweights.manifest.verify_source import VerifySource
from deltaweights.report import Report
from deltaweights.util.workers import run_parallel

OnError = Callable[[str, Exception], None]  # takes the name of a file or tensor that cannot be read, and the error


@dataclass(frozen=True)
class DigestRequest:
    """The files ``names`` of ``source``, and the ``tensors`` in them.

    ``opened`` are the files that are open already. With ``verify_checksums``, tensors and ``extra_checksums`` (see
    ``WeightsFile``) are compared with the checksums that the files record.
    """

    source: VerifySource
    names: Iterable[str]
    opened: Mapping[str, InputFile] = field(default_factory=dict)
    tensors: Iterable[LazyTensor] = ()
    extra_checksums: Iterable[LazyTensor] = ()
    verify_checksums: bool = False


class _Task(NamedTuple):
    name: str
    nbytes: int
    steps: Iterator[int]


def digest_all(request: DigestRequest, on_error: OnError, workers: int, report: Report) -> Digests:
    """Read all files, the largest first, then scattered tensors; omit what ``on_error``, called from any thread, does not raise.

    Raises ``InputOutputError`` when no worker can be started.
    """
    digests = Digests()
    inside: dict[str, list[LazyTensor]] = {}
    scattered: list[LazyTensor] = []
    for tensor, name in assign_to_files(request.tensors, {id(file): name for name, file in request.opened.items()}):
        (scattered if name is None else inside.setdefault(name, [])).append(tensor)

    def read_file(name: str) -> Iterator[int]:
        file = request.opened.get(name) or request.source.open(name)
        try:
            tensors = inside.get(name, ())
            sha256, rows = yield from digest_file(file, tensors, verify_checksums=request.verify_checksums)
            file.check_unchanged()
        finally:
            if name not in request.opened:
                file.close()
        digests.files[name] = FileRecord(file.size, sha256)
        digests.tensors.update(rows)

    def read_tensor(tensor: LazyTensor) -> Iterator[int]:
        row = yield from digest_tensor(tensor, verify_checksum=request.verify_checksums)
        digests.tensors[tensor.spec.name] = row

    tasks = [_Task(name, _size(request, name), read_file(name)) for name in request.names]
    tasks.sort(key=lambda task: (-task.nbytes, task.name))
    tasks += [_Task(tensor.spec.name, tensor.spec.nbytes, read_tensor(tensor)) for tensor in scattered]
    if request.verify_checksums:
        tasks += [_Task(each.file, each.spec.nbytes, verify_in_pieces(each)) for each in request.extra_checksums]

    def run(_state: None, task: _Task) -> Iterator[int]:
        try:
            yield from task.steps
        except (InputOutputError, MalformedInput) as error:
            on_error(task.name, error)

    total = sum(task.nbytes for task in tasks)
    run_parallel(iter(tasks), lambda: None, run, workers=workers, report=report, doing="reading", total=total)
    return digests


def digest_file(
    file: InputFile, tensors: Iterable[LazyTensor] = (), *, verify_checksums: bool = False
) -> Generator[int, None, tuple[str, dict[str, TensorRow]]]:
    """Return sha256 and rows of ``tensors``, which must not overlap. Yields the bytes read; raises ``MalformedInput``."""
    sha256 = hashlib.sha256()
    rows: dict[str, TensorRow] = {}
    pending = sorted(tensors, key=_extent, reverse=True)
    current: SourceDigest | None = None
    position = 0
    for chunk in file.chunks():
        sha256.update(chunk)
        end = position + len(chunk)
        while pending:
            tensor = pending[-1]
            begin, stop = _extent(tensor)
            if begin >= end and stop > begin:
                break
            current = current or SourceDigest(tensor, verify_checksum=verify_checksums)
            current.update(chunk[max(begin, position) - position : min(stop, end) - position])
            if stop > end:
                break
            rows[tensor.spec.name] = _row(tensor, current)
            pending.pop()
            current = None
        position = end
        yield len(chunk)
    return sha256.hexdigest(), rows


def digest_tensor(tensor: LazyTensor, *, verify_checksum: bool = False) -> Generator[int, None, TensorRow]:
    """Return the row of one tensor, wherever its bytes are. Yields and raises like ``digest_file``."""
    digest = SourceDigest(tensor, verify_checksum=verify_checksum)
    for piece in pieces_of(tensor):
        digest.update(piece)
        yield len(piece)
    return _row(tensor, digest)


def _row(tensor: LazyTensor, digest: SourceDigest) -> TensorRow:
    return tensor.spec.dtype, tensor.spec.shape, digest.finish()


def assign_to_files(tensors: Iterable[LazyTensor], names: Mapping[int, str]) -> Iterator[tuple[LazyTensor, str | None]]:
    """Yield each tensor with its file's name (by ``id``), or None if it is not one range of it, or overlaps an earlier one."""
    ends: dict[int, int] = {}
    for tensor in sorted(tensors, key=_extent):
        begin, stop = _extent(tensor)
        key = id(tensor.source.file) if isinstance(tensor.source, ContiguousSource) else 0
        if key in names and begin >= ends.get(key, 0):
            ends[key] = stop
            yield tensor, names[key]
        else:
            yield tensor, None


def _extent(tensor: LazyTensor) -> tuple[int, int]:
    begin = tensor.source.offset if isinstance(tensor.source, ContiguousSource) else -1
    return begin, begin + tensor.spec.nbytes


def _size(request: DigestRequest, name: str) -> int:
    """Return the size of a file, for the order and the progress; 0 when it cannot be known yet."""
    if name in request.opened:
        return request.opened[name].size
    return request.source.size(name) or 0
