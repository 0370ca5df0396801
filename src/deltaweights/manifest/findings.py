"""What was found in the numbers of a result and its inputs, as the manifest records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from deltaweights.util.text import Json


class Verdict(str, Enum):
    """What the counts say of a base."""

    PROVED = "proved"
    NO_EVIDENCE = "no evidence"
    PARTIAL = "partial"
    VIOLATED = "violated"
    OTHER_ARITHMETIC = "another arithmetic"
    NOT_CHECKED = "not checked"


WITH_VIOLATIONS = frozenset({Verdict.VIOLATED.value, Verdict.OTHER_ARITHMETIC.value})
WITHOUT = frozenset(verdict.value for verdict in Verdict) - WITH_VIOLATIONS
"""The verdicts that there can be with violations, and without any; another program may know more."""

LONGEST_TEXT = 300  # characters of a verdict, of how a delta was rounded, or of why nobody looked


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
    rounded: str = ""  # how the delta seems to have been rounded, where that explains the violations
    reason: str = ""  # why the sums were not looked at, where that is the verdict
    allowed: bool = False  # the user accepted what would have been refused

    @classmethod
    def not_checked(cls, reason: str, *, allowed: bool = False) -> ProofRecord:
        """Return the record of a base of which no sum was checked: it tells those who receive the result, and why."""
        return cls(
            weights=0,
            region=0,
            violations=0,
            evidence=0,
            verdict=Verdict.NOT_CHECKED.value,
            tensors={},
            reason=reason[:LONGEST_TEXT],
            allowed=allowed,
        )

    @property
    def refuted(self) -> bool:
        """Whether this is not the base that the delta was made from, or one of the two is damaged."""
        return self.verdict == Verdict.VIOLATED and not self.rounded

    def document(self) -> dict[str, Json]:
        """Return the record as JSON; what is behind ``tensors`` only where it is not empty or false."""
        optional = {
            "untested": list(self.untested),
            "whole": list(self.whole),
            "rounded": self.rounded,
            "reason": self.reason,
            "allowed": self.allowed,
        }
        return {
            **{key: value for key, value in vars(self).items() if key not in optional},
            **{key: value for key, value in optional.items() if value},
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Json]) -> ProofRecord:
        """Read a record. Raises ``ValueError``, ``KeyError`` or ``TypeError`` when it is malformed, or contradicts itself."""
        counts = {key: check_size(document[key]) for key in ("weights", "region", "violations", "evidence")}
        verdict, rounded, allowed = document["verdict"], document.get("rounded", ""), document.get("allowed", False)
        names = {key: tuple(document.get(key, ())) for key in ("untested", "whole")}
        reason = document.get("reason", "")
        texts = (verdict, rounded, reason)
        if not all(isinstance(text, str) and len(text) <= LONGEST_TEXT for text in texts) or type(allowed) is not bool:
            raise ValueError("a proof whose verdict is no short text, or allowed not true or false")
        if not all(isinstance(name, str) for each in names.values() for name in each):
            raise ValueError("a proof whose tensors are not named by strings")
        if not counts["violations"] <= counts["region"] >= counts["evidence"] or counts["region"] > counts["weights"]:
            raise ValueError("a proof that counts more of a part than of the whole")
        if verdict in (WITHOUT if counts["violations"] else WITH_VIOLATIONS):
            raise ValueError(f"a proof whose verdict contradicts its {counts['violations']} violations")
        if (verdict == Verdict.NOT_CHECKED and counts["weights"]) or (verdict != Verdict.NOT_CHECKED and reason):
            raise ValueError("a proof that was not checked has counts, or one that was has a reason why not")
        tensors = check_sizes(document["tensors"])
        return cls(
            weights=counts["weights"],
            region=counts["region"],
            violations=counts["violations"],
            evidence=counts["evidence"],
            verdict=verdict,
            tensors=tensors,
            untested=names["untested"],
            whole=names["whole"],
            rounded=rounded,
            reason=reason,
            allowed=allowed,
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
