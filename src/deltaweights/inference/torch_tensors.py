"""Tensors of torch that share the bytes of merged ones."""

from __future__ import annotations

from typing import Any

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.merge.choices import TORCH_NAMES


def as_tensor(data: bytearray, spec: TensorSpec) -> Any:
    """Return a tensor on the CPU that shares the bytes ``data``."""
    import torch  # noqa: PLC0415

    dtype = getattr(torch, TORCH_NAMES[spec.dtype])
    return torch.frombuffer(data, dtype=dtype).reshape(spec.shape) if data else torch.empty(spec.shape, dtype=dtype)
