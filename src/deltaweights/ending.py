"""What is left of a job once its shards are finished: all that its documents say, as one value.

Enters: a prepared job; or the staging folder in which a part of it left this value. Leaves: the value, and files in staging. Never:
an open input, so that whoever finishes a job needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deltaweights.codec import decode, encode
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.limits import ENDING as ENDING_LIMIT
from deltaweights.manifest.manifest import plain_name
from deltaweights.merge.frame import frame_of
from deltaweights.merge.plan import Plan, PlannedTensor, Shard
from deltaweights.prepare import Prepared
from deltaweights.provenance import is_streamed, origins_of, verified_hashes
from deltaweights.recipes.recipe import Recipe
from deltaweights.staging.opened import COMPANIONS, ENDING, OpenStaging
from deltaweights.staging.place import Place
from deltaweights.text import Json, compact_json, refuse_excess, strict_json

Texts = Mapping[str, Mapping[str, str]]
"""By role, and then by name."""

MAX_COMPANION = 64 * 1024 * 1024


@dataclass(frozen=True)
class Ending:
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


@dataclass(frozen=True)
class _Rest:
    """What is stored of an ``Ending`` besides shards and companions."""

    plan: Plan
    shards: tuple[tuple[str, tuple[PlannedTensor, ...]], ...]
    companions: tuple[str, ...]
    recipe: Recipe | None
    hashes: Texts
    origins: Texts
    parents: Texts
    expected: str | None


def ending_of(job: Prepared) -> Ending:
    """Return what the documents of ``job`` will say."""
    return Ending(
        job.plan,
        job.companions.files,
        job.recipe,
        verified_hashes(job.checkpoints, job.hashes),
        origins_of(job.checkpoints),
        job.parents,
        job.expected,
        any(map(is_streamed, job.checkpoints.values())),
    )


def store(ending: Ending, staging: OpenStaging) -> None:
    """Put ``ending`` into staging, in steps of which each is whole. Raises ``InputOutputError``, ``MalformedInput``."""
    with staging.folder(COMPANIONS) as companions:
        for name, data in ending.companions.items():
            companions.replace(name, data)
    rest = _Rest(
        replace(ending.plan, shards=()),
        tuple((shard.file, shard.tensors) for shard in ending.plan.shards),
        tuple(ending.companions),
        ending.recipe,
        ending.hashes,
        ending.origins,
        ending.parents,
        ending.expected,
    )
    document: Json = {"identity": ending.plan.identity, "rest": encode(rest)}
    data = compact_json(document).encode()
    try:
        refuse_excess(data, ENDING_LIMIT)  # else no run could finish what the parts are about to make
    except ValueError as error:
        problem, remedy = "too much for parts: what they leave could not be read back", "merge without --part"
        raise MalformedInput(problem, where=staging.root.path, found=error, remedy=remedy) from None
    staging.root.replace(ENDING, data)


def load(staging: OpenStaging) -> Ending:
    """Return what ``store`` put into staging. Raises ``InputOutputError`` when there is nothing, ``MalformedInput``."""
    try:
        document = strict_json(staging.root.read(ENDING, ENDING_LIMIT.size), ENDING_LIMIT)
        rest = decode(_Rest, document["rest"])
        container = rest.plan.options.container
        shards = tuple(
            Shard(file, frame_of([tensor.spec for tensor in tensors], file, container), tensors)
            for file, tensors in rest.shards
        )
        plan = replace(rest.plan, shards=shards)
        names = [plain_name(name) for name in rest.companions]
        fault = None if plan.identity == document["identity"] else "its plan is not the one that it names"
    except (ValueError, TypeError, KeyError) as error:
        fault = str(error)
    if fault is not None:
        remedy = "run a part again, or give it up: deltaweights clean"
        raise MalformedInput("not what a part left", where=staging.root.path / ENDING, found=fault, remedy=remedy)
    with staging.folder(COMPANIONS) as folder:
        companions = {name: folder.read(name, MAX_COMPANION) for name in names}
    return Ending(plan, companions, rest.recipe, rest.hashes, rest.origins, rest.parents, rest.expected, streamed=False)


def stands(place: Place) -> bool:
    """Tell whether a part left an ending here. Raises ``InputOutputError`` when nobody can tell."""
    try:
        return place.ending.exists()
    except OSError as error:
        raise InputOutputError.from_os(error, place.ending, "look for it") from error
