"""Two checkpoints to compare, and reference figures by torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from deltaweights import apply_delta
from deltaweights.diff.compare import DifferingTensor
from deltaweights.report import Report
from tests.support.pairs import base_tensors, make_pair

BASE = base_tensors(layers=1, vocabulary=8, hidden=8)
BUFFER = "model.layers.0.self_attn.rotary_emb.inv_freq"
NORM = "model.norm.weight"

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers that hold the bits of an element of so many bytes."""


Value = TypeVar("Value")


class Listener(Report):
    """Keeps what is said, and the bytes that are announced."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.totals: dict[str, int] = {}

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.said.append(text)

    def begin(self, doing: str, total: int) -> None:
        """Keep what is announced."""
        self.totals[doing] = total


def only(found: tuple[Value, ...]) -> Value:
    """Return the one thing that was found."""
    (one,) = found
    return one


def changed(tensor: torch.Tensor, index: int, value: float) -> torch.Tensor:
    """Return a copy with one element, counted in row-major order, replaced."""
    tensor = tensor.clone()
    tensor.view(-1)[index] = value
    return tensor


def flipped(tensor: torch.Tensor, index: int, bit: int = 0) -> torch.Tensor:
    """Return a copy with one bit of one element, counted in row-major order, the other way round."""
    tensor = tensor.clone()
    tensor.view(WORDS[tensor.element_size()]).view(-1)[index] ^= 1 << bit
    return tensor


def reference(one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """Return the figures of two finite tensors of one dtype, by torch, in float64, whole."""
    words = [tensor.contiguous().view(WORDS[tensor.element_size()]) for tensor in (one, other)]
    apart = one.double() - other.double()
    bits = (words[0] ^ words[1]).contiguous().view(torch.uint8)
    return {
        "elements": int((words[0] != words[1]).sum()),
        "bits": sum(int(((bits >> bit) & 1).sum()) for bit in range(8)),
        "max_abs": float(apart.abs().max()),
        "relative_norm": pytest.approx(float(apart.norm() / one.double().norm()), rel=1e-12),
        "nonfinite": 0,
    }


def figures(tensor: DifferingTensor) -> dict[str, Any]:
    """Return the figures of a differing tensor by their names."""
    return {key: value for key, value in asdict(tensor).items() if key not in {"name", "shape", "dtypes"}}


FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def merge_three_times(folder: Path) -> Path:
    """Merge a pair into ``one``, in other shards into ``other``, and in another dtype into ``bfloat16``; return the folder."""
    pair = make_pair(folder)
    apply_delta(*pair, folder / "one")
    apply_delta(*pair, folder / "other", max_shard_size="20KB")
    apply_delta(*pair, folder / "bfloat16", dtype="bfloat16")
    return folder
