"""Open the inputs of a request, hash and match them, and compare them with what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from deltaweights.checkpoint.folder import Checkpoint, Unpacker, open_checkpoint
from deltaweights.errors import Mismatch, UsageError
from deltaweights.hub.ids import ModelSource
from deltaweights.hub.locate import located
from deltaweights.jobs.arithmetic_evidence import warn_of_rounded_target
from deltaweights.jobs.base_facts import SampledInputs, facts_of_base
from deltaweights.jobs.findings import BaseFacts
from deltaweights.jobs.input_checks import check_base_identity, check_delta_files, check_ties, refuse_no_delta
from deltaweights.jobs.recognised_recipe import recipe_of_delta, recipe_of_manifest, recipe_of_repository, show_notice
from deltaweights.jobs.request import InputRequest, Place, compute_dtype_of
from deltaweights.jobs.source_proof import judge_source
from deltaweights.jobs.stated_facts import (
    MadeDelta,
    arithmetic_text,
    digest_of_read,
    made_delta,
    refuse_contradiction,
    refuse_wrong_kind,
    warn_of_other_recipe,
)
from deltaweights.jobs.swapped import is_small, refuse_delta_as_base, refuse_swapped
from deltaweights.manifest.input_manifest import lists_same_tensors, manifest_of_if_any, with_source
from deltaweights.manifest.parse import Manifest
from deltaweights.merge.choices import DTYPES, TORCH_NAMES
from deltaweights.merge.operation import NewRows, Operation
from deltaweights.merge.rules import LLAVA_RULES, Matching, MatchRules, copy_all, match_tensors, tied_twins
from deltaweights.recipes.hub_sources import base_source, has_base_source
from deltaweights.recipes.identify import Identity, identify, ties_head
from deltaweights.recipes.input_hashes import InputHashes, collect_hashes
from deltaweights.recipes.pair_check import check_pair
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.shell import refuse_shell
from deltaweights.report import Report

TELL_ARITHMETIC = "fetch it again, or give --compute-dtype, the dtype in which the delta was made"
LEFT_OUT = "fetch it again, or remove it: the copy then says nothing of how it was made"
"""What to do about a damaged manifest of ours."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Open checkpoints that belong together, judging by headers, known hashes and samples.

    ``identities`` are by role. ``base`` is None when the primary is copied. ``recipe`` is None where the plain rules apply.
    ``compute`` and ``stored`` are safetensors dtypes. ``manifest`` is the primary's own, when it lists exactly the primary's
    tensors, ``facts`` what is then known of how it was made; ``expected`` is the content digest that the result must then have,
    unless its dtypes change. ``digests`` are the content digests that the manifests of base and primary state of what is read of
    them, by role. ``of_base`` says how the sums are judged, ``powerless`` why they would prove no base.
    """

    base: Checkpoint | None
    primary: Checkpoint
    hashes: InputHashes
    matching: Matching
    recipe: Recipe | None
    compute: str
    stored: str
    identities: Mapping[str, Identity]
    manifest: Manifest | None = None
    facts: Manifest | None = None
    expected: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    of_base: BaseFacts = field(default_factory=BaseFacts)
    powerless: str = ""


@contextmanager
def open_inputs(request: InputRequest, unpacker: Unpacker | None, report: Report) -> Iterator[Inputs]:
    """Open and identify the inputs; only archives that must be unpacked are written.

    Raises ``UsageError``, ``MalformedInput``, ``Mismatch`` and ``InputOutputError``.
    """
    opened = _open_copied(request, unpacker, report) if request.base is None else open_pair(request, unpacker, report)
    with opened as inputs:
        yield inputs


@contextmanager
def open_pair(request: InputRequest, unpacker: Unpacker | None, report: Report) -> Iterator[Inputs]:
    """Open and match base and primary. Raises as ``open_inputs`` does."""
    operation, recipe = request.operation, request.recipe
    if recipe is None and operation is Operation.APPLY:
        recipe = recipe_of_repository(request.primary, report)
    elif recipe is not None:
        show_notice(recipe, report)  # before anything is downloaded
    assert request.base is not None  # noqa: S101  (this tells mypy)
    places = [("base", _pinned(request.base, recipe)), (operation.primary, request.primary)]
    with (
        located(places, request.hub, report, keep=True) as (base_at, primary_at),
        open_checkpoint(base_at, "base", unpacker, report) as base,
        open_checkpoint(primary_at, operation.primary, unpacker, report) as primary,
    ):
        stated_by = {each.role: _stated(each, request, report) for each in (base, primary)}
        for checkpoint in (base, primary):
            refuse_shell(checkpoint)
            refuse_wrong_kind(checkpoint, stated_by[checkpoint.role], request, report)
        hashes = collect_hashes({base.role: base, primary.role: primary}, request.hash_workers, report)
        made = made_delta(primary, stated_by[primary.role], report) if operation is Operation.APPLY else None
        if recipe is None and operation is Operation.APPLY:
            recipe = recipe_of_delta(primary, hashes.files[primary.role], made, report)
        if made is not None:
            refuse_contradiction(made, primary, request.compute_dtype, recipe, report)
        matching = _match(base, primary, operation, recipe)
        _report_pair(base, primary, matching, report)
        compute = made.compute if made is not None else compute_dtype_of(request.compute_dtype, recipe)
        # Without a recipe the result is the model that the delta was made from; with one, that of the maker's script.
        stored = request.dtype or (made.target if made is not None and recipe is None else None) or compute
        inputs = Inputs(
            base=base,
            primary=primary,
            hashes=hashes,
            identities={},
            matching=matching,
            recipe=recipe,
            compute=DTYPES[compute],
            stored=DTYPES[stored],
        )
        yield _examined(inputs, made, stated_by, request, report)


def _examined(
    inputs: Inputs, made: MadeDelta | None, stated_by: dict[str, Manifest | None], request: InputRequest, report: Report
) -> Inputs:
    """Identify both, and refuse what is not a base and its delta. ``stated_by`` has the manifests by role, and is emptied."""
    base, primary, recipe, hashes, matching = inputs.base, inputs.primary, inputs.recipe, inputs.hashes, inputs.matching
    assert base is not None  # noqa: S101  (this tells mypy)
    identity = _identify(base, hashes, stated_by, report)
    if request.operation is Operation.APPLY and not request.allow_other_base and is_small(identity.typical):
        refuse_swapped(base, primary)
    if request.operation is Operation.APPLY:
        refuse_delta_as_base(base, identity, request.allow_other_base)
    if recipe is not None:
        check_base_identity(base, hashes.files[base.role], identity, recipe, report, allow=request.allow_other_base)
    of_primary = _identify(primary, hashes, stated_by, report)
    if made is not None:
        report.note(f"{'arithmetic':15} {arithmetic_text(made, TORCH_NAMES[inputs.stored])}")
    digests = {}
    for checkpoint, dropped in ((base, matching.dropped_base), (primary, matching.dropped_primary)):
        digest = digest_of_read(stated_by[checkpoint.role], checkpoint, dropped)
        if digest is not None:
            digests[checkpoint.role] = digest
    stated_by.clear()  # manifests may be large, and the merge comes yet
    if recipe is not None and request.operation is Operation.APPLY:
        check_delta_files(primary, hashes.files[primary.role], recipe, report)
    stated = recipe is not None and recipe.stated
    refuse_no_delta(
        base, primary, matching, request, report, compute=inputs.compute, stated=stated, made=made is not None
    )
    of_base, powerless = BaseFacts(stated=stated), ""
    if request.operation is Operation.APPLY:
        pair = SampledInputs(base=base, delta=primary, matching=matching, compute=inputs.compute)
        of_base, powerless = facts_of_base(pair, made, request, report, stated=stated)
    elif recipe is None:
        warn_of_rounded_target(primary, matching, inputs.compute, report)
    identities = {base.role: identity, primary.role: of_primary}
    return replace(inputs, identities=identities, of_base=of_base, powerless=powerless, digests=digests)


def _stated(checkpoint: Checkpoint, request: InputRequest, report: Report) -> Manifest | None:
    """Return the manifest of an input of a pair; that of a delta is needed unless the user says how it was made."""
    told = request.compute_dtype is not None or request.recipe is not None
    needed = TELL_ARITHMETIC if checkpoint.role == "delta" and not told else None
    return with_source(checkpoint, manifest_of_if_any(checkpoint, report, needed=needed), report)


def _report_pair(base: Checkpoint, primary: Checkpoint, matching: Matching, report: Report) -> None:
    """Report what opening and matching the two found."""
    for text in (*base.notes, *primary.notes, *matching.warnings):
        report.warn(text)
    for checkpoint in (base, primary):
        check_ties(checkpoint, report)
        _note_naming(checkpoint, report)
    for match in matching.matches:
        if match.is_tied(base.naming):
            report.note(f"{base.role:15} tied: its {match.base_name} is its {match.primary.name}, too (config.json)")


def _match(base: Checkpoint, primary: Checkpoint, operation: Operation, recipe: Recipe | None) -> Matching:
    """Match the tensors by the recipe's rules, or the plain ones. Raises ``Mismatch``."""
    rules = LLAVA_RULES if recipe is None else MatchRules(recipe.delta_only, NewRows(recipe.new_rows))
    try:
        if recipe is not None:
            check_pair(recipe, base, primary)
        # Of a Hub repository, config.json is fetched only if it matters: what is wrong with the pair is said before that.
        one, other = base.model_tensors, primary.model_tensors
        tied = bool(tied_twins(one, other)) and ties_head(base)
        return match_tensors(one, other, operation, rules, tied=tied, naming=primary.naming)
    except Mismatch:
        if operation is Operation.APPLY:
            refuse_swapped(base, primary)
        raise


