"""What the verbs return: the published result and its findings."""

from __future__ import annotations

from dataclasses import dataclass

from deltaweights.jobs.findings import SumFound
from deltaweights.manifest.base_claim import claim_of
from deltaweights.manifest.findings import Findings, ProofRecord
from deltaweights.merge.plan import Plan, fates
from deltaweights.recipes.recipe import Recipe
from deltaweights.util.text import short_repr

ALREADY_COMPLETE = "already complete"


@dataclass(frozen=True, kw_only=True, repr=False)
class Published(Findings):
    """A published result and its findings.

    ``status`` is "merged", "made", "converted", "exported" or "already complete". ``bytes`` counts weights; ``seconds`` are by
    stage. ``recipe`` is the name of the recipe used. ``published_sum`` is None where the recipe has none, or nothing was written.
    ``streamed``: an input was read from the Hub and not kept, so its hash could not be compared. ``source_proof`` is the proof of a
    checkpoint that was copied, by its own manifest.
    """

    status: str
    content_digest: str
    manifest_sha256: str
    tensors: int
    parameters: int
    bytes: int
    shards: int
    fates: dict[str, int]
    dropped: dict[str, dict[str, str]]
    recipe: str | None
    published_sum: SumFound | None
    streamed: bool
    seconds: dict[str, float]
    source_proof: ProofRecord | None = None

    def __repr__(self) -> str:
        claim = claim_of(self.proof, self.source_proof)
        base = {} if claim is None else {"base": claim.text}
        folder = {name: getattr(self, name) for name in ("target", "delta") if hasattr(self, name)}
        return short_repr(self, **folder, status=self.status, **base, content_digest=self.content_digest)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The published folder, after a run or as an earlier run left it; ``base_digest`` is the content digest of its base."""

    status: str
    content_digest: str
    manifest_sha256: str
    findings: Findings
    published_sum: SumFound | None = None
    streamed: bool = False
    base_digest: str | None = None
    source_proof: ProofRecord | None = None


def published(plan: Plan, recipe: Recipe | None, outcome: Outcome, seconds: dict[str, float]) -> Published:
    """Return the result of a verb."""
    dropped = {role: {item.spec.name: item.reason for item in record.dropped} for role, record in plan.inputs.items()}
    return Published(
        status=outcome.status,
        content_digest=outcome.content_digest,
        manifest_sha256=outcome.manifest_sha256,
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        bytes=plan.nbytes,
        shards=len(plan.shards),
        fates=fates(plan),
        dropped=dropped,
        recipe=recipe.name if recipe else None,
        published_sum=outcome.published_sum,
        streamed=outcome.streamed,
        source_proof=outcome.source_proof,
        **vars(outcome.findings),
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )
