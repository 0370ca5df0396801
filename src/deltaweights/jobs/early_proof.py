"""Refuse a wrong base before anything is written: the samples that were read for the plan are proved.

What is refused here would be refused after the stream, too: a violation among the samples is one among all weights. Where the
full proof could be lenient all the same, or would say something else, it is left to it: so where only some tensors have
violations, for another base differs in nearly all, and damage is told by the checksums that are compared in the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deltaweights.errors import Mismatch
from deltaweights.jobs.findings import PUBLISH_ANYWAY, refused_base
from deltaweights.jobs.inputs import Inputs
from deltaweights.jobs.round_trip import prove_samples
from deltaweights.manifest.findings import Verdict
from deltaweights.manifest.tally import Proof
from deltaweights.merge.base_proof import LIKELY_CAUSES, MIN_SHARE, SIZEABLE, WHOLE_RATE, wider_tensors
from deltaweights.merge.device import kernels_on, untested_kernels
from deltaweights.merge.record import proof_of

DAMAGED = LIKELY_CAUSES[0][0]

CERTAIN = 0.65
"""The highest rate of violations that samples suggest of all weights: from 0.8 on it is a sign of another arithmetic."""


def refuse_wrong_base(inputs: Inputs) -> None:
    """Raise ``Mismatch`` when samples refute the base of a merge.

    A base whose digest the delta's manifest states is judged by that.
    """
    of_base = inputs.of_base
    if of_base.digest is not None or (of_base.rounded and not of_base.stated):
        return
    wider = wider_tensors(inputs.matching.matches, inputs.compute)
    if not _violated(prove_samples(inputs, untested_kernels()), wider):
        return
    with kernels_on("cpu") as make_kernels:  # those passed the self-test: nobody is accused by a faulty processor
        found = _violated(prove_samples(inputs, make_kernels()), wider)
    proof = proof_of(found, rounded=of_base.rounded)
    if proof is None or proof.violations <= DAMAGED * proof.region:
        return  # few: rather damage, which checksums that are compared in the stream tell better
    if not of_base.stated and (proof.verdict == Verdict.OTHER_ARITHMETIC or _rate(found, inputs) > CERTAIN):
        return
    error = refused_base(
        replace(proof, whole=()), where=None if inputs.base is None else inputs.base.path, sampled=True
    )
    if inputs.identities["base"].is_merge:
        problem = f"the base is already merged, as its manifest says; {error.problem}"
        remedy = f"use the base that it was merged from; {PUBLISH_ANYWAY}"
        raise Mismatch(problem, where=error.where, remedy=remedy, code=error.code)
    raise error


def _violated(proofs: Mapping[str, Proof], wider: frozenset[str]) -> dict[str, Proof]:
    """Return the proofs without those of ``wider`` tensors, and of such as may be whole, if most of the rest are violated.

    Else none. Of tensors without evidence, as of layers that were not trained, nothing is expected.
    """
    rest = {name: proof for name, proof in proofs.items() if name not in wider and not _may_be_whole(proof)}
    telling = [proof for proof in rest.values() if proof.evidence >= SIZEABLE]
    telling = telling or [proof for proof in rest.values() if proof.evidence]  # of a tiny model
    violated = sum(proof.violations > DAMAGED * proof.region for proof in telling)
    return rest if violated > len(telling) / 2 else {}


def _may_be_whole(proof: Proof) -> bool:
    """Return whether the full proof may find that this tensor is stored whole in the delta, which is another error."""
    near = proof.region < MIN_SHARE * proof.weights
    return proof.weights >= SIZEABLE and near and proof.violations >= WHOLE_RATE / 2 * proof.region


def _rate(proofs: Mapping[str, Proof], inputs: Inputs) -> float:
    """Return the rate of violations that is to be expected of all weights."""
    sizes = {match.primary.name: match.base.count for match in inputs.matching.matches if match.base is not None}
    scaled = [(proof, sizes[name] / proof.weights) for name, proof in proofs.items() if proof.weights]
    region = sum(proof.region * scale for proof, scale in scaled)
    return sum(proof.violations * scale for proof, scale in scaled) / max(region, 1)
