"""The projector in a file beside a delta's shards: LLaVA v0's ``mm_projector.bin``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.tensors import LazyTensor, WeightsFile
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file

FILE = "mm_projector.bin"
NAMES = ("model.mm_projector.weight", "model.mm_projector.bias")


def open_projector(directory: Directory, tensors: Mapping[str, LazyTensor]) -> WeightsFile | None:
    """Open the projector beside the shards, under its names in the model; None if there is none, or ``tensors`` contain one.

    In the file, anything may precede ``mm_projector`` in the names. Raises ``MalformedInput``, ``InputOutputError``.
    """
    if any(name in tensors for name in NAMES) or not directory.has(FILE):
        return None
    weights = open_torch_file(directory.open(FILE))
    renamed: dict[str, LazyTensor] = {}
    for stored, tensor in weights.tensors.items():
        for name in NAMES:
            if f"model.{stored}".endswith(name.removeprefix("model")):
                renamed[name] = replace(tensor, spec=replace(tensor.spec, name=name))
    if len(renamed) < len(weights.tensors) or NAMES[0] not in renamed:
        weights.file.close()
        found = ", ".join(list(weights.tensors)[:4]) or "nothing"
        malformed = MalformedAt(directory.path / FILE, "remove it if it does not belong to the checkpoint")
        raise malformed("not a projector", found, " and ".join(NAMES))
    return replace(weights, tensors=renamed)