@contextmanager
def _open_copied(request: InputRequest, unpacker: Unpacker | None, report: Report) -> Iterator[Inputs]:
    """Open a checkpoint to copy. The recipe is that of the request, else that of the checkpoint's own manifest."""
    role, recipe = request.operation.primary, request.recipe
    with (
        located([(role, request.primary)], request.hub, report, keep=True) as (at,),
        open_checkpoint(at, role, unpacker, report) as source,
    ):
        refuse_shell(source)
        matching = copy_all(source.model_tensors, request.operation, source.naming)
        for text in source.notes:
            report.warn(text)
        check_ties(source, report)
        _note_naming(source, report)
        hashes = collect_hashes({role: source}, request.hash_workers, report)
        own = manifest_of_if_any(source, report, needed=LEFT_OUT)
        stated = with_source(source, own, report)
        refuse_wrong_kind(source, stated, request, report)
        identity = identify(source, hashes.files[role], read=role in hashes.read, stated=lambda _: stated)
        report.note(f"{role:15} {identity.text}")
        # The bytes are compared with this manifest as they are read.
        manifest = own if own is not None and lists_same_tensors(own, source) else None
        facts = stated if manifest is not None else None
        allowed = request.allow_refuted_source
        judge_source(source, own, request.operation, report, same=manifest is not None, allowed=allowed)
        if recipe is None and facts is not None and facts.recipe:
            recipe = recipe_of_manifest(facts.recipe, report)
        elif recipe is not None and facts is not None:
            warn_of_other_recipe(facts.recipe, facts.recipe_digest, recipe, source, report)
        compute = stored = DTYPES[request.dtype] if request.dtype is not None else _dtype_of(matching)
        expected = None
        if manifest is not None and {row[0] for row in manifest.tensors.values()} == {stored}:
            expected = manifest.content_digest
            if manifest.compute_dtype in TORCH_NAMES:
                # Where the merge stored another dtype than it computed in, the copy is cast through both again.
                compute = manifest.compute_dtype
        yield Inputs(
            base=None,
            primary=source,
            hashes=hashes,
            identities={role: identity},
            matching=matching,
            recipe=recipe,
            compute=compute,
            stored=stored,
            manifest=manifest,
            facts=facts,
            expected=expected,
        )


