"""Read ``params.json``, which describes Meta's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.layout_names import PARAMS
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.small_files import json_object
from deltaweights.errors import InputOutputError

MAX_PARAMS = 64 * 1024

MAX_SIZE = 1_000_000
"""Larger than any size of a LLaMA; the product of two fits into 64 bits."""

MAX_LAYERS = 10_000
"""Each has nine tensors, and a checkpoint at most 100,000."""


@dataclass(frozen=True)
class Params:
    """The sizes of a LLaMA. ``vocab_size`` and ``hidden_dim`` are None where only the tensors show them."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    norm_eps: float
    vocab_size: int | None
    hidden_dim: int | None

    @property
    def head_dim(self) -> int:
        """Rows of one attention head."""
        return self.dim // self.n_heads


def read_params(directory: Directory) -> Params:
    """Read ``params.json``. Raises ``InputOutputError`` when it is missing, ``MalformedInput`` when it is not what Meta writes."""
    where = directory.path / PARAMS
    if not directory.has(PARAMS):
        remedy = "it comes with the weights, and says how many heads there are: put it beside them"
        raise InputOutputError("is missing beside Meta's weights", where=where, remedy=remedy)
    document = json_object(directory.read(PARAMS, MAX_PARAMS), where)
    malformed = MalformedAt(where, "fetch it again")

    def size(key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        value = document.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            found = "nothing" if value is None else value
            raise malformed(f"{key} is not usable", found, f"a whole number from 1 to {most}")
        return value

    dim, n_heads, epsilon = size("dim"), size("n_heads"), document.get("norm_eps")
    n_kv_heads = size("n_kv_heads", n_heads)
    if dim % (2 * n_heads) or n_heads % n_kv_heads:
        expected = f"an even part of dim {dim}, and a multiple of n_kv_heads {n_kv_heads}"
        raise malformed("n_heads is not usable", n_heads, expected)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise malformed("norm_eps is not usable", "nothing" if epsilon is None else epsilon, "a number between 0 and 1")
    vocabulary = None if document.get("vocab_size", -1) == -1 else size("vocab_size")
    hidden = None
    if "multiple_of" in document:
        factor = document.get("ffn_dim_multiplier", 1)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < MAX_SIZE:
            found = "nothing" if factor is None else factor
            raise malformed("ffn_dim_multiplier is not usable", found, "a number above 0")
        # ``FeedForward`` of Meta's llama/model.py, called with 4 * dim.
        unit = size("multiple_of")
        hidden = unit * math.ceil(int(factor * int(2 * (4 * dim) / 3)) / unit)
    return Params(dim, size("n_layers", most=MAX_LAYERS), n_heads, n_kv_heads, epsilon, vocabulary, hidden)
