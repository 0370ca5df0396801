"""The handoff from parts to ``finish``, stored in staging: all that is needed to publish without opening an input."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.jobs.planned_result import PlannedResult
from deltaweights.manifest.records import check_file_name
from deltaweights.merge.frame import frame_of
from deltaweights.merge.plan import PlannedTensor, Shard
from deltaweights.staging.location import COMPANIONS, HANDOFF, TargetLocation
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.util.codec import decode, encode
from deltaweights.util.limits import HANDOFF as HANDOFF_LIMIT
from deltaweights.util.text import Json, compact_json, refuse_excess, strict_json

MAX_COMPANION = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class _Handoff:
    """A ``PlannedResult`` as it is stored: shards without their frames, companions in separate files."""

    result: PlannedResult
    shards: tuple[tuple[str, tuple[PlannedTensor, ...]], ...]
    companions: tuple[str, ...]


def store_handoff(result: PlannedResult, staging: OpenStaging) -> None:
    """Write ``result`` into staging, each file atomically. Raises ``InputOutputError``, ``MalformedInput``."""
    with staging.folder(COMPANIONS) as companions:
        for name, data in result.companions.items():
            companions.replace(name, data)
    handoff = _Handoff(
        result=replace(result, plan=replace(result.plan, shards=()), companions={}),
        shards=tuple((shard.file, shard.tensors) for shard in result.plan.shards),
        companions=tuple(result.companions),
    )
    document: Json = {"identity": result.plan.identity, "rest": encode(handoff)}
    data = compact_json(document).encode()
    try:
        refuse_excess(data, HANDOFF_LIMIT)  # fail now rather than in ``finish``
    except ValueError as error:
        problem, remedy = "too large for a merge in parts: finish could not read the plan back", "merge without --part"
        raise MalformedInput(problem, where=staging.root.path, found=error, remedy=remedy) from None
    staging.root.replace(HANDOFF, data)


def load_handoff(staging: OpenStaging) -> PlannedResult:
    """Read back what ``store_handoff`` wrote.

    Raises ``InputOutputError`` when it is missing, and ``MalformedInput`` when it is damaged, and then removes it.
    """
    try:
        document = strict_json(staging.root.read(HANDOFF, HANDOFF_LIMIT.size), HANDOFF_LIMIT)
        handoff: _Handoff = decode(_Handoff, document["rest"])
        plan = handoff.result.plan
        container = plan.options.container
        shards = tuple(
            Shard(file, frame_of([tensor.spec for tensor in tensors], file, container), tensors)
            for file, tensors in handoff.shards
        )
        plan = replace(plan, shards=shards)
        names = [check_file_name(name) for name in handoff.companions]
        fault = None if plan.identity == document["identity"] else "its plan does not have the identity that it states"
    except (ValueError, TypeError, KeyError) as error:
        fault = str(error)
    if fault is not None:
        with suppress(InputOutputError):
            staging.root.remove(HANDOFF)  # a part that runs again writes it only where there is none
        remedy = "run a part again, or discard it: deltaweights clean"
        raise MalformedInput("not what a part wrote", where=staging.root.path / HANDOFF, found=fault, remedy=remedy)
    with staging.folder(COMPANIONS) as folder:
        companions = {name: folder.read(name, MAX_COMPANION) for name in names}
    return replace(handoff.result, plan=plan, companions=companions)


def has_handoff(location: TargetLocation) -> bool:
    """Return whether a part stored its handoff here. Raises ``InputOutputError``."""
    try:
        return (location.root / HANDOFF).exists()
    except OSError as error:
        raise InputOutputError.from_os(error, location.root / HANDOFF, "look for it") from error
