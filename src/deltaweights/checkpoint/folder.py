"""A checkpoint as people hold it: a folder, an index, or one weights file.

Enters: a path. Leaves: a ``Checkpoint``: all its tensors, lazy, each in exactly one file. Never: a file outside the folder that
an index names, a guess between two sets of weights, or a byte of weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from deltaweights.checkpoint.files import InputFile, WeightsFile, read_small
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.sniff import what_is_it
from deltaweights.checkpoint.tensors import MAX_TENSORS, LazyTensor, name_fault
from deltaweights.checkpoint.torch_file import open_torch_file
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.text import natural_key, strict_json

OPENERS = {".safetensors": open_safetensors, ".bin": open_torch_file, ".pth": open_torch_file, ".pt": open_torch_file}
STARTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
"""The file names by which a Hugging Face folder says where its weights are; a folder must have exactly one of them."""

WEIGHTS = re.compile(r"(pytorch_)?model(-[0-9]+-of-[0-9]+)?\.(bin|safetensors)")
"""The names that Hugging Face gives to weights files."""

MAX_INDEX = 32 * 1024 * 1024


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; ``role`` says what it is for ("base", "delta", ...), ``folder`` is where its configuration files are.

    ``names`` are the files in it that the weights are made of, the index included; ``alone`` says that ``path`` is a weights file
    of no usual name, so that what else stands in the folder may have nothing to do with it.
    """

    role: str
    folder: Path
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

    @property
    def container(self) -> str:
        """How the weights are stored: "safetensors" or "torch"."""
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
    try:
        start = _start_of(path, role) if path.is_dir() else path
        if not start.exists():
            if start.is_symlink():
                raise InputOutputError(
                    f"no {role} here",
                    where=start,
                    found="a link to nothing",
                    remedy="finish the download, or give the folder that it was copied from",
                )
            raise InputOutputError(f"no {role} here", where=path, found="nothing", remedy=_how_to_get(path, role))
    except OSError as error:
        raise InputOutputError.from_os(error, path, f"open the {role}") from error
    fault = name_fault(start.name)
    if fault:
        raise MalformedInput("unusable file name", where=start, found=fault, remedy="rename it")
    index = None
    if start.name.endswith(".index.json"):
        index = _read_index(start)
    elif start.suffix not in OPENERS:
        InputFile(start).close()  # says so when it is a FIFO, a device or unreadable
        kinds = ", ".join(OPENERS)
        raise MalformedInput(f"not a {role}", where=start, expected=f"a folder, an index.json, or one of {kinds}")
    files: list[WeightsFile] = []
    notes: list[str] = []
    try:
        for shard in [start] if index is None else index.shards(start):
            files.append(OPENERS[shard.suffix](shard))
        tensors = _collect(files)
        if index is not None:
            _check_index(start, index, tensors)
            notes += _check_total(start, index, tensors)
    except BaseException:
        for weights in files:
            weights.file.close()
        raise
    notes += [f"{weights.file.path}: {note}" for weights in files for note in weights.notes]
    names = frozenset({start.name, *(weights.file.path.name for weights in files)})
    if path.is_dir():
        _refuse_strays(start, names)
    alone = index is None and WEIGHTS.fullmatch(start.name) is None
    return Checkpoint(role, start.parent, path, names, tuple(files), tensors, tuple(notes), alone)


def _refuse_strays(start: Path, names: frozenset[str]) -> None:
    """Refuse weights beside those that ``start`` names: which ones are meant is not ours to guess."""
    for entry in sorted(start.parent.iterdir()):
        if WEIGHTS.fullmatch(entry.name) and entry.name not in names:
            raise MalformedInput(
                "more than one set of weights",
                where=start.parent,
                found=f"{entry.name} beside {start.name}, which does not name it",
                expected="one",
                remedy=f"give the one you mean: {start}",
            )


def _how_to_get(path: Path, role: str) -> str:
    if len(path.parts) == 2 and not path.is_absolute() and not path.parent.exists():
        return f"for a model on the Hub, first run: hf download {path} --local-dir {path.name}, then give that folder"
    return f"give the folder that holds the {role}'s weights"


