"""Sizes as people write and read them: ``GB`` is 10^9 bytes, ``GiB`` is 2^30."""

from __future__ import annotations

import re
from decimal import Decimal

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import UsageError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


LEAST_BARE = 10**6
"""The least number of bytes that text may say without a unit: who writes ``5`` means gigabytes."""


def parse_size(text: str | int, what: str) -> int:
    """Return the bytes in ``text``, the value of ``what``: ``5GB``, ``0.2 mb``, ``512MiB``; an ``int`` counts bytes.

    What huggingface_hub reads is read in the same way: decimals, spaces, and units without regard to case.

    Raises ``UsageError``, also for text that is a number below ``LEAST_BARE`` without a unit.
    """
    parts = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})\s*([A-Za-z]*)", str(text).strip())
    number, unit = (Decimal(parts[1]), parts[2].upper()) if parts else (Decimal(0), "")
    if parts and number and isinstance(text, str) and not unit and number < LEAST_BARE:
        expected = "a unit: B, KB, MB, GB, KiB, MiB or GiB"
        remedy = f"write {parts[1]}GB if you mean gigabytes, {parts[1]}B if you mean bytes"
        raise UsageError(f"{what} has no unit", found=text, expected=expected, remedy=remedy, code=ErrorCode.NOT_A_SIZE)
    size = int(number * UNITS.get(unit, 0))
    if size < 1:
        expected = "a number above 0 with B, KB, MB, GB, KiB, MiB or GiB"
        letter = parts is not None and number and unit and f"{unit}B" in UNITS
        remedy = f"write {str(text).strip()}B" if letter else ""
        raise UsageError(
            f"{what} is not a size", found=text, expected=expected, remedy=remedy or None, code=ErrorCode.NOT_A_SIZE
        )
    return size


def human_bytes(count: float) -> str:
    """Return ``count`` bytes with three digits and a decimal unit, such as ``13.5 GB``."""
    if count == 1:
        return "1 byte"
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:  # more would be rounded to 1000
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def human_seconds(seconds: float) -> str:
    """Return ``seconds`` with one digit after the point; a time that this would call zero is ``less than 0.1 s``."""
    return f"{seconds:.1f} s" if seconds >= 0.05 else "less than 0.1 s"
