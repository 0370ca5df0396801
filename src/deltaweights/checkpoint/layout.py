"""Which files of a directory are the checkpoint's weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.file_type import LFS_POINTER
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
TORCH = ("pytorch_model.bin.index.json", "pytorch_model.bin")
MAIN_FILES = (*SAFETENSORS, *TORCH)
"""The files that say where the weights of a Hugging Face folder are: an index, or the only weights file."""

PARAMS = "params.json"
"""The configuration beside the weights in Meta's format."""

META_PART = re.compile(r"consolidated\.([0-9]{2})\.pth")
"""The names of the weights files in Meta's format."""

HF_WEIGHTS = re.compile(r"(pytorch_)?model(-[0-9]+-of-[0-9]+)?\.(bin|safetensors)")
"""The names that Hugging Face gives to weights files."""


@dataclass(frozen=True)
class MainFile:
    """The file that says where the weights are, the weights files that are known but not used, and a note that says why."""

    name: str
    unused: frozenset[str] = frozenset()
    note: str | None = None


def find_main_file(directory: Directory, role: str) -> MainFile:
    """Return the main file of ``directory``; ``params.json`` stands for all of Meta's files.

    Complete safetensors are preferred to torch files of the same checkpoint. Raises ``MalformedInput`` when there are no
    weights, or it is not clear which are meant, and ``InputOutputError``.
    """
    names = directory.names()
    found = [name for name in MAIN_FILES if name in names]
    parts = [name for name in names if META_PART.fullmatch(name)]
    if parts:
        found.append(PARAMS)
    if len(found) == 1:
        return MainFile(found[0])
    if len(found) == 2 and found[0] in SAFETENSORS and found[1] in TORCH:
        return _choose_format(directory, *found)
    if found:
        named = [parts[0] if name == PARAMS else name for name in found]
        raise _more_than_one_set(directory, " and ".join(named), named[0])
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    remedy = f"give the folder that holds the {role}'s weights; a README alone is not a checkpoint"
    expected = " or ".join((*MAIN_FILES, "consolidated.00.pth"))
    malformed = MalformedAt(directory.path, remedy)
    raise malformed("no weights here", listed or "an empty folder", expected, code=ErrorCode.NO_WEIGHTS)


def _more_than_one_set(directory: Directory, found: str, name: str) -> MalformedInput:
    malformed = MalformedAt(directory.path, f"give the one you mean: {directory.path / name}")
    return malformed("more than one set of weights", found, "one", code=ErrorCode.SEVERAL_WEIGHTS)


def _choose_format(directory: Directory, safetensors: str, torch: str) -> MainFile:
    """Choose as the Hub's loaders do; a git-LFS pointer, which a clone has in place of each large file, counts as missing."""
    fault, safetensors_files = _check_set(directory, safetensors)
    torch_fault, torch_files = _check_set(directory, torch)
    if fault is None:
        return MainFile(safetensors, torch_files, f"{directory.path}: {safetensors} is used, not {torch} beside it")
    if torch_fault is not None:
        return MainFile(safetensors)  # opening it will report what is missing
    return MainFile(torch, safetensors_files, f"{directory.path}: {torch} is used, since {fault}")


def _check_set(directory: Directory, main: str) -> tuple[str | None, frozenset[str]]:
    """Return the first fault of the files that ``main`` names, if any, and the names of these files."""
    fault = _file_fault(directory, main)
    if fault or not main.endswith(".index.json"):
        return fault, frozenset({main})
    shards = read_index(directory, main).shards
    return next(filter(None, (_file_fault(directory, name) for name in shards)), None), frozenset({main, *shards})


def _file_fault(directory: Directory, name: str) -> str | None:
    if not directory.has(name):
        return f"{name} is missing"
    return f"{name} is a git-LFS pointer" if directory.head(name).startswith(LFS_POINTER) else None


def refuse_strays(directory: Directory, main: str, known: Iterable[str]) -> None:
    """Raise ``MalformedInput`` when there are weights that are not ``known``: it is not clear which are meant."""
    for name in directory.names():
        if HF_WEIGHTS.fullmatch(name) and name not in known:
            raise _more_than_one_set(directory, f"{name} beside {main}, which does not name it", main)
