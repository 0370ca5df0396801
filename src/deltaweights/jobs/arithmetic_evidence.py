"""What the numbers of a delta say, by samples, of the arithmetic in which it was made: whether sums in another one prove anything.

A sum proves a base only where another base would have been rounded. In an arithmetic with more digits than the delta has, every
base passes: nothing is rounded.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.jobs.findings import ORIGINAL_DELTA
from deltaweights.jobs.sampled_pairs import EVIDENCE, SampledPair, kinds_of_pairs
from deltaweights.merge.base_proof import SIZEABLE
from deltaweights.merge.choices import DIGITS, TORCH_NAMES
from deltaweights.merge.rules import Matching
from deltaweights.recipes.weight_scale import ELEMENTS, SAMPLED, numbers_of
from deltaweights.report import Report

Element = tuple[float, float, float]
"""A number of the delta, what it is added to, and the base's next number, which belongs to another one."""


@dataclass(frozen=True, kw_only=True)
class ArithmeticEvidence:
    """``powerless`` says why sums in the compute dtype prove no base; ``rounded`` how the delta was rounded; empty where neither.

    ``contradicts``: the delta was not made in the compute dtype, or not stored in it. ``remedy`` is what to do. ``rounded`` is
    likely, not certain: it explains sums that do not prove the base.
    """

    powerless: str = ""
    contradicts: bool = False
    rounded: str = ""
    remedy: str = ""


def arithmetic_evidence(
    base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], matching: Matching, compute: str
) -> ArithmeticEvidence:
    """Return what samples say of sums in ``compute``, a dtype. Raises ``InputOutputError``."""
    pairs = [pairs[len(pairs) // 2] for pairs in kinds_of_pairs(base, delta, matching)]
    name = TORCH_NAMES[compute]
    narrow = _narrow(matching, compute)
    if narrow is not None:
        short = TORCH_NAMES.get(narrow, narrow)
        if _is_made_in(narrow, lambda: _elements(pairs), bases_differ=False):
            found = f"the delta was computed in {short}, not in {name}: there its sums are exact"
            return ArithmeticEvidence(powerless=found, contradicts=True, remedy=f"give --compute-dtype {short}")
        if any(m.base is not None and DIGITS.get(m.primary.dtype, 0) >= DIGITS[compute] for m in matching.matches):
            found = f"most of the delta is stored in {short}, the rest in {name}: sums of the former are exact in it"
            return ArithmeticEvidence(powerless=found)  # each was made in its own dtype, and is added so
        found = f"the delta is stored in {short}, and added in {name}: it was made in {short}, or rounded to it later"
        remedy = f"{ORIGINAL_DELTA}, or give --compute-dtype {short}"
        return ArithmeticEvidence(powerless=found, contradicts=True, remedy=remedy)
    for other in ("BF16", "F16"):
        if DIGITS[other] < DIGITS[compute] and _is_made_in(other, lambda: _elements(pairs), bases_differ=True):
            found = f"the delta was computed in {TORCH_NAMES[other]}, not in {name}: there its sums are exact"
            remedy = f"give --compute-dtype {TORCH_NAMES[other]}"
            return ArithmeticEvidence(powerless=found, contradicts=True, remedy=remedy)
    if compute == "F32" and _fits_any_base(_elements(pairs), compute):
        found = f"sums of these numbers are exact in {name}, whatever the base"
        return ArithmeticEvidence(powerless=found)
    for other in ("BF16", "F16"):
        if DIGITS[other] < DIGITS[compute] and _all_fit(other, _elements(pairs)):
            short = TORCH_NAMES[other]
            return ArithmeticEvidence(
                rounded=f"the delta's numbers were rounded through {short}", remedy=ORIGINAL_DELTA
            )
    return ArithmeticEvidence()


def warn_of_rounded_target(target: Checkpoint, matching: Matching, compute: str, report: Report) -> None:
    """Warn where a target has weights that ``compute``, the dtype in which its delta is made, does not hold, as samples tell."""
    matrices = [m.primary for m in matching.matches if len(m.primary.shape) == 2 and m.primary.count]
    for spec in matrices[:: max(1, len(matrices) // SAMPLED)][:SAMPLED]:
        if DIGITS[spec.dtype] <= DIGITS[compute] or compute == "F32":  # there is no wider one
            continue
        numbers = numbers_of(target.tensors[spec.name], 0, min(ELEMENTS, spec.count))
        if any(rounded(x, compute) != x for x in numbers if math.isfinite(x)):
            what = f"its {spec.dtype} weights are not numbers of {TORCH_NAMES[compute]}, and come back rounded to it"
            wider = "float32" if DIGITS[spec.dtype] > DIGITS["F16"] else TORCH_NAMES[spec.dtype]
            report.warn(f"{target.path}: {what}; give --compute-dtype {wider} to keep them")
            return


def _narrow(matching: Matching, compute: str) -> str | None:
    """Return the dtype of most of what is added, if it has fewer digits than the sums."""
    counts = Counter[str]()
    for match in matching.matches:
        if match.base is not None:
            counts[match.primary.dtype] += match.base.count
    dtype, most = counts.most_common(1)[0] if counts else ("F64", 0)
    return dtype if DIGITS[dtype] < DIGITS[compute] and 2 * most > counts.total() and most >= SIZEABLE else None


def _elements(pairs: Iterable[SampledPair]) -> Iterator[Element]:
    """Yield sampled elements that the delta moves."""
    for pair in pairs:
        for start in pair.places:
            of_base, of_delta = pair.numbers(start)
            shifted = (*of_base[1:], of_base[0])
            yield from (element for element in zip(of_delta, of_base, shifted, strict=True) if element[0])


def _is_made_in(dtype: str, elements: Callable[[], Iterator[Element]], *, bases_differ: bool) -> bool:
    """Return whether all sums are exact in ``dtype``, and ``bases_differ``: the base has numbers that it has not.

    The first sum that is not exact ends it: mostly one of the first few.
    """
    moved, differs = 0, not bases_differ
    for delta, base, _ in elements():
        of_base = rounded(base, dtype)
        total = rounded(of_base + delta, dtype)
        if not in_region(total, of_base):
            continue
        if total - of_base != delta:
            return False
        moved += total != of_base
        differs = differs or of_base != base
    return moved >= EVIDENCE and differs


def _fits_any_base(elements: Iterator[Element], dtype: str) -> bool:
    """Return whether sums with another number of the base are exact, too."""
    moved = 0
    for delta, _, other in elements:
        total = rounded(other + delta, dtype)
        if not in_region(total, other):
            continue
        if total - other != delta:
            return False
        moved += 1
    return moved >= EVIDENCE


def _all_fit(dtype: str, elements: Iterator[Element]) -> bool:
    """Return whether every number of the delta is one of ``dtype``."""
    moved = 0
    for delta, _, _ in elements:
        if rounded(delta, dtype) != delta:
            return False
        moved += 1
    return moved >= EVIDENCE


def in_region(total: float, base: float) -> bool:
    """Return whether the difference of the two is exact, by Sterbenz's lemma."""
    return base != 0 and 0.5 <= total / base <= 2


def rounded(number: float, dtype: str) -> float:
    """Return the number of ``dtype`` that is nearest, the even one of two; infinite where it is too large."""
    try:
        if dtype != "BF16":
            code = {"F16": "<e", "F32": "<f"}[dtype]
            return float(struct.unpack(code, struct.pack(code, number))[0])
        (bits,) = struct.unpack("<I", struct.pack("<f", number))
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
    if number - number != 0:  # not finite
        return number
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])
