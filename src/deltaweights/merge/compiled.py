"""What ``kernels.c`` computes, where the library was built: in one pass what numpy needs a dozen for.

It is optional: the wheel for any platform has none. ``merge.self_test`` compares its results with known ones before a run.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

from deltaweights.manifest.tally import Proof
from deltaweights.merge.floats import FORMATS

LIBRARY = Path(__file__).with_name("kernels.so")
WORDS: dict[int, type[ctypes.c_uint16] | type[ctypes.c_uint32]] = {2: ctypes.c_uint16, 4: ctypes.c_uint32}


class CompiledKernels:
    """The library's functions for numbers of one dtype. Arrays are given by their addresses; the interpreter's lock is released."""

    def __init__(self, library: ctypes.CDLL, dtype: str) -> None:
        form = FORMATS[dtype]
        word, arrays = WORDS[form.item_size], [ctypes.c_void_p] * 4
        self._infinity, self._step = form.infinity, form.exponent_step
        # Taken by index, each is a new object: the functions of the library are shared by all dtypes and threads.
        self._round_trip = library[f"round_trip_{form.item_size * 8}"]
        self._round_trip.argtypes = [*arrays, ctypes.c_size_t, word, word, ctypes.c_void_p]
        self._round_trip.restype = None
        self._nonfinite = library[f"nonfinite_{form.item_size * 8}"]
        self._nonfinite.argtypes = [ctypes.c_void_p, ctypes.c_size_t, word]
        self._nonfinite.restype = ctypes.c_uint64
        self.adds = dtype == "F16" and hasattr(library, "add_16") and library["can_add_16"]() != 0
        """Whether the library adds numbers of this dtype on this processor."""
        if self.adds:
            self._add = library["add_16"]
            self._add.argtypes, self._add.restype = [*arrays[:3], ctypes.c_size_t, ctypes.c_void_p], None

    def round_trip(self, base: int, delta: int, total: int, difference: int, count: int) -> Proof:
        """Count ``count`` elements as ``floats.RoundTripCounter`` does."""
        counts = (ctypes.c_uint64 * 3)()
        self._round_trip(base, delta, total, difference, count, self._infinity, self._step, counts)
        return Proof(count, *counts)

    def add(self, base: int, delta: int, total: int, count: int) -> tuple[Proof, bool]:
        """Write the sums of ``count`` elements to ``total``, and return their round trip's counts, and whether all are finite."""
        counts = (ctypes.c_uint64 * 4)()
        self._add(base, delta, total, count, counts)
        region, violations, evidence, nonfinite = counts
        return Proof(count, region, violations, evidence), nonfinite == 0

    def nonfinite(self, numbers: int, count: int) -> int:
        """Return how many of ``count`` elements are NaN or infinite."""
        return int(self._nonfinite(numbers, count, self._infinity))


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError:  # it was not built, or was for another machine
        return None


def compiled_kernels(dtype: str) -> CompiledKernels | None:
    """Return the counts for numbers of ``dtype``; None where there are none."""
    library = _library() if FORMATS[dtype].item_size in WORDS else None
    return None if library is None else CompiledKernels(library, dtype)
