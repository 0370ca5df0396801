"""What is counted of the elements of a block, or, added up, of a tensor.

Enters: counts. Leaves: their sums, and the same as JSON in a fragment. Never: an element.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from deltaweights.util.text import Json


@dataclass(frozen=True, slots=True)
class Proof:
    """What elements that were added say of the base (docs/design.md, "The round trip").

    ``weights`` counts them, ``region`` those whose sum lies within one exponent step of the base, where ``sum - base == delta``
    must hold; ``violations`` those of the region where it does not, ``evidence`` those whose sum is not the base itself, so that
    they say something.
    """

    weights: int = 0
    region: int = 0
    violations: int = 0
    evidence: int = 0

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """All of them, in the order in which they stand here."""
        return self.weights, self.region, self.violations, self.evidence

    def __add__(self, other: Proof) -> Proof:
        return Proof(
            self.weights + other.weights,
            self.region + other.region,
            self.violations + other.violations,
            self.evidence + other.evidence,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of elements.

    ``nonfinite``, ``nonfinite_base`` and ``nonfinite_lead`` are NaN or infinite, in the result and in what it was made of;
    ``overflow`` those of the result that both inputs give finite numbers for. ``inexact`` do not come back when a delta that is
    made is applied, None when nobody tried. ``proof`` is None where nothing was added, or nobody looked. ``sum`` is that of the
    result's elements in float64, None unless it was asked for.
    """

    nonfinite: int = 0
    nonfinite_base: int = 0
    nonfinite_lead: int = 0
    overflow: int = 0
    inexact: int | None = None
    proof: Proof | None = None
    sum: float | None = None

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.nonfinite + other.nonfinite,
            self.nonfinite_base + other.nonfinite_base,
            self.nonfinite_lead + other.nonfinite_lead,
            self.overflow + other.overflow,
            _sum(self.inexact, other.inexact),
            _sum(self.proof, other.proof),
            _sum(self.sum, other.sum),
        )

    def document(self) -> dict[str, Json]:
        """Return the counts as JSON: ``nonfinite`` always, the rest where there is something to say."""
        counts = {
            "nonfinite_base": self.nonfinite_base,
            "nonfinite_lead": self.nonfinite_lead,
            "overflow": self.overflow,
        }
        proof = None if self.proof is None else list(self.proof.counts)
        asked = {"inexact": self.inexact, "proof": proof, "sum": self.sum}
        return {
            "nonfinite": self.nonfinite,
            **{name: count for name, count in counts.items() if count},
            **{name: value for name, value in asked.items() if value is not None},
        }

    @classmethod
    def of(cls, document: Mapping[str, Json]) -> Tally:
        """Return what ``document`` gave. Raises ``TypeError`` for names that it does not give, and values that are no counts."""
        values = dict(document)
        proof, total = values.pop("proof", None), values.pop("sum", None)
        counts = [*values.values(), *([] if proof is None else proof)]
        if any(type(count) is not int for count in counts) or type(total) not in {type(None), int, float}:
            raise TypeError("counts that are none")
        return cls(**values, proof=None if proof is None else Proof(*proof), sum=total)


T = TypeVar("T", int, float, Proof)


def _sum(one: T | None, other: T | None) -> T | None:
    return other if one is None else one if other is None else one + other
