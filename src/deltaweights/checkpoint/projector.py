"""The projector that lies beside a delta's shards, as LLaVA v0's ``mm_projector.bin`` does.

Enters: a directory, and the tensors that its shards hold. Leaves: the projector's tensors under their names in the model, when the
shards do not hold them. Never: a choice between two projectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.pickled.torch_file import open_torch_file
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.checkpoint.weights_file import WeightsFile
from deltaweights.errors import MalformedInput

FILE = "mm_projector.bin"

NAMES = ("model.mm_projector.weight", "model.mm_projector.bias")


def open_projector(directory: Directory, tensors: Mapping[str, LazyTensor]) -> WeightsFile | None:
    """Open the projector beside the shards that hold ``tensors``; None when there is none, or the shards hold one.

    Its tensors have the model's names, whatever stands before ``mm_projector`` in the file. Raises ``MalformedInput`` when the
    file is malformed, or holds something else; ``InputOutputError`` when it cannot be read.
    """
    if any(name in tensors for name in NAMES) or not directory.has(FILE):
        return None
    weights = open_torch_file(directory.open(FILE))
    named = {_name(tensor): tensor for tensor in weights.tensors}
    if None in named or len(named) < len(weights.tensors) or NAMES[0] not in named:
        weights.file.close()
        found = ", ".join(list(weights.tensors)[:4]) or "nothing"
        expected, remedy = " and ".join(NAMES), "take it away if it does not belong to the checkpoint"
        raise MalformedInput(
            "not a projector", where=directory.path / FILE, found=found, expected=expected, remedy=remedy
        )
    renamed = {
        name: replace(weights.tensors[stored], spec=replace(weights.tensors[stored].spec, name=name))
        for name, stored in named.items()
        if name is not None
    }
    return replace(weights, tensors=renamed)


def _name(stored: str) -> str | None:
    """Return the model's name of a tensor of the projector."""
    return next((name for name in NAMES if f"model.{stored}".endswith(name.removeprefix("model"))), None)