def _start_of(folder: Path, role: str) -> Path:
    """Return the one file that says where the weights of ``folder`` are."""
    starts = [name for name in STARTS if (folder / name).exists() or (folder / name).is_symlink()]
    if len(starts) == 1:
        return folder / starts[0]
    if starts:
        raise MalformedInput(
            "more than one set of weights",
            where=folder,
            found=" and ".join(starts),
            expected="one",
            remedy=f"give the one you mean: {folder / starts[0]}",
        )
    entries = sorted(entry.name for entry in folder.iterdir())
    if any(name.startswith("consolidated.") and name.endswith(".pth") for name in entries):
        remedy = "this is Meta's original format: convert it with transformers' convert_llama_weights_to_hf.py first"
    else:
        remedy = f"give the folder that holds the {role}'s weights; a README alone is not a checkpoint"
    listed = ", ".join(entries[:5]) + (f" and {len(entries) - 5} more" if len(entries) > 5 else "")
    raise MalformedInput(
        "no weights here", where=folder, found=listed or "an empty folder", expected=" or ".join(STARTS), remedy=remedy
    )


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]
    total_size: object

    def shards(self, start: Path) -> list[Path]:
        """Return the shards that the index at ``start`` names, in natural order; raise when one is missing."""
        paths = [start.with_name(name) for name in sorted(set(self.weight_map.values()), key=natural_key)]
        for path in paths:
            try:
                missing = not path.exists()
            except OSError as error:
                raise InputOutputError.from_os(error, path, "look for the shard") from error
            if missing:
                expected = f"every file that {start.name} names"
                raise MalformedInput("shard is missing", where=path, expected=expected, remedy="finish the download")
        return paths


def _read_index(path: Path) -> _Index:
    try:
        data = read_small(path, MAX_INDEX)
        document = strict_json(data)
    except ValueError as error:
        other = what_is_it(data)
        if other is not None and b"{" not in data[:8]:  # what begins like JSON has a better reason
            raise MalformedInput("not an index", where=path, found=other[0], remedy=other[1]) from None
        raise MalformedInput("index is not strict JSON", where=path, found=error, remedy="fetch it again") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedInput("index has no weight_map", where=path, remedy="fetch it again")
    if len(weight_map) > MAX_TENSORS:
        raise MalformedInput("too many tensors", where=path, found=len(weight_map), expected=f"at most {MAX_TENSORS}")
    for tensor, shard in weight_map.items():
        fault = name_fault(tensor)
        if fault:
            raise MalformedInput("unusable tensor name in the index", where=path, found=fault)
        if not isinstance(shard, str) or not _is_plain(shard):
            raise MalformedInput(
                "index names something else than a weights file beside it", where=path, tensor=tensor, found=repr(shard)
            )
    kinds = sorted({Path(shard).suffix for shard in set(weight_map.values())})
    if len(kinds) > 1:
        raise MalformedInput("index mixes formats", where=path, found=" and ".join(kinds), expected="one format")
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return _Index(weight_map, total)


@lru_cache(maxsize=256)  # an index says the same few names for every tensor
def _is_plain(name: str) -> bool:
    """Tell whether ``name`` is the plain name of a weights file: no folder, no way up, nothing hidden in it, no endless one."""
    if len(name) > 255 or "/" in name or "\\" in name or name_fault(name) is not None:
        return False
    return len(name.encode()) <= 255 and Path(name).suffix in OPENERS


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


def _check_index(start: Path, index: _Index, tensors: dict[str, LazyTensor]) -> None:
    remedy = "index and shards are of different downloads: fetch them again"
    for name, shard in index.weight_map.items():
        if name not in tensors:
            raise MalformedInput(
                "tensor of the index is not in its shard",
                where=start,
                tensor=name,
                expected=f"it in {shard}",
                remedy=remedy,
            )
        if tensors[name].file != shard:
            found = f"it in {tensors[name].file}"
            raise MalformedInput(
                "tensor is in another shard than the index says",
                where=start,
                tensor=name,
                found=found,
                expected=shard,
                remedy=remedy,
            )
    for name, tensor in tensors.items():
        if name not in index.weight_map:
            raise MalformedInput(
                "tensor of a shard is not in the index", where=start.with_name(tensor.file), tensor=name, remedy=remedy
            )


def _check_total(start: Path, index: _Index, tensors: dict[str, LazyTensor]) -> list[str]:
    # Writers disagree on whether tied tensors count twice, so a wrong total is worth a word, not a refusal.
    total = sum(tensor.spec.nbytes for tensor in tensors.values())
    if index.total_size is None or index.total_size == total:
        return []
    return [f"{start}: total_size is {index.total_size}, the tensors have {total} bytes"]
