"""The facts for the model card of a result."""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.checkpoint.llava_names import IDENTITY
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.export.conversation import stop_strings
from deltaweights.export.layout import conversation_name
from deltaweights.jobs.model_card import CardFacts, Origin
from deltaweights.jobs.planned_result import PlannedResult
from deltaweights.manifest.base_claim import BaseClaim, claim_of
from deltaweights.manifest.findings import Findings, ProofRecord
from deltaweights.merge.choices import TORCH_NAMES, TRANSFORMERS
from deltaweights.merge.operation import VISION_TOWER, Operation
from deltaweights.merge.record import ResultDigests
from deltaweights.recipes.catalogue import is_of_package
from deltaweights.recipes.incomplete import EMBEDDING
from deltaweights.recipes.models import model
from deltaweights.recipes.recipe import Recipe
from deltaweights.util.text import counted

KINDS = {
    Operation.APPLY: "merge",
    Operation.MAKE: "delta",
    Operation.CONVERT: "copy",
    Operation.EXPORT: "export",
}


def card_facts(
    planned: PlannedResult, digests: ResultDigests, findings: Findings, source_proof: ProofRecord | None
) -> CardFacts:
    """Return the facts of a model card. An input that is not a Hub repository is named as in the recipe."""
    plan, recipe = planned.plan, planned.recipe
    names = {tensor.spec.name for tensor in plan.tensors}
    laid_out = plan.options.layout == TRANSFORMERS or IDENTITY in names
    has_vision = bool({PROJECTOR[0], IDENTITY} & names)
    conversation = conversation_name(recipe, vision=has_vision and laid_out)
    origins, kind = _origins(planned, digests.inputs), KINDS[plan.operation]
    base, primary = origins.get("base", Origin()), origins[plan.operation.primary]
    if plan.operation is Operation.EXPORT:
        if "delta" in planned.parents:
            base, primary = (_parent(planned.parents.get(role, {})) for role in ("base", "delta"))
        else:
            kind = "copy"  # its parents are not known
    if planned.copied_delta is not None:
        kind, base, primary = "delta", *(_parent(planned.parents.get(role, {})) for role in ("base", "target"))
    if recipe is not None and kind != "copy":
        base = _named(base, _base_of(recipe))
        # A recipe does not say where the target of its delta is.
        primary = primary if kind == "delta" else _named(primary, recipe.delta.repo)
    claim = claim_of(findings.proof, source_proof)
    warnings = (f"WARNING: {claim.warning}",) if claim is not None and claim.warning is not None else ()
    return CardFacts(
        kind=kind,
        layout=TRANSFORMERS if laid_out else plan.options.layout,
        digest=digests.content,
        primary=primary,
        base=base,
        original_digest=digests.original if plan.options.layout == TRANSFORMERS else None,
        known=laid_out or EMBEDDING in names,
        vision_tower=origins.get(VISION_TOWER),
        images=has_vision,
        recipe=recipe.name if recipe else None,
        own_recipe=recipe is not None and not is_of_package(recipe.name, recipe.digest),
        title=recipe.title if recipe else None,
        conversation=conversation,
        compute_dtype=TORCH_NAMES[planned.copied_delta or plan.options.compute_dtype],
        stored_dtype=TORCH_NAMES[plan.options.dtype],
        container=plan.options.container,
        settings=_settings(claim, findings),
        notices=(*warnings, *(recipe.notice.splitlines() if recipe else ())),
        sources=recipe.sources if recipe else (),
        stop_strings=stop_strings(conversation) if conversation else (),
    )


def _settings(claim: BaseClaim | None, findings: Findings) -> tuple[tuple[str, str], ...]:
    """Return what was found of the base, and what of the target a delta does not bring back."""
    lost = findings.inexact if findings.not_restored is None else findings.not_restored
    settings = (("Proof of the base", claim.verdict),) if claim is not None else ()
    if not lost:
        return settings
    count = f"{counted(sum(lost.values()), 'weight')} in {counted(len(lost), 'tensor')}, by tensor in `manifest.json`"
    return *settings, ("Other than in the target when applied", count)


def _origins(planned: PlannedResult, digests: Mapping[str, str]) -> dict[str, Origin]:
    """Return the known repository, commit and digest of each input, by role."""
    origins = {}
    for role in planned.plan.inputs:
        origin = planned.origins.get(role, {})
        origins[role] = Origin(origin.get("repo"), origin.get("commit"), digests[role])
    return origins


def _parent(stated: Mapping[str, str]) -> Origin:
    return Origin(stated.get("repo"), stated.get("commit"), stated.get("tensors_digest"))


def _named(origin: Origin, repo: str | None) -> Origin:
    return origin if origin.repo is not None else Origin(repo, None, origin.digest)


def _base_of(recipe: Recipe) -> str | None:
    return model(recipe.base_model).repo if recipe.base_model is not None else None
