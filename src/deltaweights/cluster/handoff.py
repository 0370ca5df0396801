"""What a part leaves in staging, so that `finish` can publish the result without opening an input."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.jobs.planned_result import PlannedResult, Texts
from deltaweights.manifest.records import check_file_name
from deltaweights.merge.frame import frame_of
from deltaweights.merge.plan import Plan, PlannedTensor, Shard
from deltaweights.recipes.recipe import Recipe
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.open_staging import COMPANIONS, ENDING, OpenStaging
from deltaweights.util.codec import decode, encode
from deltaweights.util.limits import ENDING as ENDING_LIMIT
from deltaweights.util.text import Json, compact_json, refuse_excess, strict_json

MAX_COMPANION = 64 * 1024 * 1024


@dataclass(frozen=True)
class _Handoff:
    """What is stored of an ``PlannedResult`` besides shards and companions."""

    plan: Plan
    shards: tuple[tuple[str, tuple[PlannedTensor, ...]], ...]
    companions: tuple[str, ...]
    recipe: Recipe | None
    hashes: Texts
    origins: Texts
    parents: Texts
    expected: str | None


def store_handoff(result: PlannedResult, staging: OpenStaging) -> None:
    """Put ``result`` into staging, in steps of which each is whole. Raises ``InputOutputError``, ``MalformedInput``."""
    with staging.folder(COMPANIONS) as companions:
        for name, data in result.companions.items():
            companions.replace(name, data)
    rest = _Handoff(
        replace(result.plan, shards=()),
        tuple((shard.file, shard.tensors) for shard in result.plan.shards),
        tuple(result.companions),
        result.recipe,
        result.hashes,
        result.origins,
        result.parents,
        result.expected,
    )
    document: Json = {"identity": result.plan.identity, "rest": encode(rest)}
    data = compact_json(document).encode()
    try:
        refuse_excess(data, ENDING_LIMIT)  # else no run could finish what the parts are about to make
    except ValueError as error:
        problem, remedy = "too much for parts: what they leave could not be read back", "merge without --part"
        raise MalformedInput(problem, where=staging.root.path, found=error, remedy=remedy) from None
    staging.root.replace(ENDING, data)


def load_handoff(staging: OpenStaging) -> PlannedResult:
    """Return what ``store_handoff`` put into staging. Raises ``InputOutputError`` when there is nothing, ``MalformedInput``."""
    try:
        document = strict_json(staging.root.read(ENDING, ENDING_LIMIT.size), ENDING_LIMIT)
        rest = decode(_Handoff, document["rest"])
        container = rest.plan.options.container
        shards = tuple(
            Shard(file, frame_of([tensor.spec for tensor in tensors], file, container), tensors)
            for file, tensors in rest.shards
        )
        plan = replace(rest.plan, shards=shards)
        names = [check_file_name(name) for name in rest.companions]
        fault = None if plan.identity == document["identity"] else "its plan is not the one that it names"
    except (ValueError, TypeError, KeyError) as error:
        fault = str(error)
    if fault is not None:
        remedy = "run a part again, or give it up: deltaweights clean"
        raise MalformedInput("not what a part left", where=staging.root.path / ENDING, found=fault, remedy=remedy)
    with staging.folder(COMPANIONS) as folder:
        companions = {name: folder.read(name, MAX_COMPANION) for name in names}
    return PlannedResult(
        plan, companions, rest.recipe, rest.hashes, rest.origins, rest.parents, rest.expected, streamed=False
    )


def has_handoff(place: TargetLocation) -> bool:
    """Return whether a part left its handoff here. Raises ``InputOutputError`` when that cannot be told."""
    try:
        return place.ending.exists()
    except OSError as error:
        raise InputOutputError.from_os(error, place.ending, "look for it") from error
