"""Open any checkpoint, as a loader finds it, to digest its tensors."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from deltaweights.checkpoint.directory import LocalDirectory
from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.layout_names import MAIN_FILES, META_PART, SUFFIXES
from deltaweights.errors import MalformedInput

MAX_SHOWN = 8
"""How often, on average, the tensors of a checkpoint may show the bytes of its files. Tied weights and views show some twice; a
hostile file of a megabyte could have tensors of a petabyte."""


def open_for_listing(root: Path, only: str | None = None) -> Checkpoint:
    """Open a folder's checkpoint, its only weights file, or the file ``only``. Raises as ``open_checkpoint``, ``refuse_views``."""
    names = LocalDirectory(root).names() if only is None else [only]
    weights = [name for name in names if Path(name).suffix in SUFFIXES]
    is_single = only is not None or (
        len(weights) == 1 and not META_PART.fullmatch(weights[0]) and not set(names) & set(MAIN_FILES)
    )
    with ExitStack() as stack:
        checkpoint = stack.enter_context(
            open_checkpoint(root / (only or weights[0]) if is_single else root, "checkpoint")
        )
        refuse_views(checkpoint)
        stack.pop_all()  # the caller closes the checkpoint
        return checkpoint


def refuse_views(checkpoint: Checkpoint) -> None:
    """Raise ``MalformedInput`` when the tensors of a checkpoint show stored bytes too often."""
    shown = sum(tensor.spec.nbytes for tensor in checkpoint.tensors.values())
    stored = sum(each.file.size for each in checkpoint.files)
    if shown > MAX_SHOWN * stored:
        problem, remedy = "tensors show the same bytes too often", "do not use these weights"
        found, expected = f"{shown} bytes of tensors", f"at most {MAX_SHOWN} times the {stored} bytes of the files"
        raise MalformedInput(problem, where=checkpoint.path, found=found, expected=expected, remedy=remedy)
