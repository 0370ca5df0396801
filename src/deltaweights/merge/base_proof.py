"""Whether a delta verifies its base: what the counts of the round trip say, and what its violations suggest.

A delta that was computed as ``target - base`` in the dtype in which it is added again gives, wherever the sum lies within one
exponent step of the base, a difference that is exact (Sterbenz's lemma): there ``sum - base == delta`` holds without exception.
With another base it does not. Rates: measured on 20 million normal weights (docs/design.md, "The round trip").
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.manifest.findings import Verdict
from deltaweights.manifest.proof_text import MIN_EVIDENCE
from deltaweights.manifest.tally import Proof
from deltaweights.util.text import natural_key

MIN_SHARE, SIZEABLE = 0.75, 1024
"""The share of weights that must lie in the region in tensors of ``SIZEABLE`` weights or more: of a fine-tuning step 98 % do, of a
base with holes none, of a merged model given as a delta half."""


LIKELY_CAUSES = (
    (0.001, "a few weights of base or delta are damaged, or were edited"),
    (0.025, "the base is a rounded copy (through bfloat16, say) or a lightly tuned sibling of the right one"),
    (0.12, "the base is a sibling of the right one, fine-tuned from it, such as Vicuna for LLaMA"),
    (0.8, "the base is an unrelated model of the same shape, such as LLaMA-2 for LLaMA-1"),
)
"""The highest rate of violations at which each cause is likely. Measured: a bfloat16 round trip 1.7 %, a sibling 0.1 % away 1.8 %,
one 2 % away 3.6 %, an unrelated model 29 %."""

WHOLE_REGION, WHOLE_RATE = 0.1, 0.4
"""Of a tensor that is stored whole, 0.15 (three times as large as the base's) to 0.68 of the weights lie in the region, and 0.45
and more of these are violations. With another base it is 0.98 and at most 0.29; with one that is nearly zero, hardly any."""

OTHER_CAUSE = "the delta was computed in another arithmetic than it was added in"
"""Measured: 95 % where a difference was made in float32 and rounded to float16."""


def verdict(proofs: Mapping[str, Proof]) -> Verdict:
    """Return what the counts of all tensors, by name, say of the base."""
    whole = sum(proofs.values(), Proof())
    if whole.violations:
        return Verdict.OTHER_ARITHMETIC if likely_cause(whole) == OTHER_CAUSE else Verdict.VIOLATED
    if whole.evidence < MIN_EVIDENCE:
        return Verdict.NO_EVIDENCE
    return Verdict.PARTIAL if untested(proofs) else Verdict.PROVED


def untested(proofs: Mapping[str, Proof]) -> tuple[str, ...]:
    """Return the names of sizeable tensors with too few weights in the region for the absence of violations to mean anything."""
    sizeable = {name: proof for name, proof in proofs.items() if proof.weights >= SIZEABLE}
    return tuple(sorted((n for n, p in sizeable.items() if p.region < MIN_SHARE * p.weights), key=natural_key))


def stored_whole(proofs: Mapping[str, Proof]) -> tuple[str, ...]:
    """Return the names of tensors that are whole in the delta, no difference: they alone violate, and all others prove the base."""
    found = {
        name
        for name, proof in proofs.items()
        if proof.weights >= SIZEABLE
        and WHOLE_REGION * proof.weights <= proof.region < MIN_SHARE * proof.weights
        and proof.violations >= WHOLE_RATE * proof.region
    }
    rest = {name: proof for name, proof in proofs.items() if name not in found}
    return tuple(sorted(found, key=natural_key)) if found and verdict(rest) is Verdict.PROVED else ()


def likely_cause(proof: Proof) -> str:
    """Return what the rate of violations suggests."""
    rate = proof.violations / proof.region
    return next((cause for highest, cause in LIKELY_CAUSES if rate <= highest), OTHER_CAUSE)
