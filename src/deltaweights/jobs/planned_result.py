"""The plan of a result, and what its documents say about the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deltaweights.jobs.findings import BaseFacts
from deltaweights.jobs.prepare import Prepared
from deltaweights.jobs.provenance import is_streamed, origins_of, verified_hashes
from deltaweights.jobs.source_proof import SourceProof, source_proof
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import Plan
from deltaweights.recipes.recipe import Recipe

Texts = Mapping[str, Mapping[str, str]]
"""By role, and then by name."""


@dataclass(frozen=True, kw_only=True)
class PlannedResult:
    """A result to be published, without the open inputs: a part stores it in staging, so that ``finish`` needs no input.

    ``companions`` are files by name. ``hashes`` are the sha256 of input files that were computed or compared. ``origins`` are the
    sources of the inputs, ``parents`` those that the primary's own manifest states of its inputs. ``expected`` is the content
    digest, in the original layout, that this manifest states. ``of_base`` says how the sums are judged. ``streamed``: an input was
    not kept. ``digests`` are those of ``Inputs``. ``copied_delta`` is the compute dtype of a delta of ours that is copied,
    ``source`` the proof of a checkpoint that is copied.
    """

    plan: Plan
    companions: Mapping[str, bytes]
    recipe: Recipe | None
    hashes: Texts
    origins: Texts
    parents: Texts
    expected: str | None
    of_base: BaseFacts
    streamed: bool
    digests: Mapping[str, str] = field(default_factory=dict)
    copied_delta: str | None = None
    source: SourceProof | None = None


def planned_result(prepared: Prepared) -> PlannedResult:
    """Return the planned result of a prepared request."""
    facts = prepared.inputs.facts
    return PlannedResult(
        plan=prepared.plan,
        companions=prepared.companions.files,
        recipe=prepared.recipe,
        hashes=verified_hashes(prepared.checkpoints, prepared.hashes),
        origins=origins_of(prepared.checkpoints),
        parents=facts.origins if facts is not None else {},
        expected=prepared.inputs.expected,
        of_base=replace(prepared.inputs.of_base, not_checked=_why_not_checked(prepared)),
        streamed=any(map(is_streamed, prepared.checkpoints.values())),
        digests=prepared.inputs.digests,
        copied_delta=facts.compute_dtype if facts is not None and facts.kind == "delta" else None,
        source=source_proof(prepared.inputs.manifest, prepared.plan),
    )


def _why_not_checked(prepared: Prepared) -> str:
    """Return why the sums of a merge are not checked; empty where they are, and where there are none."""
    if prepared.plan.operation is not Operation.APPLY or prepared.plan.check:
        return ""
    if prepared.inputs.powerless:
        return f"not proved: sums cannot prove it: {prepared.inputs.powerless}"
    return "not checked (--no-prove)"
