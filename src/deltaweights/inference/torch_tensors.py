"""Tensors of torch that share the bytes of merged ones."""

from __future__ import annotations

from typing import Any

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import UsageError
from deltaweights.merge.choices import TORCH_NAMES


def require_torch(what: str) -> None:
    """Raise ``UsageError`` where torch is not installed."""
    try:
        import torch  # noqa: F401, PLC0415  (over a second)
    except ModuleNotFoundError:
        raise UsageError(f"{what} needs torch", remedy="pip install torch", code=ErrorCode.MISSING_PACKAGE) from None


def as_tensor(data: bytearray, spec: TensorSpec) -> Any:
    """Return a tensor on the CPU that shares the bytes ``data``."""
    import torch  # noqa: PLC0415

    dtype = getattr(torch, TORCH_NAMES[spec.dtype])
    return torch.frombuffer(data, dtype=dtype).reshape(spec.shape) if data else torch.empty(spec.shape, dtype=dtype)
