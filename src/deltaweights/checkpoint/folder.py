"""A checkpoint as people hold it: a folder, an index, or one weights file.

Enters: a path. Leaves: a ``Checkpoint``: all its tensors, lazy, each in exactly one place. Never: a file outside the folder that
an index names, a guess between two sets of weights, or a byte of weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

from deltaweights.checkpoint.archived.directory import holds_checkpoint, is_checkpoint_archive, open_archive
from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.index import SUFFIXES, Index, read_index
from deltaweights.checkpoint.layout import PARAMS, PART, WEIGHTS, Start, find_start, refuse_strays
from deltaweights.checkpoint.meta.llama import open_meta
from deltaweights.checkpoint.pickled.torch_file import open_torch_file
from deltaweights.checkpoint.projector import open_projector
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.sniff import LEGACY_TORCH, what_is_it, what_stands_for
from deltaweights.checkpoint.tensors import LazyTensor, name_fault
from deltaweights.checkpoint.weights_file import WeightsFile
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder

TORCH_HEADS = (b"PK\3\4", LEGACY_TORCH)
"""How files that torch writes begin."""


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


class Unpacker(Protocol):
    """Where archives are unpacked whose weights cannot be read in place.

    ``copies`` says for how many copies of the weights there must be room.
    """

    @property
    def copies(self) -> int:
        """1, or 2 where the result comes to lie on the same disk."""

    def folder(self, role: str) -> OpenFolder:
        """Open the folder for the checkpoint of that role, new or with what an earlier run left in it."""


def open_checkpoint(
    place: str | Path | Directory, role: str, unpacker: Unpacker | None = None, report: Report | None = None
) -> Checkpoint:
    """Open the checkpoint in a directory, or at a path.

    A path is that of a folder (Hugging Face's layout or Meta's), an ``*.index.json``, a weights file, or a zip archive that
    holds one of the former; where its weights are compressed they are unpacked, if there is an ``unpacker``. Raises
    ``InputOutputError`` when it is not there or cannot be read, ``MalformedInput`` when a file breaks its format or the files do
    not fit each other.
    """
    if isinstance(place, Directory):
        directory, given, path = place, None, place.path
    else:
        path = Path(os.path.expanduser(place))  # noqa: PTH111  (Path's own raises when there is no such user)
        directory, given = _locate(path, role, unpacker, report or Report())
    files: list[WeightsFile] = []
    try:
        start = find_start(directory, role) if given is None else _start_at(given)
        notes = [start.note] if start.note else []
        index = None
        if start.name == PARAMS:
            files, tensors = open_meta(directory)
        else:
            index = _index_of(directory, start.name, role)
            for name in [start.name] if index is None else index.shards:
                files.append(_open_weights(directory, name))
            tensors = _collect(files)
        if index is not None:
            index.check(tensors)
            notes += index.check_total(tensors)
        if role != "base" and (given is None or index is not None):  # a base has no projector, whatever lies beside it
            projector = open_projector(directory, tensors)
            if projector is not None:
                files.append(projector)
                tensors |= projector.tensors
        notes += [f"{weights.file.path}: {note}" for weights in files for note in weights.notes]
        names = frozenset({start.name, *(weights.file.path.name for weights in files)}) | start.unused
        if given is None:
            refuse_strays(directory, start.name, names)
        if given is None or index is not None:  # else the link is what the user gave
            notes += _links_out(directory, names, report or Report())
    except BaseException:
        for weights in files:
            weights.file.close()
        directory.close()
        raise
    alone = index is None and start.name != PARAMS and WEIGHTS.fullmatch(start.name) is None
    return Checkpoint(role, directory, path, names, tuple(files), tensors, tuple(notes), alone)


def _links_out(directory: Directory, names: Iterable[str], report: Report) -> list[str]:
    """Say which files of a checkpoint are elsewhere, by links; return that as a warning where somebody else made one of them.

    What is linked is common (and not copied: companions must be in the folder), so it is read; but not in silence.
    """
    led = {name: directory.led[name] for name in sorted(names) if name in directory.led}
    if not led:
        return []
    name, first = next(((name, link) for name, link in led.items() if link.by_others), next(iter(led.items())))
    links = "file is a link" if len(led) == 1 else "files are links"
    text = f"{directory.path}: {len(led)} {links} out of the folder: {name} -> {first.to}"
    if first.by_others:
        return [f"{text}; somebody else made it"]
    report.note(text)
    return []


def _start_at(given: str) -> Start:
    """Return where the weights begin when the user named a file: a part of Meta's stands for all of them."""
    return Start(PARAMS if PART.fullmatch(given) else given)


def _locate(path: Path, role: str, unpacker: Unpacker | None, report: Report) -> tuple[Directory, str | None]:
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
    if _is_archive(path):
        if unpacker is None:
            return open_archive(path, None, report), None
        return open_archive(path, partial(unpacker.folder, role), report, copies=unpacker.copies), None
    return LocalDirectory(path.parent), path.name


def _is_archive(path: Path) -> bool:
    """Tell whether ``path``, which is no folder, is an archive that holds a checkpoint, whatever its name."""
    if path.suffix in {*SUFFIXES, ".json"}:
        return False
    file = LocalFile(path)
    try:
        return is_checkpoint_archive(file)
    finally:
        file.close()


def _how_to_get(path: Path, role: str) -> str:
    if path.parts[:1] == ("hf:",):
        return "this command takes no model of the Hub"
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
    if path.suffix in SUFFIXES:
        return None
    head = directory.head(name)
    if head.startswith(TORCH_HEADS):  # people rename files
        return None
    expected = f"a folder, an index.json, a .zip of a folder, or one of {', '.join(SUFFIXES)}"
    other = what_stands_for(name, head) if path.suffix == ".json" else what_is_it(head)
    found, way_out = other or (None, None)
    raise MalformedInput(f"not a {role}", where=path, found=found, expected=expected, remedy=way_out)


def _open_weights(directory: Directory, name: str) -> WeightsFile:
    is_safetensors = Path(name).suffix == ".safetensors"
    opener: Callable[[InputFile], WeightsFile] = open_safetensors if is_safetensors else open_torch_file
    try:
        return opener(directory.open(name))
    except MalformedInput:
        _refuse_archive(directory, name)
        raise


def _refuse_archive(directory: Directory, name: str) -> None:
    """Raise ``MalformedInput`` when what is no weights file is the archive of a checkpoint, under another name."""
    file = directory.open(name)
    try:
        is_archive = holds_checkpoint(file)
    except MalformedInput:
        return
    finally:
        file.close()
    if is_archive:
        where, found = directory.path / name, "an archive of a folder"
        raise MalformedInput("not a weights file", where=where, found=found, remedy="name it .zip")


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
                    remedy="the files are of different downloads: fetch them again",
                )
            tensors[name] = tensor
    return tensors
