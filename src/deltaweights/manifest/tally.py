"""Counts of the elements of a block or, added up, of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import TypeVar

from deltaweights.util.text import Json


@dataclass(frozen=True, slots=True)
class Proof:
    """What the elements of a sum say about the base (docs/design.md, "The round trip").

    ``weights`` counts them. ``region`` counts those whose sum lies within one exponent step of the base, where
    ``sum - base == delta`` must hold; ``violations`` those of the region where it does not hold; ``evidence`` those of the
    region whose sum differs from the base, so that they can tell a right base from a wrong one.
    """

    weights: int = 0
    region: int = 0
    violations: int = 0
    evidence: int = 0

    def __add__(self, other: Proof) -> Proof:
        return Proof(
            weights=self.weights + other.weights,
            region=self.region + other.region,
            violations=self.violations + other.violations,
            evidence=self.evidence + other.evidence,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of elements.

    ``nonfinite``, ``nonfinite_base`` and ``nonfinite_lead`` are NaN or infinite, in the result and in its inputs; ``overflow``
    are not finite in the result, but finite in both inputs. ``inexact`` do not come back when the delta that is made is applied;
    None when that was not tried. ``not_restored`` are then other than in the target; None also where the target has the compute
    dtype, and both are the same. ``proof`` is None where nothing was added, or the base was not checked. ``sum`` is the sum of
    the result's elements in float64; None when it was not asked for.
    """

    nonfinite: int = 0
    nonfinite_base: int = 0
    nonfinite_lead: int = 0
    overflow: int = 0
    inexact: int | None = None
    proof: Proof | None = None
    sum: float | None = None
    not_restored: int | None = None

    def with_proof(self, proof: Proof | None) -> Tally:
        """Return the same counts with ``proof``; a few times as fast as ``dataclasses.replace``, once a block."""
        counts = self.nonfinite, self.nonfinite_base, self.nonfinite_lead, self.overflow, self.inexact
        return Tally(*counts, proof, self.sum, self.not_restored)

    def __add__(self, other: Tally) -> Tally:
        return Tally(  # field by field: this runs once a block, and dataclasses.astuple costs 20 times as much
            nonfinite=self.nonfinite + other.nonfinite,
            nonfinite_base=self.nonfinite_base + other.nonfinite_base,
            nonfinite_lead=self.nonfinite_lead + other.nonfinite_lead,
            overflow=self.overflow + other.overflow,
            inexact=_add(self.inexact, other.inexact),
            proof=_add(self.proof, other.proof),
            sum=_add(self.sum, other.sum),
            not_restored=_add(self.not_restored, other.not_restored),
        )

    def document(self) -> dict[str, Json]:
        """Return the counts as JSON: ``nonfinite`` always, the other counts unless 0, the rest unless None."""
        rare = {key: getattr(self, key) for key in ("nonfinite_base", "nonfinite_lead", "overflow")}
        proof = None if self.proof is None else list(astuple(self.proof))
        optional = {"inexact": self.inexact, "not_restored": self.not_restored, "proof": proof, "sum": self.sum}
        return {
            "nonfinite": self.nonfinite,
            **{key: count for key, count in rare.items() if count},
            **{key: value for key, value in optional.items() if value is not None},
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Json]) -> Tally:
        """Reverse ``document``. Raises ``TypeError`` for unknown keys, and for values that are not counts."""
        values = dict(document)
        proof, total = values.pop("proof", None), values.pop("sum", None)
        counts = [*values.values(), *([] if proof is None else proof)]
        if any(type(count) is not int for count in counts) or type(total) not in {type(None), int, float}:
            raise TypeError("not a count")
        return cls(**values, proof=None if proof is None else Proof(*proof), sum=total)


T = TypeVar("T", int, float, Proof)


def _add(one: T | None, other: T | None) -> T | None:
    return other if one is None else one if other is None else one + other
