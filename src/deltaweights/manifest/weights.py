"""The tensors in a folder's files: in one that we wrote, each in a range of its own; in one of anybody's, wherever they are.

Enters: a folder. Leaves: open files with their lazy tensors, as a ``Job`` of reading them all. Never: a byte of weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from deltaweights.checkpoint.directory import LocalDirectory
from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.index import SUFFIXES
from deltaweights.checkpoint.layout import MAIN_FILES, META_PART
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.tensors import LazyTensor, WeightsFile
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.problems import FILE, TENSOR
from deltaweights.manifest.reading import Job, apart

OPENERS = {".safetensors": open_safetensors, ".bin": open_torch_file}
"""What reads the weights files that we write."""

SPREAD = "consolidated.*.pth"
"""What stands for a file where a tensor is spread over all parts of Meta's (see ``LazyTensor.file``)."""

MOST_SHOWN = 8
"""How often the tensors of a checkpoint may show its files' bytes. Tied weights and views show some twice; a hostile file of a
megabyte could ask for a petabyte."""


class Fail(Protocol):
    """Takes a problem: the name of what has it, and what it is."""

    def __call__(self, name: str, problem: str, *, about: str = FILE) -> None:
        """Add the problem."""


def open_listed(root: Path) -> Checkpoint:
    """Open the checkpoint in ``root``, which may also be the only weights file there, whatever its name.

    Raises as ``open_checkpoint`` does, and ``MalformedInput`` when its tensors show the stored bytes far too often.
    """
    names = LocalDirectory(root).names()
    weights = [name for name in names if Path(name).suffix in SUFFIXES]
    alone = len(weights) == 1 and not META_PART.fullmatch(weights[0]) and not set(names) & set(MAIN_FILES)
    checkpoint = open_checkpoint(root / weights[0] if alone else root, "checkpoint")
    shown = sum(tensor.spec.nbytes for tensor in checkpoint.tensors.values())
    stored = sum(weights.file.size for weights in checkpoint.files)
    if shown > MOST_SHOWN * stored:
        checkpoint.__exit__(None, None, None)
        found, expected = f"{shown} bytes of tensors", f"at most {MOST_SHOWN} times the {stored} bytes of the files"
        problem, remedy = "tensors show the same bytes far too often", "do not use these weights"
        raise MalformedInput(problem, where=root, found=found, expected=expected, remedy=remedy)
    return checkpoint


def job_of(checkpoint: Checkpoint, names: Iterable[str], *, compare: bool, links: Collection[str]) -> Job:
    """Return the reading of the files ``names`` of a checkpoint's folder, and of all its tensors."""
    names = frozenset(names)
    return Job(
        checkpoint.directory.path,
        names,
        {weights.file.path.name: weights.file for weights in checkpoint.files if weights.file.path.name in names},
        checkpoint.tensors.values(),
        [tensor for weights in checkpoint.files for tensor in weights.extra_checksums],
        compare,
        links,
    )


def open_written(root: Path, names: list[str], fail: Fail, stack: ExitStack, links: Collection[str]) -> Job:
    """Open those of the files ``names`` that hold weights, to be closed by ``stack``; return the reading of all files.

    Of the names, ``links`` may be links.

    Weights that are unsound, or not as we write them, are told to ``fail``, and left out.
    """
    opened: dict[str, InputFile] = {}
    tensors: dict[str, LazyTensor] = {}
    sound = []
    for name in names:
        opener = OPENERS.get(Path(name).suffix)
        try:
            if opener is not None:
                weights = opener(LocalFile(root / name, follow=name in links))  # closes the file when it fails
                stack.callback(weights.file.close)
                _refuse_shared(weights)
                opened[name] = weights.file
                for tensor in sorted(tensors.keys() & weights.tensors.keys()):
                    fail(tensor, "is in two weights files", about=TENSOR)
                tensors |= weights.tensors
            sound.append(name)
        except (InputOutputError, MalformedInput) as error:
            fail(name, f"cannot be verified: {error}")
    return Job(root, sound, opened, tensors.values(), links=links)


def _refuse_shared(weights: WeightsFile) -> None:
    """Raise ``MalformedInput`` unless each tensor is a range of the file of its own, as in all that we write."""
    name = weights.file.path.name
    for tensor, place in apart(weights.tensors.values(), {id(weights.file): name}):
        if place is None:
            problem, expected = "shares bytes with another, or is not in one piece", "bytes of its own, in order"
            name, remedy = tensor.spec.name, "the file was tampered with: get it again"
            raise MalformedInput(problem, where=tensor.path, tensor=name, expected=expected, remedy=remedy)
