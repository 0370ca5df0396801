"""The proof of a base in words."""

from __future__ import annotations

from deltaweights.manifest.findings import ProofRecord, Verdict
from deltaweights.util.text import counted

MIN_EVIDENCE = 100_000  # elements that must have moved before the absence of violations says anything


def proof_line(proof: ProofRecord | None) -> str | None:
    """Return the proof of the base in one line; None when the base was not checked."""
    if proof is None:
        return None
    accepted = "; published all the same (--allow-unproved-base)" if proof.allowed else ""
    if proof.verdict == Verdict.PROVED:
        return f"proved: {_region(proof)}, 0 violations{accepted}"
    if proof.verdict == Verdict.NOT_CHECKED:
        return f"{proof.reason or 'not checked'}{accepted}"
    if proof.verdict == Verdict.NO_EVIDENCE:
        few = f"{proof.evidence:,} weights moved; less than {MIN_EVIDENCE:,} say nothing"
        return f"no evidence: {few}{accepted}"
    if proof.verdict == Verdict.PARTIAL:
        return f"NOT proved: {_region(proof)}, 0 violations, but {untested_text(proof)}{accepted}"
    return f"NOT proved: {_region(proof)}, {proof.violations:,} violations ({rate_text(proof)}){accepted}"


def rate_text(proof: ProofRecord) -> str:
    """Return the share of violations in the region."""
    rate = proof.violations / max(proof.region, 1)
    return f"{rate:.2%}" if rate >= 0.0001 or not rate else "less than 0.01%"


def untested_text(proof: ProofRecord) -> str:
    """Return which tensors have too few weights in the region."""
    first, *others = proof.untested or ("some tensor",)
    more = f" and {counted(len(others), 'more tensor')}" if others else ""
    return f"too few weights of {first}{more} lie in the region"


def _region(proof: ProofRecord) -> str:
    return f"{proof.weights:,} weights, {proof.region / max(proof.weights, 1):.1%} in the region"
