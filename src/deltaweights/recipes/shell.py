"""Refuse what DeepSpeed's ZeRO-3 leaves in place of a model: the names of its tensors, and no weights."""

from __future__ import annotations

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import MalformedInput
from deltaweights.recipes.stored_form import RUN_ZERO_TO_FP32, ZERO_3, empty_weight


def refuse_shell(checkpoint: Checkpoint) -> None:
    """Raise ``MalformedInput`` where ZeRO-3 left weights empty: their shape is [0], whatever it should be."""
    empty = empty_weight({name: tensor.spec for name, tensor in checkpoint.tensors.items()})
    if empty is not None:
        where = f"{checkpoint.role} {checkpoint.path}"
        raise MalformedInput(
            ZERO_3, where=where, tensor=empty.name, found=str(list(empty.shape)), remedy=RUN_ZERO_TO_FP32
        )
