"""The plan of a result, with everything that its documents say of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltaweights.jobs.prepare import Prepared
from deltaweights.jobs.provenance import is_streamed, origins_of, verified_hashes
from deltaweights.merge.plan import Plan
from deltaweights.recipes.recipe import Recipe

Texts = Mapping[str, Mapping[str, str]]
"""By role, and then by name."""


@dataclass(frozen=True)
class PlannedResult:
    """The plan, the files that travel with the weights, and what is known of the inputs.

    ``hashes`` are sha256 of input files that were made or compared, ``origins`` where inputs are from; ``expected`` and ``parents``
    are as in ``Prepared``. ``streamed`` says that an input was kept nowhere.
    """

    plan: Plan
    companions: Mapping[str, bytes]
    recipe: Recipe | None
    hashes: Texts
    origins: Texts
    parents: Texts
    expected: str | None
    streamed: bool

    @property
    def stated(self) -> bool:
        """Whether it is known in which arithmetic the delta was computed."""
        return self.recipe is not None and self.recipe.stated


def planned_result(job: Prepared) -> PlannedResult:
    """Return what the documents of ``job`` will say."""
    return PlannedResult(
        job.plan,
        job.companions.files,
        job.recipe,
        verified_hashes(job.checkpoints, job.hashes),
        origins_of(job.checkpoints),
        job.parents,
        job.expected,
        any(map(is_streamed, job.checkpoints.values())),
    )
