"""What an input's own manifest states, held against what was asked for, and against the other input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, Mismatch, UsageError
from deltaweights.jobs.request import InputRequest, or_allow
from deltaweights.manifest.base_claim import base_claim
from deltaweights.manifest.digest import content_digest, tensor_digest, tensor_hasher
from deltaweights.manifest.input_manifest import lists_same_tensors
from deltaweights.manifest.parse import InputTensors, Manifest, specs_digest
from deltaweights.manifest.records import MANIFEST
from deltaweights.merge.choices import DIGITS, DTYPES, TORCH_NAMES, TRANSFORMERS
from deltaweights.merge.operation import Fate, NewRows, Operation
from deltaweights.merge.rules import Dropped, Matching
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report
from deltaweights.util.text import counted

NEW_ROWS = {
    Fate.SUBTRACT_BLOCK.value: NewRows.COPY,
    Fate.SUBTRACT_ZERO_ROWS.value: NewRows.ZERO,
    Fate.SUBTRACT_MEAN_ROWS.value: NewRows.MEAN,
}
"""What became of new rows when a delta was made, by the fate of its tensors."""


@dataclass(frozen=True, kw_only=True)
class MadeDelta:
    """What the manifest of a delta that deltaweights made states. Dtypes are torch's names.

    ``recipe`` and ``recipe_digest`` are those it was made by, empty without one. ``base`` is what is stated of the base's tensors,
    None without them; ``origin`` where the base was from, with their content digest. ``stored`` differs from ``compute`` where the
    differences were rounded once more. ``target`` is the dtype of the model that it was made from, ``new_rows`` what its new rows
    were subtracted from; both None where that is not known, or there is none. ``lost`` counts the weights that come back other than
    in the target; None where that is not known.
    """

    recipe: str
    recipe_digest: str
    origin: Mapping[str, str]
    base: InputTensors | None
    compute: str
    stored: str
    target: str | None
    new_rows: NewRows | None
    lost: int | None


def made_delta(delta: Checkpoint, manifest: Manifest | None, report: Report) -> MadeDelta | None:
    """Return what the delta's ``manifest`` states, if deltaweights made it; warn of one that is about other tensors."""
    if manifest is None or manifest.kind != "delta" or manifest.compute_dtype not in TORCH_NAMES:
        return None
    if not lists_same_tensors(manifest, delta):
        report.warn(
            f"{delta.path}: its {MANIFEST} is that of other tensors, so it is not used: was the delta saved anew?"
        )
        return None
    dtypes = manifest.read["target"].dtypes if "target" in manifest.read else frozenset()
    target = next(iter(dtypes)) if len(dtypes) == 1 else ""
    rows = [NEW_ROWS[fate] for fate in sorted(manifest.fates) if fate in NEW_ROWS]
    return MadeDelta(
        recipe=manifest.recipe,
        recipe_digest=manifest.recipe_digest,
        origin=manifest.origins.get("base", {}),
        base=manifest.read.get("base"),
        compute=TORCH_NAMES[manifest.compute_dtype],
        stored=TORCH_NAMES.get(manifest.dtype, manifest.dtype),
        target=TORCH_NAMES.get(target),
        new_rows=rows[0] if rows else None,
        lost=_lost(manifest, target),
    )


def _lost(manifest: Manifest, target: str) -> int | None:
    findings = manifest.findings
    counts = findings.inexact if target == manifest.compute_dtype else findings.not_restored
    return None if counts is None else sum(counts.values())


def arithmetic_text(made: MadeDelta, stored: str) -> str:
    """Return how such a delta is added, and ``stored``, a dtype, and what of the target did not survive its making."""
    digits = DIGITS[DTYPES[made.target]] if made.target else 0
    lost = f"; the target's {made.target} weights were rounded to it" if digits > DIGITS[DTYPES[made.compute]] else ""
    if made.lost and stored == (made.target or made.compute):
        lost = f"{lost}; {counted(made.lost, 'weight')} will not be as in the target"
    return f"{made.compute}, stored as {stored}, as the delta's manifest says{lost}"


def refuse_contradiction(
    made: MadeDelta, delta: Checkpoint, given: str | None, recipe: Recipe | None, report: Report
) -> None:
    """Raise ``UsageError`` for a dtype, or a recipe, by which the delta was not made."""
    where = f"delta {delta.path}"
    if given not in {None, made.compute}:
        problem, remedy = f"its {MANIFEST} says that it was made in another dtype", "leave --compute-dtype out"
        raise UsageError(
            problem, where=where, found=given, expected=made.compute, remedy=remedy, code=ErrorCode.OTHER_DTYPE
        )
    if recipe is None:
        return
    warn_of_other_recipe(made.recipe, made.recipe_digest, recipe, delta, report)
    found = {"adds in": recipe.compute_dtype, "has new_rows": recipe.new_rows}
    expected = {"adds in": made.compute, "has new_rows": made.new_rows.value if made.new_rows else None}
    for what, value in found.items():
        if expected[what] not in {None, value}:
            problem = f"its {MANIFEST} contradicts the recipe {recipe.name}, which {what} {value}"
            raise UsageError(problem, where=where, expected=expected[what], remedy="leave the recipe out")


def warn_of_other_recipe(stated: str, digest: str, recipe: Recipe, checkpoint: Checkpoint, report: Report) -> None:
    """Warn where a manifest names another recipe, which decides something else, than the one that is used."""
    if stated and stated != recipe.name and digest != recipe.digest:
        says = f"its {MANIFEST} says that it was made by the recipe {stated}"
        report.warn(
            f"{checkpoint.role} {checkpoint.path}: {says}, and {recipe.name} is used: leave --recipe out unless you know why"
        )


