"""Checkpoints of headers alone, to test rules and plans, which read no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.tensors import LazyTensor, Storage, TensorSpec

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

PROJECTOR, PROJECTOR_BIAS = "model.mm_projector.weight", "model.mm_projector.bias"


@dataclass(frozen=True)
class NoBytes:
    """The source of tensors that must not be read."""

    def read_into(self, out: memoryview, start: int) -> None:
        """Fail."""
        raise AssertionError(f"rules and plan read no weights, but {len(out)} bytes from {start} were asked for")


Shapes = dict[str, tuple[int, ...]]


def stored(key: str) -> Storage:
    """Return the storage named ``key``, without strides, which the rules do not use."""
    return Storage("x.bin", key, 0, ())


def checkpoint(
    file: str, shapes: Shapes, dtype: str = "F16", storages: dict[str, str] | None = None
) -> dict[str, LazyTensor]:
    """Return a checkpoint of one file; ``storages`` names the storage of tensors that do not have one of their own."""
    return {
        name: LazyTensor(
            TensorSpec(name, dtype, shape), NoBytes(), Path(file), stored((storages or {}).get(name, name))
        )
        for name, shape in shapes.items()
    }


def base_of(shapes: Shapes, dtype: str = "F16", storages: dict[str, str] | None = None) -> dict[str, LazyTensor]:
    return checkpoint("base.bin", shapes, dtype, storages)


def delta_of(shapes: Shapes, dtype: str = "F16") -> dict[str, LazyTensor]:
    return checkpoint("delta.bin", shapes, dtype)


def llama(rows: int = 32000, hidden: int = 4096, layers: int = 2) -> Shapes:
    """Return names and shapes of a LLaMA, with two kinds of tensors per layer."""
    shapes: Shapes = {EMBEDDING: (rows, hidden), "model.norm.weight": (hidden,), HEAD: (rows, hidden)}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = (64,)
    return shapes
