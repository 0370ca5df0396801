"""Which files of a directory are the checkpoint.

Enters: a directory. Leaves: the one file by which its weights begin, and what to say of others. Never: a guess between two sets of
weights that could both be meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.sniff import LFS_POINTER
from deltaweights.errors import MalformedInput

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
TORCH = ("pytorch_model.bin.index.json", "pytorch_model.bin")
STARTS = (*SAFETENSORS, *TORCH)
"""The file names by which a Hugging Face folder says where its weights are."""

PARAMS = "params.json"
"""What stands beside the weights in Meta's format."""

PART = re.compile(r"consolidated\.([0-9]{2})\.pth")
"""The names of the weights files in Meta's format."""

WEIGHTS = re.compile(r"(pytorch_)?model(-[0-9]+-of-[0-9]+)?\.(bin|safetensors)")
"""The names that Hugging Face gives to weights files."""


@dataclass(frozen=True)
class Start:
    """The file by which the weights begin, other weights files that are known and not used, and why not."""

    name: str
    unused: frozenset[str] = frozenset()
    note: str | None = None


def find_start(directory: Directory, role: str) -> Start:
    """Return where the weights of ``directory`` begin.

    Safetensors win over torch files of the same checkpoint when they are complete. Raises ``MalformedInput`` when there are no
    weights, or two sets of which either could be meant, and ``InputOutputError``.
    """
    names = directory.names()
    starts = [name for name in STARTS if name in names]
    parts = [name for name in names if PART.fullmatch(name)]
    if parts:
        starts.append(PARAMS)
    if len(starts) == 1:
        return Start(starts[0])
    if len(starts) == 2 and starts[0] in SAFETENSORS and starts[1] in TORCH:
        return _one_of_two_formats(directory, *starts)
    if starts:
        named = [parts[0] if name == PARAMS else name for name in starts]
        raise MalformedInput(
            "more than one set of weights",
            where=directory.path,
            found=" and ".join(named),
            expected="one",
            remedy=f"give the one you mean: {directory.path / named[0]}",
        )
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise MalformedInput(
        "no weights here",
        where=directory.path,
        found=listed or "an empty folder",
        expected=" or ".join((*STARTS, "consolidated.00.pth")),
        remedy=f"give the folder that holds the {role}'s weights; a README alone is not a checkpoint",
    )


def _one_of_two_formats(directory: Directory, safetensors: str, torch: str) -> Start:
    """Choose between two formats of what is taken for one checkpoint, as the Hub's repositories and loaders have it.

    A clone without git-LFS has every name of the Hub's repository; a pointer is as good as a file that is missing.
    """
    fault, of_safetensors = _set_of(directory, safetensors)
    others_fault, of_torch = _set_of(directory, torch)
    if fault is None:
        return Start(safetensors, of_torch, f"{directory.path}: {safetensors} is used, not {torch} beside it")
    if others_fault is not None:
        return Start(safetensors)  # which is refused for what it lacks
    return Start(torch, of_safetensors, f"{directory.path}: {torch} is used, since {fault}")


def _set_of(directory: Directory, start: str) -> tuple[str | None, frozenset[str]]:
    """Return what is wrong with the first file of the set that begins at ``start`` with which something is, and all its names."""
    fault = _fault(directory, start)
    if fault or not start.endswith(".index.json"):
        return fault, frozenset({start})
    shards = read_index(directory, start).shards
    return next(filter(None, (_fault(directory, name) for name in shards)), None), frozenset({start, *shards})


def _fault(directory: Directory, name: str) -> str | None:
    """Return what is wrong with a file, as far as its first bytes tell."""
    if not directory.has(name):
        return f"{name} is missing"
    return f"{name} is a git-LFS pointer" if directory.head(name).startswith(LFS_POINTER) else None


def refuse_strays(directory: Directory, start: str, known: Iterable[str]) -> None:
    """Refuse weights beside those that ``start`` names: which ones are meant is not ours to guess."""
    for name in directory.names():
        if WEIGHTS.fullmatch(name) and name not in known:
            raise MalformedInput(
                "more than one set of weights",
                where=directory.path,
                found=f"{name} beside {start}, which does not name it",
                expected="one",
                remedy=f"give the one you mean: {directory.path / start}",
            )
