"""Floating-point formats as bits: what is NaN, what is infinite, and which NaN is written.

Enters: bytes of numbers. Leaves: the same with every computed NaN as the one quiet NaN, and a count. Never: arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deltaweights.merge.blocks import Run


@dataclass(frozen=True)
class Format:
    """An IEEE 754 layout: bytes per number, the bits of infinity, and those of the quiet NaN that we write."""

    item_size: int
    infinity: int
    quiet_nan: int


FORMATS = {
    "F16": Format(2, 0x7C00, 0x7E00),
    "BF16": Format(2, 0x7F80, 0x7FC0),
    "F32": Format(4, 0x7F80_0000, 0x7FC0_0000),
    "F64": Format(8, 0x7FF0_0000_0000_0000, 0x7FF8_0000_0000_0000),
}

ITEM_SIZES = {dtype: form.item_size for dtype, form in FORMATS.items()}


def settle_nans(data: memoryview, dtype: str, runs: Iterable[Run]) -> int:
    """Make every NaN within ``runs`` of the numbers in ``data`` the quiet one; return how many numbers are NaN or infinite."""
    import numpy as np  # noqa: PLC0415  (a tenth of a second, and few checkpoints hold such numbers)

    form = FORMATS[dtype]
    words = np.frombuffer(data, f"<u{form.item_size}")
    magnitudes = words & ((1 << (8 * form.item_size - 1)) - 1)
    for run in runs:
        words[run.start : run.stop][magnitudes[run.start : run.stop] > form.infinity] = form.quiet_nan
    return int((magnitudes >= form.infinity).sum())


def count_different(one: memoryview, other: memoryview, dtype: str) -> int:
    """Return how many numbers of ``dtype`` in ``one`` and ``other`` differ in any bit."""
    import numpy as np  # noqa: PLC0415  (see above)

    words = [np.frombuffer(data, f"<u{FORMATS[dtype].item_size}") for data in (one, other)]
    return int(np.count_nonzero(words[0] != words[1]))


def copy_nans(source: memoryview, source_dtype: str, out: memoryview, dtype: str) -> None:
    """Write the quiet NaN to ``out`` wherever ``source`` has a NaN: some ways of rounding make another number of it."""
    import numpy as np  # noqa: PLC0415  (see above)

    form, target = FORMATS[source_dtype], FORMATS[dtype]
    words = np.frombuffer(source, f"<u{form.item_size}")
    magnitudes = words & ((1 << (8 * form.item_size - 1)) - 1)
    np.frombuffer(out, f"<u{target.item_size}")[magnitudes > form.infinity] = target.quiet_nan
