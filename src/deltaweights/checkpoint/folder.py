"""Open a checkpoint: a folder, an index, a weights file, or a zip archive of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.file_type import LEGACY_TORCH, code_of_type, detect_file_type, detect_wrong_content
from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.index import Index, read_index
from deltaweights.checkpoint.layout import MainFile, find_main_file, refuse_strays, twin_note, unfinished_by
from deltaweights.checkpoint.layout_names import HF_WEIGHTS, META_PART, PARAMS, SUFFIXES
from deltaweights.checkpoint.look_around import explain, refuse_foreign_file, refuse_lone_shard, remedy_for_nothing
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.meta_llama.weights import open_meta
from deltaweights.checkpoint.naming import Naming, naming_of
from deltaweights.checkpoint.projector import open_projector
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.samples import FEW, same_weights
from deltaweights.checkpoint.tensors import LazyTensor, WeightsFile, name_fault
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.checkpoint.zipped_folder.directory import contains_checkpoint, is_checkpoint_archive, open_archive
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, wrap_os_errors
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder

INSPECTED = frozenset({"checkpoint", "first checkpoint", "second checkpoint"})
"""Roles of what is looked at as it is: any tensors will do, those of an adapter, too."""

TORCH_HEADS = (b"PK\3\4", LEGACY_TORCH)
"""The first bytes of files that torch writes."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; ``role`` says what it is for ("base", "delta", ...), ``directory`` has its configuration files.

    ``path`` is what the user gave, ``names`` are the files that hold the weights, with the index. ``is_lone_file`` says that
    ``path`` is a weights file of no usual name: other files beside it may have nothing to do with it.
    """

    role: str
    directory: Directory
    path: Path
    names: frozenset[str]
    files: tuple[WeightsFile, ...]
    tensors: dict[str, LazyTensor]
    notes: tuple[str, ...]
    is_lone_file: bool

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        for weights in self.files:
            weights.file.close()
        self.directory.close()

    @property
    def container(self) -> str:
        """How the weights are stored: "safetensors", "torch", ..."""
        return self.files[0].container

    @cached_property
    def naming(self) -> Naming:
        """How the names on disk differ from those in the model."""
        return naming_of(self.tensors)

    @cached_property
    def model_tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors by their names in the model. Their specs have the names on disk."""
        return self.naming.by_model_name(self.tensors)

    def check_unchanged(self) -> None:
        """Raise ``InputOutputError`` when a file of the checkpoint changed since it was opened."""
        for weights in self.files:
            weights.file.check_unchanged()


class Unpacker(Protocol):
    """Provides folders for archives whose weights cannot be read in place."""

    @property
    def copies(self) -> int:
        """How many copies of the weights the disk must have room for: 2 where the result goes to the same disk, else 1."""

    def folder(self, role: str) -> OpenFolder:
        """Open the folder for the checkpoint of that role; it may hold files that an earlier run unpacked."""


def open_checkpoint(
    place: str | Path | Directory, role: str, unpacker: Unpacker | None = None, report: Report | None = None
) -> Checkpoint:
    """Open the checkpoint in a directory, or at a path.

    The path may be a folder (in Hugging Face's layout or Meta's), an ``*.index.json``, a weights file, or a zip archive of a
    folder. Compressed weights are unpacked if there is an ``unpacker``. Raises ``InputOutputError`` when it is not there or
    cannot be read, ``MalformedInput`` when a file breaks its format or the files do not fit each other.
    """
    report = report or Report()
    if isinstance(place, Directory):
        directory, given, path = place, None, place.path
    else:
        path = Path(os.path.expanduser(place))  # noqa: PTH111  (Path's own raises when there is no such user)
        directory, given = _locate(path, role, unpacker, report)
    try:
        return _open_in(directory, given, path, role, report)
    except BaseException as error:
        directory.close()
        if given is None and isinstance(error, MalformedInput) and isinstance(directory, LocalDirectory):
            raise explain(directory, error) from error.__cause__
        raise


def _open_in(directory: Directory, given: str | None, path: Path, role: str, report: Report) -> Checkpoint:
    files: list[WeightsFile] = []
    try:
        main = find_main_file(directory, role) if given is None else MainFile(given)
        index = None
        if main.name == PARAMS:
            files, tensors = open_meta(directory)
        else:
            index = _index_of(directory, main.name, role)
            for name in [main.name] if index is None else index.shards:
                files.append(_open_weights(directory, name))
            tensors = _collect(files)
        note = twin_note(directory, main, _same_as_twin(directory, main, tensors))
        notes = [note] if note else []
        if index is not None:
            index.check(tensors)
            notes += index.check_total(tensors)
        is_one_file = given is not None and index is None
        if role != "base" and not is_one_file:  # a base has no projector, whatever is beside it
            projector = open_projector(directory, tensors)
            if projector is not None:
                files.append(projector)
                tensors |= projector.tensors
        notes += [f"{weights.file.path}: {note}" for weights in files for note in weights.notes]
        names = frozenset({main.name, *(weights.file.path.name for weights in files)}) | main.unused
        if given is None:
            refuse_strays(directory, main.name, names)
        if not is_one_file:  # else the user gave the link itself
            notes += _report_outside_links(directory, names, report)
    except BaseException:
        for weights in files:
            weights.file.close()
        raise
    is_lone_file = index is None and main.name != PARAMS and HF_WEIGHTS.fullmatch(main.name) is None
    return Checkpoint(role, directory, path, names, tuple(files), tensors, tuple(notes), is_lone_file)


