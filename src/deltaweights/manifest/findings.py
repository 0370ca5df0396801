"""What was found in the numbers of a result and its inputs, as the manifest records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltaweights.util.text import Json


@dataclass(frozen=True, kw_only=True)
class ProofRecord:
    """What all sums say about the base (see ``Proof``); ``tensors`` counts violations, ``verdict`` is a value of ``Verdict``."""

    weights: int
    region: int
    violations: int
    evidence: int
    verdict: str
    tensors: dict[str, int]
    untested: tuple[str, ...] = ()  # tensors with too few weights in the region to tell
    whole: tuple[str, ...] = ()  # tensors that are stored whole in the delta, not as a difference
    allowed: bool = False  # the user accepted what would have been refused

    def document(self) -> dict[str, Json]:
        """Return the record as JSON; ``untested``, ``whole`` and ``allowed`` only where they are not empty or false."""
        optional = {"untested": list(self.untested), "whole": list(self.whole), "allowed": self.allowed}
        return {
            **{key: value for key, value in vars(self).items() if key not in optional},
            **{key: value for key, value in optional.items() if value},
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Json]) -> ProofRecord:
        """Read a record. Raises ``ValueError``, ``KeyError`` or ``TypeError`` when it is malformed."""
        return cls(
            **{key: check_size(document[key]) for key in ("weights", "region", "violations", "evidence")},
            verdict=str(document["verdict"]),
            tensors=check_sizes(document["tensors"]),
            untested=tuple(map(str, document.get("untested", ()))),
            whole=tuple(map(str, document.get("whole", ()))),
            allowed=document.get("allowed") is True,
        )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Counts by tensor, if not 0 (see ``Tally``); ``inexact`` is None unless a delta was tried, ``proof`` unless the base was.

    ``not_restored`` is None, too, where no tensor of the target has another dtype than the sums: ``inexact`` is the same then.
    """

    nonfinite: dict[str, int] = field(default_factory=dict)
    nonfinite_base: dict[str, int] = field(default_factory=dict)
    nonfinite_lead: dict[str, int] = field(default_factory=dict)
    overflow: dict[str, int] = field(default_factory=dict)
    uniform: dict[str, tuple[str, ...]] = field(default_factory=dict)  # "result", "base", "lead" of one number
    inexact: dict[str, int] | None = None
    not_restored: dict[str, int] | None = None
    proof: ProofRecord | None = None

    def document(self) -> dict[str, Json]:
        """Return the findings as JSON: ``nonfinite`` always, the rest only where something was found."""
        rare: dict[str, Json] = {key: getattr(self, key) for key in ("nonfinite_base", "nonfinite_lead", "overflow")}
        rare["uniform"] = {name: list(roles) for name, roles in self.uniform.items()}
        proof = self.proof.document() if self.proof else None
        optional = {"inexact": self.inexact, "not_restored": self.not_restored, "proof": proof}
        return {
            "nonfinite": self.nonfinite,
            **{key: value for key, value in rare.items() if value},
            **{key: value for key, value in optional.items() if value is not None},
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Json]) -> Findings:
        """Read findings among other keys. Raises ``ValueError``, ``KeyError`` or ``TypeError`` when they are malformed."""
        counts = ("nonfinite", "nonfinite_base", "nonfinite_lead", "overflow")
        inexact, not_restored = (document.get(key) for key in ("inexact", "not_restored"))
        proof = document.get("proof")
        return cls(
            **{key: check_sizes(document.get(key, {})) for key in counts},
            uniform={name: tuple(map(str, roles)) for name, roles in document.get("uniform", {}).items()},
            inexact=None if inexact is None else check_sizes(inexact),
            not_restored=None if not_restored is None else check_sizes(not_restored),
            proof=None if proof is None else ProofRecord.from_document(proof),
        )


def check_size(value: Json) -> int:
    """Return ``value`` if it is a whole number, at least 0. Raises ``ValueError``."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a size")
    return value


def check_sizes(document: Json) -> dict[str, int]:
    """Return ``document`` if all its values are sizes. Raises ``ValueError``, or ``AttributeError`` when it is not an object."""
    return {name: check_size(value) for name, value in document.items()}
