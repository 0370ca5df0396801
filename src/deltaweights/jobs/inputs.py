"""Open the inputs of a request, hash and match them, and compare them with what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint, Unpacker, open_checkpoint
from deltaweights.errors import UsageError
from deltaweights.hub.ids import ModelSource
from deltaweights.hub.locate import located
from deltaweights.hub.repo_cache import snapshot_at
from deltaweights.jobs.input_checks import check_base_identity, check_delta_files, check_ties, refuse_no_delta
from deltaweights.jobs.request import InputRequest, Place, compute_dtype_of
from deltaweights.manifest.input_manifest import lists_same_tensors, manifest_of_if_any
from deltaweights.manifest.parse import Manifest
from deltaweights.merge.choices import DTYPES, TORCH_NAMES
from deltaweights.merge.operation import NewRows, Operation
from deltaweights.merge.rules import LLAVA_RULES, Matching, MatchRules, copy_all, match_tensors
from deltaweights.recipes.catalogue import is_of_package, load, recipe_of_archive, recipe_of_file, recipe_of_repo
from deltaweights.recipes.hub_sources import base_source, has_base_source
from deltaweights.recipes.identify import Identity, identify, ties_head
from deltaweights.recipes.input_hashes import InputHashes, collect_hashes
from deltaweights.recipes.pair_check import check_pair
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.shell import refuse_shell
from deltaweights.report import Report


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Open checkpoints that belong together, judging by headers, known hashes and samples.

    ``identities`` are by role. ``base`` is None when the primary is copied. ``recipe`` is None where the plain rules apply.
    ``compute`` and ``stored`` are safetensors dtypes. ``manifest`` is the primary's own, when it lists exactly the primary's
    tensors; ``expected`` is the content digest that the result must then have, unless its dtypes change.
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
    expected: str | None = None

    @property
    def arithmetic_stated(self) -> bool:
        """Whether the recipe states the arithmetic in which the delta was computed."""
        return self.recipe is not None and self.recipe.stated


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
        recipe = _recipe_of_repository(request.primary, report)
    elif recipe is not None:
        show_notice(recipe, report)  # before anything is downloaded
    assert request.base is not None  # noqa: S101  (this tells mypy)
    places = [("base", _pinned(request.base, recipe)), (operation.primary, request.primary)]
    with (
        located(places, request.hub, report) as (base_at, primary_at),
        open_checkpoint(base_at, "base", unpacker, report) as base,
        open_checkpoint(primary_at, operation.primary, unpacker, report) as primary,
    ):
        for checkpoint in (base, primary):
            refuse_shell(checkpoint)
        hashes = collect_hashes({base.role: base, primary.role: primary}, request.hash_workers, report)
        if recipe is None and operation is Operation.APPLY:
            recipe = _recipe_of_delta(primary, hashes.files[primary.role], report)
        rules = LLAVA_RULES
        if recipe is not None:
            check_pair(recipe, base, primary)
            rules = MatchRules(recipe.delta_only, NewRows(recipe.new_rows))
        matching = match_tensors(
            base.model_tensors, primary.model_tensors, operation, rules, tied=ties_head(base), prefix=primary.prefix
        )
        for text in (*base.notes, *primary.notes, *matching.warnings):
            report.warn(text)
        for checkpoint in (base, primary):
            check_ties(checkpoint, report)
            _note_prefix(checkpoint, report)
        for match in matching.matches:
            if match.is_tied(base.prefix, primary.prefix):
                report.note(
                    f"{base.role:15} tied: its {match.base_name} is its {match.primary.name}, too (config.json)"
                )
        compute = compute_dtype_of(request.compute_dtype, recipe)
        identities: dict[str, Identity] = {}
        inputs = Inputs(
            base=base,
            primary=primary,
            hashes=hashes,
            identities=identities,
            matching=matching,
            recipe=recipe,
            compute=DTYPES[compute],
            stored=DTYPES[request.dtype or compute],
        )
        identity = identities[base.role] = _identify(base, hashes, report)
        if recipe is not None:
            check_base_identity(base, hashes.files[base.role], identity, recipe, report, allow=request.allow_other_base)
        identities[primary.role] = _identify(primary, hashes, report)
        if recipe is not None and operation is Operation.APPLY:
            check_delta_files(primary, hashes.files[primary.role], recipe, report)
        refuse_no_delta(
            base, primary, matching, request, report, compute=inputs.compute, stated=inputs.arithmetic_stated
        )
        yield inputs


@contextmanager
def _open_copied(request: InputRequest, unpacker: Unpacker | None, report: Report) -> Iterator[Inputs]:
    """Open a checkpoint to copy. The recipe is that of the request, else that of the checkpoint's own manifest."""
    role, recipe = request.operation.primary, request.recipe
    with (
        located([(role, request.primary)], request.hub, report) as (at,),
        open_checkpoint(at, role, unpacker, report) as source,
    ):
        refuse_shell(source)
        matching = copy_all(source.model_tensors, request.operation, source.prefix)
        for text in source.notes:
            report.warn(text)
        _note_prefix(source, report)
        hashes = collect_hashes({role: source}, request.hash_workers, report)
        stated = manifest_of_if_any(source)
        identity = identify(source, hashes.files[role], read=role in hashes.read, stated=lambda _: stated)
        report.note(f"{role:15} {identity.text}")
        # The bytes are compared with this manifest as they are read.
        manifest = stated if stated is not None and lists_same_tensors(stated, source) else None
        if recipe is None and manifest is not None and manifest.recipe:
            recipe = _recipe_of_manifest(manifest.recipe, report)
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


