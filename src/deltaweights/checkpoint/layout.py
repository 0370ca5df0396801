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
    weights, or two sets of which either could be meant.
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
    """Choose between two formats of what is taken for one checkpoint, as the Hub's repositories and loaders have it."""
    missing, _ = _files_of(directory, safetensors)
    without, others = _files_of(directory, torch)
    if not missing:
        return Start(safetensors, others, f"{directory.path}: {safetensors} is used, not {torch} beside it")
    if without:
        return Start(safetensors)  # which is refused for what it lacks
    _, others = _files_of(directory, safetensors)
    note = f"{directory.path}: {torch} is used, since {missing[0]} of {safetensors} is missing"
    return Start(torch, others, note)


def _files_of(directory: Directory, start: str) -> tuple[list[str], frozenset[str]]:
    """Return which files of the set that begins at ``start`` are missing, and all names of the set."""
    if not directory.has(start):
        return [start], frozenset({start})
    if not start.endswith(".index.json"):
        return [], frozenset({start})
    index = read_index(directory, start)
    return index.missing(directory), frozenset({start, *index.shards})


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
