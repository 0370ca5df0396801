"""Files and tensors, digested as their bytes pass.

Enters: a folder, and the lazy tensors of its weights files. Leaves: the size and sha256 of each file, the digest of each tensor.
Never: a tensor in memory, or a second reading of one that stands in its file in one piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deltaweights.checkpoint.checksums import refuse_damage, verify_in_pieces
from deltaweights.checkpoint.files import CHUNK, InputFile, LocalFile
from deltaweights.checkpoint.tensors import ContiguousSource, LazyTensor
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest import tensor_digest, tensor_hasher
from deltaweights.manifest.manifest import FileRecord
from deltaweights.report import Report
from deltaweights.util.workers import run_parallel

TensorRow = tuple[str, tuple[int, ...], str]
"""Dtype, shape and digest of a tensor."""

Failed = Callable[[str, Exception], None]
"""What is told the name of a file or tensor that cannot be read, and why."""


@dataclass(frozen=True)
class Job:
    """What is to be read: the files ``names`` of ``root``, with the ``tensors`` in them.

    ``opened`` are those of the files that are open already; of the others ``links`` may be links, and none else. With ``compare``,
    the checksums that the files themselves record are compared, also those of ``loose`` bytes (see ``WeightsFile``).
    """

    root: Path
    names: Iterable[str]
    opened: Mapping[str, InputFile] = field(default_factory=dict)
    tensors: Iterable[LazyTensor] = ()
    loose: Iterable[LazyTensor] = ()
    compare: bool = False
    links: Collection[str] = ()


@dataclass(frozen=True)
class Found:
    """What the bytes gave, by name; what failed is not there."""

    files: dict[str, FileRecord] = field(default_factory=dict)
    tensors: dict[str, TensorRow] = field(default_factory=dict)


def read(job: Job, failed: Failed, workers: int, report: Report) -> Found:
    """Read all files, several at once, the largest first, and then the tensors that are not in one piece.

    ``failed`` may raise what it is given, which ends the reading; else that file or tensor is left out. It may be called by
    several threads. Raises ``InputOutputError`` when no worker can be started.
    """
    found = Found()
    inside: dict[str, list[LazyTensor]] = {}
    pieces: list[LazyTensor] = []
    names_of = {id(file): name for name, file in job.opened.items()}
    for tensor, name in apart(job.tensors, names_of):
        if name is None:
            pieces.append(tensor)
        else:
            inside.setdefault(name, []).append(tensor)

    def read_file(name: str) -> Iterator[int]:
        file = job.opened.get(name) or LocalFile(job.root / name, follow=name in job.links)
        try:
            sha256, rows = yield from digest_file(file, inside.get(name, ()), compare=job.compare)
            file.check_unchanged()
        finally:
            if name not in job.opened:
                file.close()
        found.files[name] = FileRecord(file.size, sha256)
        found.tensors.update(rows)

    def read_tensor(tensor: LazyTensor) -> Iterator[int]:
        found.tensors[tensor.spec.name] = yield from digest_tensor(tensor, compare=job.compare)

    sizes = {name: _size(job, name) for name in job.names}
    tasks = [(name, sizes[name], read_file(name)) for name in sorted(sizes, key=lambda name: (-sizes[name], name))]
    tasks += [(tensor.spec.name, tensor.spec.nbytes, read_tensor(tensor)) for tensor in pieces]
    tasks += [(tensor.file, tensor.spec.nbytes, verify_in_pieces(tensor)) for tensor in job.loose if job.compare]

    def do(_desk: None, task: tuple[str, int, Iterator[int]]) -> Iterator[int]:
        try:
            yield from task[2]
        except (InputOutputError, MalformedInput) as error:
            failed(task[0], error)

    total = sum(size for _, size, _ in tasks)
    run_parallel(iter(tasks), _no_desk, do, workers=workers, report=report, doing="reading", total=total)
    return found


def digest_file(
    file: InputFile, tensors: Iterable[LazyTensor] = (), *, compare: bool = False
) -> Generator[int, None, tuple[str, dict[str, TensorRow]]]:
    """Return the sha256 of ``file`` and the digests of its ``tensors``, ranges that do not overlap, from one pass in order.

    Yields how many bytes it read. With ``compare``, raises ``MalformedInput`` when a tensor has not its recorded checksum.
    """
    sha256 = hashlib.sha256()
    rows: dict[str, TensorRow] = {}
    waiting = sorted(tensors, key=_extent, reverse=True)
    current: _Running | None = None
    position = 0
    for chunk in file.chunks():
        sha256.update(chunk)
        end = position + len(chunk)
        while waiting:
            begin, stop = _extent(waiting[-1])
            if begin >= end and stop > begin:
                break
            current = current or _Running(waiting[-1], compare=compare)
            current.update(chunk[max(begin, position) - position : min(stop, end) - position])
            if stop > end:
                break
            rows[waiting.pop().spec.name] = current.row()
            current = None
        position = end
        yield len(chunk)
    return sha256.hexdigest(), rows


def digest_tensor(tensor: LazyTensor, *, compare: bool = False) -> Generator[int, None, TensorRow]:
    """Return the digest of one tensor, wherever its bytes are, read in blocks. Yields and raises as ``digest_file`` does."""
    running, nbytes = _Running(tensor, compare=compare), tensor.spec.nbytes
    step = CHUNK // tensor.spec.item_size * tensor.spec.item_size
    buffer = memoryview(bytearray(min(step, nbytes)))
    for start in range(0, nbytes, step):
        block = buffer[: min(step, nbytes - start)]
        tensor.source.read_into(block, start)
        running.update(block)
        yield len(block)
    return running.row()


class _Running:
    """The digest of one tensor in the making, and the checksum that its file records for it."""

    def __init__(self, tensor: LazyTensor, *, compare: bool) -> None:
        self._tensor, self._hasher = tensor, tensor_hasher()
        self._checksum = tensor.checksum.start() if compare and tensor.checksum is not None else None

    def update(self, data: memoryview) -> None:
        self._hasher.update(data)
        if self._checksum is not None:
            self._checksum.update(data)

    def row(self) -> TensorRow:
        refuse_damage(self._tensor, self._checksum)
        return self._tensor.spec.dtype, self._tensor.spec.shape, tensor_digest(self._hasher)


def apart(tensors: Iterable[LazyTensor], names: Mapping[int, str]) -> Iterator[tuple[LazyTensor, str | None]]:
    """Yield each tensor with the name of the file in which it is one range, and begins in no other one; else with None.

    ``names`` has the files' names by their identity. One pass in order would digest other bytes of a view than a loader finds.
    """
    ends: dict[int, int] = {}
    for tensor in sorted(tensors, key=_extent):
        source = tensor.source
        begin, stop = _extent(tensor)
        key = id(source.file) if isinstance(source, ContiguousSource) else 0
        if key in names and begin >= ends.get(key, 0):
            ends[key] = stop
            yield tensor, names[key]
        else:
            yield tensor, None


def _extent(tensor: LazyTensor) -> tuple[int, int]:
    begin = tensor.source.offset if isinstance(tensor.source, ContiguousSource) else -1
    return begin, begin + tensor.spec.nbytes


def _size(job: Job, name: str) -> int:
    """Return what is to be read of a file, as far as it can be known before: it decides the order, and the progress."""
    if name in job.opened:
        return job.opened[name].size
    try:
        return (job.root / name).stat().st_size
    except OSError:
        return 0


def _no_desk() -> None:
    """Each file has a buffer of its own."""
