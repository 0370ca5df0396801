"""The bytes around the tensors of a file, by container."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.merge.choices import TORCH
from deltaweights.merge.shards import safetensors_header
from deltaweights.merge.torch_frame import TorchFrame


class Frame(Protocol):
    """The frame of one file: ``size`` is the whole file's in bytes, ``offsets`` are those of the tensors in it."""

    size: int
    offsets: tuple[int, ...]
    needs_crcs: bool

    def bytes_before(self, index: int, crcs: Sequence[int]) -> bytes:
        """Return the bytes before tensor ``index``, or at the end; ``crcs`` are those of the tensors before it, if needed."""


class SafetensorsFrame:
    """The frame of a safetensors file: a header, and nothing between or behind the tensors."""

    needs_crcs = False

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        *offsets, self.size = accumulate((spec.nbytes for spec in specs), initial=len(safetensors_header(specs)))
        self.offsets = tuple(offsets)

    def bytes_before(self, index: int, crcs: Sequence[int]) -> bytes:  # noqa: ARG002  (the other container's)
        return b"" if index else safetensors_header(self._specs)  # not kept: it may have megabytes


def frame_of(specs: Sequence[TensorSpec], file: str, container: str) -> Frame:
    """Return the frame of ``file``, which holds ``specs`` in this order."""
    return TorchFrame(specs, file.rpartition(".")[0]) if container == TORCH else SafetensorsFrame(specs)