def _same_as_twin(directory: Directory, main: MainFile, tensors: Mapping[str, LazyTensor]) -> bool | None:
    """Return whether a few samples of the weights agree with those of the other set in the folder; None when nothing tells.

    Nothing of a repository on the Hub is fetched for this.
    """
    if main.twin is None or not isinstance(directory, LocalDirectory):
        return None
    files: list[WeightsFile] = []
    try:
        index = _index_of(directory, main.twin.main, "checkpoint")
        for name in [main.twin.main] if index is None else index.shards:
            files.append(_open_weights(directory, name))
        twin = _collect(files)
        if any(twin[name].spec.shape != tensor.spec.shape for name, tensor in tensors.items() if name in twin):
            return False
        shared = [name for name in tensors if name in twin and twin[name].spec == tensors[name].spec]
        return same_weights(tensors, twin, shared[:: max(1, len(shared) // FEW)]) if shared else None
    except (MalformedInput, InputOutputError):
        return None  # it is not what is used
    finally:
        for weights in files:
            weights.file.close()


def _report_outside_links(directory: Directory, names: Iterable[str], report: Report) -> list[str]:
    """Report which files were opened through links out of the folder; return a warning if another user made one."""
    # Such links are common and the files are only read (companions must be in the folder): allowed, but not silently.
    links = [(name, directory.outside_links[name]) for name in sorted(names) if name in directory.outside_links]
    if not links:
        return []
    name, shown = next(((name, link) for name, link in links if link.by_others), links[0])
    count = f"{len(links)} {'file is a link' if len(links) == 1 else 'files are links'}"
    text = f"{directory.path}: {count} out of the folder: {name} -> {shown.target}"
    if shown.by_others:
        return [f"{text}; another user made it"]
    report.note(text)
    return []


def in_words(role: str) -> str:
    """Return what the input of this role is, for messages: "no base here", but "no merged model here"."""
    return {"merged": "merged model", "vision_tower": "vision tower"}.get(role, role)


def _locate(path: Path, role: str, unpacker: Unpacker | None, report: Report) -> tuple[Directory, str | None]:
    """Return the directory that ``path`` is or is in, and the main file if the user named it: any part of Meta's names them all."""
    with wrap_os_errors(path, f"open the {role}"):
        if path.is_dir():
            return LocalDirectory(path), None
        if not path.exists():
            if path.is_symlink():
                raise _dangling_link(path, role)
            remedy = remedy_for_nothing(path, role)
            problem, code = f"no {in_words(role)} here", ErrorCode.NOT_FOUND
            raise InputOutputError(problem, where=path, found="nothing", remedy=remedy, code=code)
    fault = name_fault(path.name)
    if fault:
        raise MalformedInput("unusable file name", where=path, found=fault, remedy="rename it")
    with closing(LocalDirectory(path.parent)) as directory:
        refuse_foreign_file(directory, path.name, role, adapters=role in INSPECTED)
        if role not in INSPECTED:
            refuse_lone_shard(directory, path.name)
    if path.suffix not in {*SUFFIXES, ".json"}:
        with closing(LocalFile(path)) as file:
            is_archive = is_checkpoint_archive(file)
        if is_archive:
            unpack_into = None if unpacker is None else partial(unpacker.folder, role)
            return open_archive(path, unpack_into, report, copies=1 if unpacker is None else unpacker.copies), None
    return LocalDirectory(path.parent), PARAMS if META_PART.fullmatch(path.name) else path.name


def _dangling_link(path: Path, role: str) -> InputOutputError:
    remedy = "finish the download, or give the folder that it was copied from"
    problem, code = f"no {in_words(role)} here", ErrorCode.NOT_FOUND
    return InputOutputError(problem, where=path, found="a dangling link", remedy=remedy, code=code)


def _index_of(directory: Directory, name: str, role: str) -> Index | None:
    """Return the index ``name``, all of whose shards are there, or None when it is a weights file."""
    path = directory.path / name
    if not directory.has(name):
        raise _dangling_link(path, role)
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
    other = detect_wrong_content(name, head) if path.suffix == ".json" else detect_file_type(head)
    found, remedy = other or (None, None)
    code = code_of_type(found or "")
    problem = f"not a {in_words(role)}"
    raise MalformedInput(problem, where=path, found=found, expected=expected, remedy=remedy, code=code)


def _open_weights(directory: Directory, name: str) -> WeightsFile:
    state = unfinished_by(directory, name)
    if state is not None:
        malformed = MalformedAt(directory.path / name, "run the same download again, and wait for its end")
        raise malformed("a download that is not finished", f"{state} beside it")
    try:
        file = directory.open(name)
        return open_safetensors(file) if Path(name).suffix == ".safetensors" else open_torch_file(file)
    except MalformedInput:
        _refuse_archive(directory, name)
        raise


def _refuse_archive(directory: Directory, name: str) -> None:
    """Raise ``MalformedInput`` when a file that could not be read is a zip archive of a checkpoint."""
    is_archive = False
    with closing(directory.open(name)) as file, suppress(MalformedInput):
        is_archive = contains_checkpoint(file)
    if is_archive:
        raise MalformedAt(directory.path / name, "name it .zip")("not a weights file", "an archive of a folder")


def _collect(files: Iterable[WeightsFile]) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for weights in files:
        for name, tensor in weights.tensors.items():
            if name in tensors:
                malformed = MalformedAt(weights.file.path, "the files are of different downloads: fetch them again")
                raise malformed("tensor is in two shards", f"also in {tensors[name].file}", tensor=name)
            tensors[name] = tensor
    return tensors
