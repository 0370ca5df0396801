"""A checkpoint as people hold it: a folder, an index, or one weights file.

Enters: a path. Leaves: a ``Checkpoint``: all its tensors, lazy, each in exactly one place. Never: a file outside the folder that
an index names, a guess between two sets of weights, or a byte of weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.files import InputFile, LocalFile, WeightsFile
from deltaweights.checkpoint.index import SUFFIXES, Index, read_index
from deltaweights.checkpoint.layout import WEIGHTS, Start, find_start, refuse_strays
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.tensors import LazyTensor, name_fault
from deltaweights.checkpoint.torch_file import open_torch_file
from deltaweights.errors import InputOutputError, MalformedInput


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; ``role`` says what it is for ("base", "delta", ...), ``directory`` is where its configuration files are.

    ``path`` is what the user gave. ``names`` are the files that the weights are made of, the index included; ``alone`` says that
    ``path`` is a weights file of no usual name, so that what else stands beside it may have nothing to do with it.
    """

    role: str
    directory: Directory
    path: Path
    names: frozenset[str]
    files: tuple[WeightsFile, ...]
    tensors: dict[str, LazyTensor]
    notes: tuple[str, ...]
    alone: bool

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for weights in self.files:
            weights.file.close()
        self.directory.close()

    @property
    def container(self) -> str:
        """How the weights are stored: "safetensors", "torch", ..."""
        return self.files[0].container

    def check_unchanged(self) -> None:
        """Raise ``InputOutputError`` when a file of the checkpoint changed since it was opened."""
        for weights in self.files:
            weights.file.check_unchanged()


def open_checkpoint(path: str | Path, role: str) -> Checkpoint:
    """Open the checkpoint at ``path``: a folder, an ``*.index.json``, or one weights file.

    Raises ``InputOutputError`` when it is not there or cannot be read, ``MalformedInput`` when a file breaks its format or the
    files do not fit each other.
    """
    path = Path(os.path.expanduser(path))  # noqa: PTH111  (Path's own raises when there is no such user)
    directory, given = _locate(path, role)
    files: list[WeightsFile] = []
    try:
        start = find_start(directory, role) if given is None else Start(given)
        index = _index_of(directory, start.name, role)
        for name in [start.name] if index is None else index.shards:
            files.append(_open_weights(directory.open(name)))
        tensors = _collect(files)
        notes = [start.note] if start.note else []
        if index is not None:
            index.check(tensors)
            notes += index.check_total(tensors)
        notes += [f"{weights.file.path}: {note}" for weights in files for note in weights.notes]
        names = frozenset({start.name, *(weights.file.path.name for weights in files)}) | start.unused
        if given is None:
            refuse_strays(directory, start.name, names)
    except BaseException:
        for weights in files:
            weights.file.close()
        directory.close()
        raise
    alone = index is None and WEIGHTS.fullmatch(start.name) is None
    return Checkpoint(role, directory, path, names, tuple(files), tensors, tuple(notes), alone)


def _locate(path: Path, role: str) -> tuple[Directory, str | None]:
    """Return where ``path`` is, and the file in it that the user named, if any."""
    try:
        if path.is_dir():
            return LocalDirectory(path), None
        if not path.exists():
            if path.is_symlink():
                remedy = "finish the download, or give the folder that it was copied from"
                raise InputOutputError(f"no {role} here", where=path, found="a link to nothing", remedy=remedy)
            raise InputOutputError(f"no {role} here", where=path, found="nothing", remedy=_how_to_get(path, role))
    except OSError as error:
        raise InputOutputError.from_os(error, path, f"open the {role}") from error
    fault = name_fault(path.name)
    if fault:
        raise MalformedInput("unusable file name", where=path, found=fault, remedy="rename it")
    return LocalDirectory(path.parent), path.name


def _how_to_get(path: Path, role: str) -> str:
    if len(path.parts) == 2 and not path.is_absolute() and not path.parent.exists():
        return f"for a model on the Hub, first run: hf download {path} --local-dir {path.name}, then give that folder"
    return f"give the folder that holds the {role}'s weights"


def _index_of(directory: Directory, name: str, role: str) -> Index | None:
    """Return the index ``name``, all of whose shards are there, or None when it is a weights file."""
    path = directory.path / name
    if not directory.has(name):
        remedy = "finish the download, or give the folder that it was copied from"
        raise InputOutputError(f"no {role} here", where=path, found="a link to nothing", remedy=remedy)
    if name.endswith(".index.json"):
        index = read_index(directory, name)
        index.refuse_missing(directory)
        return index
    if path.suffix not in SUFFIXES:
        LocalFile(path).close()  # says so when it is a FIFO, a device or unreadable
        kinds = ", ".join(SUFFIXES)
        raise MalformedInput(f"not a {role}", where=path, expected=f"a folder, an index.json, or one of {kinds}")
    return None


def _open_weights(file: InputFile) -> WeightsFile:
    opener: Callable[[InputFile], WeightsFile] = (
        open_safetensors if file.path.suffix == ".safetensors" else open_torch_file
    )
    return opener(file)


def _collect(files: Iterable[WeightsFile]) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for weights in files:
        for name, tensor in weights.tensors.items():
            if name in tensors:
                raise MalformedInput(
                    "tensor is in two shards",
                    where=weights.file.path,
                    tensor=name,
                    found=f"also in {tensors[name].file}",
                )
            tensors[name] = tensor
    return tensors
