"""Whether a delta proves its base: the round trip, and what its violations suggest.

Enters: counts of elements, by tensor. Leaves: a verdict, in words and as a kind. Never: an element.

A delta that was computed as ``target - base`` in the dtype in which it is added again gives, wherever the sum lies within one
exponent step of the base, a difference that is exact (Sterbenz's lemma): there ``sum - base == delta`` holds without exception.
With another base it does not. Rates: measured on 20 million normal weights (docs/design.md, "The round trip").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from deltaweights.manifest.tally import Proof
from deltaweights.util.text import natural_key

LEAST_EVIDENCE = 100_000
"""Elements that must have moved before a missing violation says anything."""

MOST, SIZEABLE = 0.75, 1024
"""The share of a tensor's weights that must lie in the region, where it has so many of them or more: of a fine-tuning step 98 % do,
of a base with holes none, of a delta that is a model itself half."""


class Verdict(str, Enum):
    """What the counts say."""

    PROVED = "proved"
    NO_EVIDENCE = "no evidence"
    PARTIAL = "partial"
    VIOLATED = "violated"
    OTHER_ARITHMETIC = "another arithmetic"


@dataclass(frozen=True)
class Suspicion:
    """Up to which share of violations what is likely."""

    rate: float
    text: str


SUSPICIONS = (
    Suspicion(0.001, "a few weights of base or delta are damaged, or were edited"),
    Suspicion(0.025, "the base is a rounded copy (through bfloat16, say) or a lightly tuned sibling of the right one"),
    Suspicion(0.12, "the base is a sibling of the right one, fine-tuned from it, such as Vicuna for LLaMA"),
    Suspicion(0.8, "the base is an unrelated model of the same shape, such as LLaMA-2 for LLaMA-1"),
)
"""Measured: a bfloat16 round trip 1.7 %, a sibling 0.1 % away 1.8 %, one 2 % away 3.6 %, an unrelated model 29 %."""

OTHER = "the delta was computed in another arithmetic than it was added in"
"""Measured: 95 % where a difference was made in float32 and rounded to float16."""


def verdict(proofs: Mapping[str, Proof]) -> Verdict:
    """Return what the proofs of all tensors, by name, say of the base."""
    whole = sum(proofs.values(), Proof())
    if whole.violations:
        rate = whole.violations / whole.region
        return Verdict.OTHER_ARITHMETIC if rate > SUSPICIONS[-1].rate else Verdict.VIOLATED
    if whole.evidence < LEAST_EVIDENCE:
        return Verdict.NO_EVIDENCE
    return Verdict.PARTIAL if untested(proofs) else Verdict.PROVED


def untested(proofs: Mapping[str, Proof]) -> tuple[str, ...]:
    """Return the names of the sizeable tensors of which too few weights lie in the region for their silence to mean anything."""
    names = (
        name for name, proof in proofs.items() if proof.weights >= SIZEABLE and proof.region < MOST * proof.weights
    )
    return tuple(sorted(names, key=natural_key))


def suspicion(proof: Proof) -> str:
    """Return what the share of violations suggests."""
    rate = proof.violations / proof.region
    return next((suspect.text for suspect in SUSPICIONS if rate <= suspect.rate), OTHER)