def digest_of_read(manifest: Manifest | None, checkpoint: Checkpoint, dropped: Iterable[Dropped]) -> str | None:
    """Return the content digest that its own ``manifest`` states of the tensors of an input that have a part in the result."""
    if manifest is None or not lists_same_tensors(manifest, checkpoint):
        return None
    unread = {each.spec.name for each in dropped}
    return content_digest((name, *manifest.tensors[name]) for name in sorted(manifest.tensors) if name not in unread)


def refuse_changed_inputs(stated: Mapping[str, str], read: Mapping[str, str]) -> None:
    """Raise ``CheckFailed`` where the content digest of what was ``read`` of an input, by role, is not that of its own manifest."""
    for role, digest in stated.items():
        if read[role] != digest:
            problem = f"the {role} is not what its own {MANIFEST} says"
            # --expect, since a manifest that was made for other weights is no problem of theirs without.
            remedy = (
                f"find out where with deltaweights verify --expect {digest}; "
                f"or remove its {MANIFEST}, if you changed the weights yourself"
            )
            raise CheckFailed(problem, found=read[role], expected=digest, remedy=remedy, code=ErrorCode.NOT_AS_RECORDED)


def refuse_wrong_kind(checkpoint: Checkpoint, manifest: Manifest | None, request: InputRequest, report: Report) -> None:
    """Raise ``Mismatch`` for an input that its own ``manifest`` states to be of a kind that the operation cannot use.

    A merge in place of a delta is only a warning where the user allows another base.
    """
    if manifest is None or not lists_same_tensors(manifest, checkpoint):
        return
    claim = base_claim(manifest)
    if claim is not None and claim.warning is not None and request.operation in {Operation.APPLY, Operation.MAKE}:
        report.warn(f"{checkpoint.role} {checkpoint.path}: {claim.warning}")
    role, says = checkpoint.role, f"deltaweights made it (its {MANIFEST})"
    if role == "delta" and manifest.kind == "merge":
        by = f" by recipe {manifest.recipe}" if manifest.recipe else ""
        problem, found = "already a merged model, not a delta", f"a merge{by}: {says}"
        if not request.allow_other_base:
            remedy = f"use it as it is, or give the delta itself{or_allow(request.allow_other_base)}"
            raise Mismatch(problem, where=checkpoint.path, found=found, remedy=remedy, code=ErrorCode.ALREADY_MERGED)
        report.warn(f"{checkpoint.path}: {problem}: found {found}")
    elif manifest.layout == TRANSFORMERS and request.base is not None:
        problem = f"the {role} is in the layout of current transformers, in which {says}"
        remedy = f"give the {role} in the original layout: make it again without --layout transformers"
        raise Mismatch(problem, where=checkpoint.path, remedy=remedy, code=ErrorCode.OTHER_TENSORS)
    elif role in {"target", "merged"} and manifest.kind == "delta":
        problem, remedy = "is a delta, not a model", f"give the model itself as the {role}"
        raise Mismatch(
            problem, where=checkpoint.path, found=f"a delta: {says}", remedy=remedy, code=ErrorCode.NOT_A_MODEL
        )


def stated_base(
    made: MadeDelta, base: Checkpoint, matching: Matching, request: InputRequest, report: Report
) -> str | None:
    """Return the content digest that the base must have; None where it can differ for the right base, stored in another dtype.

    Raises ``Mismatch`` when a few small tensors already have other digests, unless the user allows another base.
    """
    stated, digest = made.base, made.origin.get("tensors_digest")
    dropped = {each.spec.name for each in matching.dropped_base}
    used = [base.tensors[name].spec for name in sorted(base.tensors) if name not in dropped]
    if stated is None or digest is None or stated.specs != specs_digest((s.name, s.dtype, s.shape) for s in used):
        return None
    name = _differing(stated, base.tensors)
    if name is not None:
        error = other_base(base.path, made.origin, name, allow=request.allow_other_base)
        if not request.allow_other_base:
            raise error
        report.warn(f"{base.path}: tensor {name}: {error.problem}")
    return digest


def other_base(where: object, origin: Mapping[str, str], tensor: str | None = None, *, allow: bool | None) -> Mismatch:
    """Return the error for a base that is not the one of the delta's manifest."""
    title = f" ({origin['repo']}{'@' + origin['commit'] if 'commit' in origin else ''})" if "repo" in origin else ""
    return Mismatch(
        "not the base that the delta was made from",
        where=str(where),
        tensor=tensor,
        found="other weights",
        expected=f"those whose digest the delta's {MANIFEST} states{title}",
        remedy=f"use that base{or_allow(allow)}",
        code=ErrorCode.WRONG_BASE,
    )


def _differing(stated: InputTensors, tensors: Mapping[str, LazyTensor]) -> str | None:
    """Return the first small tensor whose digest is not the stated one. Raises ``InputOutputError``."""
    for name, (dtype, shape, digest) in stated.small.items():
        spec = tensors[name].spec if name in tensors else None
        if spec is None or (spec.dtype, spec.shape) != (dtype, shape):
            continue
        data = memoryview(bytearray(spec.nbytes))
        tensors[name].source.read_into(data, 0)
        hasher = tensor_hasher()
        hasher.update(data)
        if tensor_digest(hasher) != digest:
            return name
    return None
