"""Tensors that share one storage, as torch files have them: tied weights, slices and transposes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from deltaweights.checkpoint.tensors import LazyTensor


@dataclass(frozen=True)
class SharedStorage:
    """Tensors that share one storage.

    ``tied``: all of them are the same view of it, under several names; otherwise they are different views, such as slices or
    transposes. ``elements`` counts each element of the storage that they view once.
    """

    file: str
    tied: bool
    elements: int
    tensors: tuple[str, ...]


def shared_storage(tensors: list[LazyTensor]) -> SharedStorage:
    """Describe the storage that all of the tensors share."""
    tied = len({(tensor.storage, tensor.spec.dtype, tensor.spec.shape) for tensor in tensors}) == 1
    return SharedStorage(
        file=tensors[0].file,
        tied=tied,
        elements=distinct_elements(tensors),
        tensors=tuple(tensor.spec.name for tensor in tensors),
    )


def by_storage(tensors: Iterable[LazyTensor]) -> list[list[LazyTensor]]:
    """Return the tensors that have elements, in lists of those that share a storage."""
    # Empty tensors begin where the next one does in safetensors, and torch may put them all on one storage.
    storages: defaultdict[object, list[LazyTensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.spec.count:
            storages[tensor.storage.file, tensor.storage.key].append(tensor)
    return list(storages.values())


def distinct_elements(tensors: list[LazyTensor]) -> int:
    """Return how many elements of their one storage the tensors view."""
    if len(tensors) == 1:
        return tensors[0].spec.count
    by_dtype: defaultdict[str, set[_View]] = defaultdict(set)
    for tensor in tensors:
        by_dtype[tensor.spec.dtype].add(_view(tensor))
    total = 0
    for views in by_dtype.values():
        # Exact when no views overlap (the sum), or none has gaps (the union of their extents).
        covered = place = 0
        for view in sorted(views, key=lambda view: view.begin):
            covered += max(0, view.end - max(place, view.begin))
            place = max(place, view.end)
        total += min(covered, sum(view.count for view in views))
    return total


@dataclass(frozen=True)
class _View:
    """The elements of a storage that a tensor views, in any order: axes of (stride, size), contiguous ones merged."""

    begin: int
    axes: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return math.prod(size for _, size in self.axes)

    @property
    def end(self) -> int:
        return self.begin + sum(stride * (size - 1) for stride, size in self.axes) + 1


def _view(tensor: LazyTensor) -> _View:
    axes: list[tuple[int, int]] = []
    for stride, size in sorted(zip(tensor.storage.strides, tensor.spec.shape, strict=True)):
        if size == 1:
            continue
        if axes and axes[-1][0] * axes[-1][1] == stride:
            axes[-1] = (axes[-1][0], axes[-1][1] * size)
        else:
            axes.append((stride, size))
    return _View(tensor.storage.offset, tuple(axes))
