"""base + delta = merged.

Enters: paths and options. Leaves: a target folder with the merged weights, manifest and checksums. Never: more than names for
the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deltaweights.cluster.part import PartResult, perform_part
from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.inputs import find_recipe, sources_of
from deltaweights.jobs.prepare import Prepared, prepare
from deltaweights.jobs.request import Wanted
from deltaweights.jobs.run import Published, Settings, perform
from deltaweights.merge.operation import Operation
from deltaweights.merge.parts import Part, parse_part
from deltaweights.report import Report


@dataclass(frozen=True, kw_only=True)
class ApplyResult(Published):
    """The merged checkpoint in the folder ``target``."""

    target: str


def apply_delta(
    base: ModelLocation | None,
    delta: ModelLocation | None,
    target: PathLike,
    *,
    recipe: str | None = None,
    recipe_file: PathLike | None = None,
    compute_dtype: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    layout: str = "original",
    weights: str = "safetensors",
    vision_tower: ModelLocation | None = None,
    device: str = "cpu",
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    hash_inputs: bool = False,
    prove: bool = True,
    allow_unproved_base: bool = False,
    require_verified: bool = False,
    check: bool = False,
    read_back: bool = False,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> ApplyResult:
    """Add ``delta`` to ``base`` and publish the merged checkpoint at ``target``.

    ``base`` and ``delta`` are folders (Hugging Face's layout or Meta's), index files, weights files (safetensors or torch), or
    zip archives of them, or ids of the Hub (``ORG/NAME``, ``ORG/NAME@REVISION``, ``hf://...``), from which they are fetched and
    merged as they arrive, as ``hub`` says; None stands for where the recipe has them from. ``recipe`` names a known pair
    (``deltaweights recipes``), ``recipe_file`` is one in a file, laid over the one that is named. Both inputs are cast to
    ``compute_dtype`` (float16, bfloat16 or float32; the recipe's, or float16), added once, and stored as ``dtype`` (the compute
    dtype unless given) in shards of at most ``max_shard_size`` (bytes, or text such as ``"5GB"``). ``layout`` is "original", or
    "transformers" for a model that current transformers loads: a LLaVA then holds its ``vision_tower``, too (a path or an id of
    CLIP, None for the recipe's). ``weights`` is "safetensors", or "bin" for torch files. ``device`` is ``cpu``, ``cuda[:N]`` or
    ``auto``; the bits are the same. With ``strict``, NaN, infinite or uniform weights are an error; with ``hash_inputs`` the
    manifest has the sha256 of every input file. With ``prove`` the sums prove the base (docs/design.md, "The round trip"); where
    a recipe states how the delta was computed, a base that is refuted is an error, unless ``allow_unproved_base``. With
    ``require_verified``, the sha256 of inputs must be compared or made. With ``check``, nothing is published that a library
    would not load; with ``read_back``, the finished shards are read from the disk and hashed once more. A killed run is finished
    by the same call.

    Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``, ``TargetBusy``, and ``CheckFailed`` (``strict``,
    ``check``, ``require_verified``); the target is then as it was before, and finished shards wait in staging for the next call.
    """
    began = time.monotonic()
    report = Report() if report is None else report
    settings = Settings(device, workers, overwrite, strict, allow_unproved_base, require_verified, check)
    settings = replace(settings, read_back=read_back)
    wanted = Wanted(compute_dtype, dtype, max_shard_size, layout, weights, vision_tower)
    which = (recipe, recipe_file)
    opener = _opener(
        base, delta, target, wanted, settings, which, hub, report, prove=prove, hash_inputs=hash_inputs, parted=False
    )
    job, published = perform(opener, settings, report, began)
    return ApplyResult(target=str(job.place.target), **vars(published))


def apply_part(
    base: ModelLocation | None,
    delta: ModelLocation | None,
    target: PathLike,
    *,
    part: str | Part,
    recipe: str | None = None,
    recipe_file: PathLike | None = None,
    device: str = "cpu",
    workers: int | None = None,
    overwrite: bool = False,
    hash_inputs: bool = False,
    prove: bool = True,
    allow_unproved_base: bool = False,
    require_verified: bool = False,
    hub: HubOptions | None = None,
    report: Report | None = None,
    **wanted: Any,
) -> PartResult:
    """Make the shards of one ``part`` (``"K/N"``) of a merge into staging beside ``target``; ``finish_parts`` publishes them.

    The other options are those of ``apply_delta``, and must be the same for all parts: parts of two plans never mix. Any part may
    run anywhere where base, delta and target's folder can be reached, at any time, also twice.

    Raises what ``apply_delta`` raises, and ``TargetBusy`` when staging holds another plan.
    """
    began = time.monotonic()
    report = Report() if report is None else report
    settings = Settings(device, workers, overwrite, require_verified=require_verified)
    settings = replace(settings, allow_unproved_base=allow_unproved_base)
    opener = _opener(
        base,
        delta,
        target,
        Wanted(**wanted),
        settings,
        (recipe, recipe_file),
        hub,
        report,
        prove=prove,
        hash_inputs=hash_inputs,
        parted=True,
    )
    return perform_part(opener, parse_part(part) if isinstance(part, str) else part, settings, report, began)


def _opener(
    base: ModelLocation | None,
    delta: ModelLocation | None,
    target: PathLike,
    wanted: Wanted,
    settings: Settings,
    recipe: tuple[str | None, PathLike | None],
    hub: HubOptions | None,
    report: Report,
    *,
    prove: bool,
    hash_inputs: bool,
    parted: bool,
) -> Callable[[], AbstractContextManager[Prepared]]:
    """Return what opens the job; ``recipe`` is a name and a file."""
    known = find_recipe(*recipe)
    base, delta = sources_of(known, base, delta)
    return partial(
        prepare,
        Operation.APPLY,
        base,
        delta,
        target,
        wanted,
        recipe=known,
        hub=hub,
        require_verified=settings.require_verified,
        check=prove,
        allow_unproved_base=settings.allow_unproved_base,
        hash_workers=settings.threads if hash_inputs else None,
        overwrite=settings.overwrite,
        parted=parted,
        report=report,
    )
