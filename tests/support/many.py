"""Checkpoints of many tensors, or of tensors with long names, written without a library: they take seconds, not minutes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.merge.shards import safetensors_header

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")


def names_of(count: int, length: int = 0) -> list[str]:
    """Return names as layers have them, of at least ``length`` characters."""
    plain = (f"model.layers.{number // len(KINDS)}.{KINDS[number % len(KINDS)]}" for number in range(count))
    return [f"{name}.{'x' * (length - len(name) - 8)}.weight" for name in plain]


def make_many(folder: Path, names: Sequence[str], *, files: int = 1, elements: int = 16) -> tuple[Path, Path]:
    """Write a base and a delta, in so many files each, and return them; the delta is the difference to a tuned base."""
    order = np.random.default_rng(0)
    base = (order.standard_normal((len(names), elements)) * 0.02).astype("<f2")
    step = order.standard_normal(base.shape) * 0.0004
    delta = (base.astype("<f4") + step).astype("<f2") - base
    for role, weights in (("base", base), ("delta", delta)):
        (folder / role).mkdir(parents=True)
        weight_map: dict[str, str] = {}
        for number, rows in enumerate(np.array_split(np.arange(len(names)), files), start=1):
            name = "model.safetensors" if files == 1 else f"model-{number:05d}-of-{files:05d}.safetensors"
            header = safetensors_header([TensorSpec(names[row], "F16", (elements,)) for row in rows])
            (folder / role / name).write_bytes(header + weights[rows].tobytes())
            weight_map |= {names[row]: name for row in rows}
        if files > 1:
            index = json.dumps({"metadata": {}, "weight_map": weight_map})
            (folder / role / "model.safetensors.index.json").write_text(index)
    return folder / "base", folder / "delta"
