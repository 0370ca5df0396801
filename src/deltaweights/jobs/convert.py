"""A checkpoint in another layout or container, tensor by tensor the same.

Enters: a path. Leaves: a Hugging Face folder of safetensors with manifest and checksums. Never: a number that is changed, unless
another dtype was asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from deltaweights.checkpoint.companions import (
    NOTICE,
    NOTICE_NAME,
    NOTICE_OF_A_COPY,
    NOTICE_OF_A_DELTA,
    Companions,
    read_companions,
)
from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.meta_llama.hf_config import meta_companions
from deltaweights.checkpoint.meta_llama.weights import CONTAINER
from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from deltaweights.hub.ids import Given, PathLike, Source
from deltaweights.hub.locate import HubOptions, located, paths_among
from deltaweights.jobs.inputs import find_recipe, show_notice
from deltaweights.jobs.prepare import Prepared, companions_of, laid_out, notice_of, record_of, tower_for
from deltaweights.jobs.request import USUAL, Wanted
from deltaweights.jobs.run import Published, Settings, perform
from deltaweights.manifest.input_manifest import lists_same_tensors, manifest_of_if_any
from deltaweights.merge.document_sizes import refuse_unreadable
from deltaweights.merge.operation import VISION_TOWER, Operation
from deltaweights.merge.plan import DTYPES, TRANSFORMERS, Options, make_plan
from deltaweights.merge.rules import Matching, copies
from deltaweights.recipes.catalogue import load
from deltaweights.recipes.identify import identify
from deltaweights.recipes.input_hashes import collect_hashes
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report
from deltaweights.staging.location import locate_target, refuse_inputs
from deltaweights.staging.target_contents import refuse_foreign_content
from deltaweights.staging.unpacking import StagingUnpacker

MAX_NOTICE = 64 * 1024

TORCH_NAMES = {code: name for name, code in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class ConvertResult(Published):
    """The same weights in the folder ``target``."""

    target: str


def convert_checkpoint(
    base: Given,
    target: PathLike,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    weights: str = "safetensors",
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    hash_inputs: bool = False,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> ConvertResult:
    """Write the checkpoint at ``base``, in Meta's format or any other that can be read, as a Hugging Face folder at ``target``.

    Weights keep their bits, unless ``dtype`` (float16, bfloat16 or float32) asks for others. From Meta's format, config.json
    and, where ``tokenizer.model`` lies beside the weights, tokenizer files are written; from others they are copied. The other
    options are those of ``apply_delta``.

    Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``, ``TargetBusy``, and ``CheckFailed`` (``strict``,
    or when ``base`` is not what its own manifest says).
    """
    wanted = Wanted(dtype=dtype, max_shard_size=max_shard_size, weights=weights)
    how = Settings("cpu", workers, overwrite, strict)
    return _copy(Operation.CONVERT, base, target, wanted, None, how, hub, report, hash_inputs=hash_inputs)


def export_checkpoint(
    merged: Given,
    target: PathLike,
    *,
    recipe: str | None = None,
    recipe_file: PathLike | None = None,
    vision_tower: Given | None = None,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    hash_inputs: bool = False,
    check: bool = False,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> ConvertResult:
    """Write the merged checkpoint at ``merged`` in the layout of current transformers at ``target``.

    The result has the weights that ``apply_delta`` gives with ``layout="transformers"``. ``recipe`` and ``recipe_file`` say which
    model it is, where its manifest does not. The other options are those of ``apply_delta``.

    Raises as ``convert_checkpoint`` does, and ``CheckFailed`` with ``check``.
    """
    wanted = Wanted(dtype=dtype, max_shard_size=max_shard_size, layout=TRANSFORMERS, vision_tower=vision_tower)
    how = Settings("cpu", workers, overwrite, strict, check=check)
    known = find_recipe(recipe, recipe_file)
    return _copy(Operation.EXPORT, merged, target, wanted, known, how, hub, report, hash_inputs=hash_inputs)


def _copy(
    operation: Operation,
    given: Given,
    target: PathLike,
    wanted: Wanted,
    recipe: Recipe | None,
    settings: Settings,
    hub: HubOptions | None,
    report: Report | None,
    *,
    hash_inputs: bool,
) -> ConvertResult:
    began = time.monotonic()
    report = Report() if report is None else report
    opener = partial(
        prepare_copy,
        operation,
        given,
        target,
        wanted,
        recipe=recipe,
        hub=hub,
        hash_workers=settings.threads if hash_inputs else None,
        overwrite=settings.overwrite,
        report=report,
    )
    job, published = perform(opener, settings, report, began)
    return ConvertResult(target=str(job.place.target), **vars(published))


@contextmanager
def prepare_copy(
    operation: Operation,
    given: Given,
    target: PathLike,
    wanted: Wanted = USUAL,
    *,
    recipe: Recipe | None = None,
    hub: HubOptions | None = None,
    hash_workers: int | None = None,
    overwrite: bool | None = None,
    report: Report | None = None,
) -> Iterator[Prepared]:
    """Open a checkpoint and plan its copy; ``hash_workers`` and ``overwrite`` are as for ``prepare``.

    Without a ``recipe``, that of the checkpoint's own manifest is taken. Raises as ``export_checkpoint`` does.
    """
    report, role = Report() if report is None else report, operation.primary
    for name, path in ((role, given), ("target", target)):
        if not isinstance(path, Source) and not os.fspath(path):
            raise UsageError(f"{name} is an empty path", remedy="is a variable unset?")
    place = locate_target(target)
    refuse_inputs(place, [*paths_among([given]), *wanted.paths])
    if overwrite is not None:
        refuse_foreign_content(place, overwrite=overwrite)
    with (
        StagingUnpacker(place) as unpacking,
        located([(role, given)], hub, report) as (at,),
        open_checkpoint(at, role, unpacking, report) as source,
    ):
        matching = copies(source.tensors, operation)
        for text in source.notes:
            report.warn(text)
        hashes = collect_hashes({role: source}, hash_workers, report)
        stated = manifest_of_if_any(source)
        identity = identify(source, hashes.files[role], read=role in hashes.read, stated=lambda _: stated)
        report.note(f"{role:15} {identity.text}")
        # That which speaks of exactly these tensors; it is held against their bytes when they were read.
        manifest = stated if stated is not None and lists_same_tensors(stated, source) else None
        if recipe is None and manifest is not None and manifest.recipe:
            recipe = _named(manifest.recipe, report)
        stored = DTYPES[wanted.dtype] if wanted.dtype is not None else _dtype_of(matching)
        same = manifest is not None and {row[0] for row in manifest.tensors.values()} == {stored}
        # What a merge wrote in another dtype than it computed in goes through that one again, and so does its tower.
        compute = manifest.compute_dtype if same and manifest is not None else stored
        compute = compute if compute in TORCH_NAMES else stored
        with tower_for(matching, source.path, wanted, recipe, hub, unpacking, hash_workers, report) as tower:
            notice = notice_of(NOTICE_OF_A_COPY, recipe)
            if recipe is None and manifest is not None:
                notice += _carried(source)
            companions = _companions(source, matching, TORCH_NAMES[stored], notice, ours=manifest is not None)
            laid = laid_out(matching, companions, source, wanted, TORCH_NAMES[stored], recipe, tower)
            plan = make_plan(
                laid.matching,
                Options(compute, stored, wanted.limit, wanted.layout, wanted.container),
                None,
                record_of(source, matching.dropped_primary),
                companions_of(laid.companions),
                operation,
                tower=record_of(tower.checkpoint, tower.dropped) if tower else None,
            )
            refuse_unreadable(plan, str(source.path))
            checkpoints = {role: source} | ({VISION_TOWER: tower.checkpoint} if tower else {})
            place.refuse_opened(weights.file.path for each in checkpoints.values() for weights in each.files)
            yield Prepared(
                checkpoints,
                hashes | tower.hashes if tower else hashes,
                recipe,
                laid,
                plan,
                place,
                unpacking,
                expected=manifest.content_digest if manifest is not None and same else None,
                parents=manifest.origins if manifest is not None else {},
            )


def _carried(source: Checkpoint) -> str:
    """Return what the notice of one of our folders says besides our own words: it goes on with the weights."""
    try:
        text = source.directory.read_companion(NOTICE_NAME, MAX_NOTICE).decode()
    except (InputOutputError, MalformedInput, UnicodeDecodeError):
        return ""
    for ours in (NOTICE, NOTICE_OF_A_DELTA, NOTICE_OF_A_COPY):
        text = text.removeprefix(ours)
    return text


def _named(name: str, report: Report) -> Recipe | None:
    """Return the recipe by which a checkpoint was merged, if it is one of ours."""
    try:
        recipe = load(name)
    except UsageError:
        report.warn(f"the manifest names the recipe {name}, which is not known here: give it with --recipe")
        return None
    report.note(f"{'recipe':15} {name} (as the manifest says)")
    show_notice(recipe, report)
    return recipe


def _dtype_of(matching: Matching) -> str:
    """Return the one dtype of all weights. Raises ``UsageError`` when they have several, or one that is not written."""
    found = sorted({match.primary.dtype for match in matching.matches})
    if len(found) > 1 or found[0] not in TORCH_NAMES:
        expected = ", ".join(DTYPES)
        raise UsageError(
            "which dtype is wanted is not clear", found=" and ".join(found), expected=expected, remedy="say --dtype"
        )
    return found[0]


def _companions(source: Checkpoint, matching: Matching, dtype: str, notice: str, *, ours: bool) -> Companions:
    if source.container == CONTAINER:
        specs = {match.primary.name: match.primary for match in matching.matches}
        files = meta_companions(source.directory, specs, dtype)
        return Companions({NOTICE_NAME: notice.encode(), **files}, ())
    if source.is_lone_file:
        return Companions({NOTICE_NAME: notice.encode()}, ())
    return read_companions(source.directory, source.names, dtype, source.role, notice, ours=ours)
