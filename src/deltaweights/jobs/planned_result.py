"""The plan of a result, and what its documents say about the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltaweights.jobs.findings import BaseFacts
from deltaweights.jobs.prepare import Prepared
from deltaweights.jobs.provenance import is_streamed, origins_of, verified_hashes
from deltaweights.jobs.source_proof import SourceProof, source_proof
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
    not kept. ``source`` is the proof of a checkpoint that is copied.
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
    source: SourceProof | None = None


def planned_result(prepared: Prepared) -> PlannedResult:
    """Return the planned result of a prepared request."""
    manifest = prepared.inputs.manifest
    return PlannedResult(
        plan=prepared.plan,
        companions=prepared.companions.files,
        recipe=prepared.recipe,
        hashes=verified_hashes(prepared.checkpoints, prepared.hashes),
        origins=origins_of(prepared.checkpoints),
        parents=manifest.origins if manifest is not None else {},
        expected=prepared.inputs.expected,
        of_base=prepared.inputs.of_base,
        streamed=any(map(is_streamed, prepared.checkpoints.values())),
        source=source_proof(manifest, prepared.plan),
    )
