"""Whether a delta verifies its base: what the counts of the round trip say, and what its violations suggest.

A delta that was computed as ``target - base`` in the dtype in which it is added again gives, wherever the sum lies within one
exponent step of the base, a difference that is exact (Sterbenz's lemma): there ``sum - base == delta`` holds without exception.
With another base it does not. Rates: measured on 20 million normal weights (docs/design.md, "The round trip").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from deltaweights.manifest.findings import Verdict
from deltaweights.manifest.proof_text import MIN_EVIDENCE
from deltaweights.manifest.tally import Proof
from deltaweights.merge.choices import DIGITS
from deltaweights.util.text import natural_key

if TYPE_CHECKING:
    from deltaweights.merge.rules import Match

MIN_SHARE, SIZEABLE = 0.75, 1024
"""The share of weights that must lie in the region in tensors of ``SIZEABLE`` weights or more: of a fine-tuning step 98 % do, of a
base with holes none, of a merged model given as a delta half."""


DELTA_CHANGED = "the delta was changed since it was made, as by scaling or averaging; or the base is another model"

LIKELY_CAUSES = (
    (0.001, "a few weights of base or delta are damaged, or were edited"),
    (0.025, "the base is a rounded copy (through bfloat16, say) or a lightly tuned sibling of the right one"),
    (0.12, "the base is a sibling of the right one, fine-tuned from it, such as Vicuna for LLaMA"),
    (0.41, "the base is an unrelated model of the same shape, such as LLaMA-2 for LLaMA-1"),
    (0.8, DELTA_CHANGED),
)
"""The highest rate of violations at which each cause is likely. Measured: a bfloat16 round trip 1.7 %, a sibling 0.1 % away 1.8 %,
one 2 % away 3.6 %, an unrelated model 29 % (39 % under a delta 20 times as large as usual), the right one under a delta that was
halved, or averaged with another one of its base, 43 to 53 %."""

WHOLE_REGION, WHOLE_RATE = 0.1, 0.4
"""Of a tensor that is stored whole, 0.15 (three times as large as the base's) to 0.68 of the weights lie in the region, and 0.45
and more of these are violations. With another base it is 0.98 and at most 0.29; with one that is nearly zero, hardly any."""

OTHER_CAUSE = "the delta was computed in another arithmetic than it was added in"
"""Measured: 95 % where a difference was made in float32 and rounded to float16."""


WIDER = "these tensors were computed in the wider dtype that they are stored in (--compute-dtype float32)"
"""Why sums of some tensors fail where the others prove the base."""

FEW = 2
"""Tensors that hold all violations where rather they are wrong than the base."""

ROTARY = re.compile(r"\.self_attn\.[qk]_proj\.weight$")


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


def wider_tensors(matches: Iterable[Match], compute: str) -> frozenset[str]:
    """Return the names of tensors that are added in a dtype with fewer digits than the delta stores them in.

    They say nothing of the base: none where all are so, for then the delta was made in another arithmetic, or is only stored so.
    """
    added = [match for match in matches if match.base is not None]
    found = frozenset(match.name for match in added if DIGITS.get(match.primary.dtype, 0) > DIGITS[compute])
    return found if len(found) < len(added) else frozenset()


def local_cause(violated: Collection[str], proof: Proof) -> str | None:
    """Return what is likely where all violations are in these tensors, and another base would have them in nearly all."""
    if len(violated) > 1 and all(ROTARY.search(name) for name in violated):
        return "the rows of q_proj and k_proj are in another order in one of the two: Meta's, not Hugging Face's"
    if 0 < len(violated) <= FEW and likely_cause(proof) not in {LIKELY_CAUSES[0][1], OTHER_CAUSE}:
        return "only there base or delta is damaged, was edited, or is of another model"
    return None


def likely_cause(proof: Proof) -> str:
    """Return what the rate of violations suggests."""
    rate = proof.violations / proof.region
    return next((cause for highest, cause in LIKELY_CAUSES if rate <= highest), OTHER_CAUSE)
