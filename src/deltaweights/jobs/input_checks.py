"""Checks of the inputs against the recipe, known hashes, and samples of the weights."""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.samples import same_weights, sample_digests
from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import Mismatch
from deltaweights.hub.snapshot import snapshot_at
from deltaweights.jobs.added_rows import added_rows
from deltaweights.jobs.findings import ADD_ANYWAY, ORIGINAL_SCRIPT, are_whole
from deltaweights.jobs.finished_model import is_finished_model
from deltaweights.jobs.request import InputRequest, or_allow
from deltaweights.jobs.swapped import is_small
from deltaweights.jobs.whole_tensors import sums_fail, whole_tensors
from deltaweights.merge.operation import Operation
from deltaweights.merge.rules import Matching
from deltaweights.recipes.catalogue import recipe_of_repo
from deltaweights.recipes.identify import Identity, generation_of_config, ties_head
from deltaweights.recipes.incomplete import EMBEDDING, HEAD
from deltaweights.recipes.models import known_file, model
from deltaweights.recipes.pair_check import REMEDY, leave_rows_out, rows
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.weight_scale import AS_LARGE, relative_scale, typical_weight
from deltaweights.report import Report
from deltaweights.util.text import counted


def check_base_identity(
    base: Checkpoint,
    hashes: Mapping[str, str],
    identity: Identity,
    recipe: Recipe,
    report: Report,
    *,
    allow: bool | None,
) -> None:
    """Compare the base with the recipe's: raise ``Mismatch`` for another known model, warn of unknown files."""
    wanted = model(recipe.base_model) if recipe.base_model is not None else None
    title = wanted.title if wanted is not None else f"the base of recipe {recipe.name}"
    unlisted = _unlisted(hashes, recipe)
    if hashes and not unlisted:
        return
    if wanted is not None and identity.model is not None and identity.model != wanted.key:
        problem = f"this is {model(identity.model).title}, not {title}"
        if not allow:
            remedy = f"use {title}{or_allow(allow)}"
            raise Mismatch(
                problem, where=base.path, found=identity.text, expected=title, remedy=remedy, code=ErrorCode.WRONG_BASE
            )
        report.warn(f"{base.path}: {problem}")
        return
    if unlisted and (wanted is not None or recipe.base_files):
        report.warn(f"{base.path / unlisted[0]}: its sha256 is not a known one of {title}: another copy, or damaged")
    hint = generation_of_config(base)
    if wanted is not None and identity.model is None and hint not in {None, wanted.generation}:
        report.warn(f"{base.path}: config.json is that of {hint}, and the base should be {title}")


def _unlisted(hashes: Mapping[str, str], recipe: Recipe) -> list[str]:
    """Return the names of the files that are not known files of the recipe's base."""
    accepted = {file.sha256 for file in recipe.base_files}
    known = {name: known_file(sha256) for name, sha256 in hashes.items()}
    ours = {name for name, found in known.items() if found is not None and found[0].key == recipe.base_model}
    return sorted(name for name, sha256 in hashes.items() if sha256 not in accepted and name not in ours)


def check_delta_files(delta: Checkpoint, hashes: Mapping[str, str], recipe: Recipe, report: Report) -> None:
    """Warn of files and commits that the recipe does not list: they may be another copy."""
    known = {file.name for file in recipe.delta.files}
    listed = {file.sha256 for file in recipe.delta.files}
    for name, sha256 in sorted(hashes.items()):
        if name in known and sha256 not in listed:
            report.warn(
                f"{delta.path / name}: sha256 {sha256} is not that of recipe {recipe.name}: another copy, or damaged"
            )
    snapshot, revision = snapshot_at(delta.path), recipe.delta.revision
    if snapshot is None or revision is None or (hashes and listed >= set(hashes.values())):
        return
    if recipe_of_repo(snapshot.repo) == recipe.name and not snapshot.commit.startswith(revision):
        report.warn(f"{delta.path}: is of commit {snapshot.commit}, recipe {recipe.name} knows {revision}")


def refuse_no_delta(
    base: Checkpoint,
    primary: Checkpoint,
    matching: Matching,
    request: InputRequest,
    report: Report,
    *,
    compute: str,
    stated: bool,
    made: bool,
) -> None:
    """Raise ``Mismatch`` for a primary that is the base itself, and for a finished model in place of a delta.

    A delta that is only as large as a model is a warning unless ``stated``: the recipe states the arithmetic of the delta. Only
    tensors of both checkpoints are compared: buffers, new rows and tensors of the primary alone do not tell two checkpoints apart.
    Raises ``Mismatch``, too, for a delta that is small but for tensors that are stored whole, and for a base with rows that the
    delta was not made from; ``compute`` is a dtype. ``made``: the delta's manifest says that it is one, which samples do not doubt.
    """
    allow, one, other = request.allow_other_base, base.model_tensors, primary.model_tensors
    shared = [name for name, spec in matching.primary_specs.items() if spec.count and _alike(one.get(name), spec)]
    if shared and same_weights(one, other, shared):
        _refuse_same(base, primary, request, report)
        return
    share = None if request.operation is not Operation.APPLY or made else relative_scale(one, other)
    if share is None:
        return
    if share < AS_LARGE:
        _refuse_odd_parts(base, primary, matching, request, report, compute)
        return
    found = f"weights {share:.2g} times as large as the base's"
    problem = "likely already a merged model, not a delta"
    if not allow and (stated or is_finished_model(base.tensors, primary.tensors, matching)):
        remedy = f"give the delta itself{or_allow(allow)}"
        raise Mismatch(
            problem,
            where=primary.path,
            found=found,
            expected="a small part of them",
            remedy=remedy,
            code=ErrorCode.ALREADY_MERGED,
        )
    report.warn(f"{primary.path}: {problem}: found {found}, expected a small part of them")