def _identify(checkpoint: Checkpoint, hashes: InputHashes, report: Report) -> Identity:
    role = checkpoint.role
    identity = identify(checkpoint, hashes.files[role], read=role in hashes.read)
    report.note(f"{role:15} {identity.text}")
    return identity


def _note_prefix(checkpoint: Checkpoint, report: Report) -> None:
    """Say what a wrapper put before all names."""
    if checkpoint.prefix:
        report.note(
            f"{checkpoint.role:15} all names begin with {checkpoint.prefix}, which a wrapper of the model put there"
        )


def _pinned(base: Place, recipe: Recipe | None) -> Place:
    """Return ``base``; if it is the recipe's repository, hide the files whose hashes are not known."""
    if not isinstance(base, ModelSource) or recipe is None or not has_base_source(recipe):
        return base
    known = base_source(recipe)
    return ModelSource(base.id, known.hidden) if known.id.repo.lower() == base.id.repo.lower() else base


def show_notice(recipe: Recipe, report: Report) -> None:
    """Show the lines of the recipe's notice, if it has one."""
    head = f"licence         {recipe.title}: "
    for line in filter(None, recipe.notice.splitlines()):
        report.note(f"{head}{line}")
        head = " " * 16


def _recipe_of_repository(delta: Place, report: Report) -> Recipe | None:
    """Return the recipe of a delta that is a Hub repository."""
    if not isinstance(delta, ModelSource):
        return None
    name = recipe_of_repo(delta.id.repo)
    return _use(name, f"{delta.id.repo} on the Hub", report) if name is not None else None


def _recipe_of_delta(delta: Checkpoint, hashes: Mapping[str, str], report: Report) -> Recipe | None:
    """Return the recipe of a delta that is a snapshot of the Hub, a named archive, files whose hashes are known, or one we made.

    Raises ``UsageError`` when it was made by a recipe that is not one of the package.
    """
    snapshot = snapshot_at(delta.path)
    name = recipe_of_repo(snapshot.repo) if snapshot else None
    if snapshot and name is not None:
        return _use(name, f"a snapshot of {snapshot.repo}", report)
    by_hash = {recipe_of_file(sha256) for sha256 in hashes.values()} - {None}
    name = by_hash.pop() if len(by_hash) == 1 else None
    if name is not None:
        return _use(name, "by the sha256 of its files", report)
    name = recipe_of_archive(delta.path.name)
    if name is not None:
        return _use(name, "by the name of its archive", report)
    stated = manifest_of_if_any(delta)
    if stated is None or stated.kind != "delta" or not stated.recipe or not lists_same_tensors(stated, delta):
        return None
    if not is_of_package(stated.recipe, stated.recipe_digest):
        problem = f"was made by the recipe {stated.recipe}, which is not one of the package"
        raise UsageError(problem, where=f"delta {delta.path}", remedy="give the recipe's file: --recipe FILE")
    return _recipe_of_manifest(stated.recipe, report)


def _use(name: str, how: str, report: Report) -> Recipe:
    """Load a recipe, and report how the delta was recognised."""
    recipe = load(name)
    report.note(f"recipe          {name}: the delta is that of {recipe.title} ({how})")
    show_notice(recipe, report)
    return recipe


def _recipe_of_manifest(name: str, report: Report) -> Recipe | None:
    """Return the recipe that a manifest names, if it is a known one."""
    try:
        recipe = load(name)
    except UsageError:
        report.warn(f"the manifest names the recipe {name}, which is not known here: give it with --recipe")
        return None
    report.note(f"{'recipe':15} {name} (as the manifest says)")
    show_notice(recipe, report)
    return recipe
