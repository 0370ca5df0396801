"""What was found in the numbers of a result and of what it was made of, as the manifest records it.

Enters: counts by tensor. Leaves: JSON, and the same read back and checked. Never: an opinion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltaweights.util.text import Json


@dataclass(frozen=True, kw_only=True)
class ProofRecord:
    """What the sums say of their base, of all tensors together (see ``Proof``).

    ``tensors`` counts violations by name, ``untested`` names those of which too few weights lie in the region to say anything.
    ``verdict`` is one of ``Verdict``'s, ``allowed`` says that the user let a base pass that is not proved.
    """

    weights: int
    region: int
    violations: int
    evidence: int
    verdict: str
    tensors: dict[str, int]
    untested: tuple[str, ...] = ()
    allowed: bool = False

    def document(self) -> dict[str, Json]:
        """Return the record as JSON; ``untested`` and ``allowed`` only where there is something to say."""
        rare = {"untested": list(self.untested), "allowed": self.allowed}
        return {
            **{key: value for key, value in vars(self).items() if key not in rare},
            **{key: value for key, value in rare.items() if value},
        }

    @classmethod
    def of(cls, document: Mapping[str, Json]) -> ProofRecord:
        """Read a record. Raises ``ValueError``, ``KeyError`` or ``TypeError`` when it is none."""
        counts = {key: size(document[key]) for key in ("weights", "region", "violations", "evidence")}
        return cls(
            **counts,
            verdict=str(document["verdict"]),
            tensors=sizes(document["tensors"]),
            untested=tuple(map(str, document.get("untested", ()))),
            allowed=document.get("allowed") is True,
        )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Counts by tensor, of those that have any (see ``Tally``), and the proof of the base.

    ``uniform`` names, for each matrix of which it is so, those of "result", "base" and "lead" that hold one number throughout.
    ``inexact`` is None for what is no delta, or a delta that nobody tried; ``proof`` when nothing was added, or nobody looked.
    """

    nonfinite: dict[str, int] = field(default_factory=dict)
    nonfinite_base: dict[str, int] = field(default_factory=dict)
    nonfinite_lead: dict[str, int] = field(default_factory=dict)
    overflow: dict[str, int] = field(default_factory=dict)
    uniform: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inexact: dict[str, int] | None = None
    proof: ProofRecord | None = None

    def document(self) -> dict[str, Json]:
        """Return the findings as JSON: ``nonfinite`` always, the rest where there is something to say."""
        rare: dict[str, Json] = {
            "nonfinite_base": self.nonfinite_base,
            "nonfinite_lead": self.nonfinite_lead,
            "overflow": self.overflow,
            "uniform": {name: list(roles) for name, roles in self.uniform.items()},
        }
        asked = {"inexact": self.inexact, "proof": self.proof.document() if self.proof else None}
        return {
            "nonfinite": self.nonfinite,
            **{key: value for key, value in rare.items() if value},
            **{key: value for key, value in asked.items() if value is not None},
        }

    @classmethod
    def of(cls, document: Mapping[str, Json]) -> Findings:
        """Read findings among other keys. Raises ``ValueError``, ``KeyError`` or ``TypeError`` when they are malformed."""
        inexact, proof = document.get("inexact"), document.get("proof")
        return cls(
            nonfinite=sizes(document.get("nonfinite", {})),
            nonfinite_base=sizes(document.get("nonfinite_base", {})),
            nonfinite_lead=sizes(document.get("nonfinite_lead", {})),
            overflow=sizes(document.get("overflow", {})),
            uniform={name: tuple(map(str, roles)) for name, roles in document.get("uniform", {}).items()},
            inexact=None if inexact is None else sizes(inexact),
            proof=None if proof is None else ProofRecord.of(proof),
        )


def size(value: Json) -> int:
    """Return ``value`` if it is a size. Raises ``ValueError``."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a size")
    return value


def sizes(document: Json) -> dict[str, int]:
    """Return a map of sizes. Raises ``ValueError`` or ``AttributeError`` when it is none."""
    return {name: size(value) for name, value in document.items()}