def _refuse_same(base: Checkpoint, primary: Checkpoint, request: InputRequest, report: Report) -> None:
    """Raise ``Mismatch`` for two inputs that hold the same weights; in ``make`` it is a warning, as where it is allowed."""
    operation, allow = request.operation, request.allow_other_base
    problem = f"base and {operation.primary} hold the same weights, as far as samples tell"
    if operation is Operation.MAKE:
        report.warn(f"{primary.path}: {problem}: the delta will be zero where they meet")
        return
    if allow:
        report.warn(f"{primary.path}: {problem}")
        return
    of_delta = is_small(typical_weight(base.model_tensors.values()))  # then both are the delta
    where, remedy = (base.path, "base") if of_delta else (primary.path, "delta")
    code = ErrorCode.NOT_A_MODEL if of_delta else ErrorCode.NOT_A_DELTA
    raise Mismatch(problem, where=where, remedy=f"give the {remedy} itself{or_allow(allow)}", code=code)


def _refuse_odd_parts(
    base: Checkpoint, primary: Checkpoint, matching: Matching, request: InputRequest, report: Report, compute: str
) -> None:
    """Raise ``Mismatch`` for a delta that is small but for whole tensors, and for a base with rows that are not the delta's."""
    allow, whole = request.allow_other_base, whole_tensors(base.tensors, primary.tensors, matching, compute)
    if whole and not allow and set(whole) <= set(PROJECTOR):
        _refuse_merged_base(base, primary, matching, request, compute)
    if whole and not allow:
        remedy = f"{ORIGINAL_SCRIPT}{'' if allow is None else f'; {ADD_ANYWAY}'}"
        raise Mismatch(are_whole(whole), where=primary.path, remedy=remedy, code=ErrorCode.STORED_WHOLE)
    if whole:
        report.warn(f"{primary.path}: {are_whole(whole)}: the base is added to them all the same")
    else:
        _refuse_added_rows(base, primary, matching, request, report, compute)


def _refuse_merged_base(
    base: Checkpoint, primary: Checkpoint, matching: Matching, request: InputRequest, compute: str
) -> None:
    """Raise ``Mismatch`` for a base with a projector that refutes it: it is already merged, and the delta is as it should be."""
    if sums_fail(base.tensors, primary.tensors, matching, compute):
        problem, found = "the base is likely already merged, or another LLaVA", "a projector, and sums that refute it"
        remedy = f"{REMEDY}{or_allow(request.allow_other_base)}"
        raise Mismatch(problem, where=base.path, found=found, remedy=remedy, code=ErrorCode.WRONG_BASE)


def _refuse_added_rows(
    base: Checkpoint, primary: Checkpoint, matching: Matching, request: InputRequest, report: Report, compute: str
) -> None:
    """Raise ``Mismatch`` for a base whose last rows would be added to whole rows of the delta: its new tokens."""
    count, allow = added_rows(base.tensors, primary.tensors, matching, compute), request.allow_other_base
    if not count:
        return
    found = rows({name: tensor.spec for name, tensor in base.model_tensors.items()})
    problem = (
        f"the base has {counted(count, 'added row')}, such as that of [PAD], where the delta has tokens of its own"
    )
    if not allow:
        remedy = f"{leave_rows_out(found - count)}{or_allow(allow)}"
        raise Mismatch(
            problem,
            where=base.path,
            found=f"{found} rows",
            expected=found - count,
            remedy=remedy,
            code=ErrorCode.WRONG_BASE,
        )
    report.warn(f"{base.path}: {problem}")


def _alike(tensor: LazyTensor | None, spec: TensorSpec) -> bool:
    return tensor is not None and (tensor.spec.dtype, tensor.spec.shape) == (spec.dtype, spec.shape)


def check_ties(checkpoint: Checkpoint, report: Report) -> None:
    """Warn where config.json ties embedding and head, and they are stored, and differ: a loader has one of them in both places."""
    tensors = checkpoint.model_tensors
    if not ties_head(checkpoint) or EMBEDDING not in tensors or HEAD not in tensors:
        return
    embedding, head = tensors[EMBEDDING], tensors[HEAD]
    same = (head.spec.dtype, head.spec.shape) == (embedding.spec.dtype, embedding.spec.shape)
    if not same or len({*sample_digests({EMBEDDING: embedding, HEAD: head}).values()}) > 1:
        stored = f"{EMBEDDING} and {HEAD} are stored, and differ: a loader would use one of them as both"
        report.warn(f"{checkpoint.path}: config.json says tie_word_embeddings: true, but {stored}")