def _dtype_of(matching: Matching) -> str:
    """Return the one dtype of all weights. Raises ``UsageError`` when they have several, or one that cannot be written."""
    found = sorted({match.primary.dtype for match in matching.matches})
    if len(found) > 1 or found[0] not in TORCH_NAMES:
        raise UsageError(
            "the dtype to write is not clear",
            found=" and ".join(found),
            expected=", ".join(DTYPES),
            remedy="give --dtype",
        )
    return found[0]


def _identify(
    checkpoint: Checkpoint, hashes: InputHashes, stated: Mapping[str, Manifest | None], report: Report
) -> Identity:
    role = checkpoint.role
    identity = identify(checkpoint, hashes.files[role], read=role in hashes.read, stated=lambda _: stated[role])
    report.note(f"{role:15} {identity.text}")
    return identity


def _note_naming(checkpoint: Checkpoint, report: Report) -> None:
    """Say how the names differ from those in the model."""
    if checkpoint.naming.text:
        report.note(f"{checkpoint.role:15} {checkpoint.naming.text}")


def _pinned(base: Place, recipe: Recipe | None) -> Place:
    """Return ``base``; if it is the recipe's repository, hide the files whose hashes are not known."""
    if not isinstance(base, ModelSource) or recipe is None or not has_base_source(recipe):
        return base
    known = base_source(recipe)
    return ModelSource(base.id, known.hidden) if known.id.repo.lower() == base.id.repo.lower() else base
