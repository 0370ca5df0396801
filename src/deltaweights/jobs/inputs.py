"""Two open checkpoints that belong together, as far as headers, hashes that are known and a few samples tell.

Enters: paths, and a recipe or none. Leaves: a ``Pair``: both open, every tensor with its fate, each named in people's words. Never:
a byte written, but for archives that must be unpacked; or a pair that a recipe says is another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat

from deltaweights.checkpoint.folder import Checkpoint, Unpacker, open_checkpoint
from deltaweights.checkpoint.samples import same_weights
from deltaweights.errors import Mismatch, UsageError
from deltaweights.hub.ids import ModelLocation, ModelSource, PathLike, model_source
from deltaweights.hub.locate import HubOptions, located
from deltaweights.hub.repo_cache import snapshot_at
from deltaweights.merge.operation import NewRows, Operation
from deltaweights.merge.plan import DTYPES
from deltaweights.merge.rules import PLAIN, Matching, Rules, match
from deltaweights.recipes.catalogue import load, load_file, recipe_of_archive, recipe_of_file, recipe_of_repo
from deltaweights.recipes.expected_shapes import refuse_others
from deltaweights.recipes.hashes import Hashes, hashes_of
from deltaweights.recipes.identity import AS_LARGE, Identity, generation_of_config, identify, size_of_delta
from deltaweights.recipes.models import known_file, model
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.source import base_of, delta_of, has_base
from deltaweights.report import Report


@dataclass(frozen=True)
class Pair:
    """Base and primary, open and known to fit; ``recipe`` is None where the plain rules apply."""

    base: Checkpoint
    primary: Checkpoint
    hashes: Hashes
    matching: Matching
    recipe: Recipe | None

    @property
    def stated(self) -> bool:
        """Whether it is known in which arithmetic the delta was computed."""
        return self.recipe is not None and self.recipe.stated


def find_recipe(name: str | None, file: PathLike | None) -> Recipe | None:
    """Return the recipe of this name, or that in ``file``, laid over the one that is named; None without both.

    Raises ``UsageError``, ``MalformedInput`` and ``InputOutputError``.
    """
    if file is not None:
        return load_file(file, over=name)
    return load(name) if name is not None else None


def sources_of(
    recipe: Recipe | None, base: ModelLocation | None, delta: ModelLocation | None
) -> tuple[ModelLocation, ModelLocation]:
    """Return base and delta, where they are not given from where the recipe has them.

    Raises ``UsageError`` when that is not known, ``InputOutputError`` when it is a repository without weights.
    """
    if base is None:
        base = base_of(_needed(recipe, "base"))
    if delta is None:
        delta = delta_of(_needed(recipe, "delta"))
    return base, delta


def _needed(recipe: Recipe | None, role: str) -> Recipe:
    if recipe is None:
        raise UsageError(f"--{role} is missing", remedy="give it, or name a recipe: deltaweights recipes")
    return recipe


@contextmanager
def open_pair(
    operation: Operation,
    base: ModelLocation,
    primary: ModelLocation,
    *,
    recipe: Recipe | None = None,
    hub: HubOptions | None = None,
    allow: bool | None = False,
    hash_workers: int | None = None,
    unpacker: Unpacker | None = None,
    report: Report | None = None,
) -> Iterator[Pair]:
    """Open and match base and primary, and say what they are.

    With ``allow``, a base that is known to be another one passes; None says that the caller has no such option to offer. ``hub``
    says how to use the Hub, for ids. ``hash_workers`` threads make the sha256 of the files, if any. Raises ``UsageError``,
    ``MalformedInput``, ``Mismatch`` and ``InputOutputError``.
    """
    report = Report() if report is None else report
    given = (("base", base), (operation.primary, primary))
    for role, place in given:
        if not isinstance(place, ModelSource) and not os.fspath(place):
            raise UsageError(f"{role} is an empty path", remedy="is a variable unset?")
    if recipe is None and operation is Operation.APPLY:
        recipe = _recognised_by_id(primary, report)
    elif recipe is not None:
        show_notice(recipe, report)  # before anything is fetched
    with (
        located([(role, _pinned(role, place, recipe)) for role, place in given], hub, report) as (base_at, primary_at),
        open_checkpoint(base_at, "base", unpacker, report) as of_base,
        open_checkpoint(primary_at, operation.primary, unpacker, report) as of_primary,
    ):
        inputs = {of_base.role: of_base, of_primary.role: of_primary}
        hashes = hashes_of(inputs, hash_workers, report)
        if recipe is None and operation is Operation.APPLY:
            recipe = _recognised(of_primary, hashes.files[of_primary.role], report)
        rules = PLAIN if recipe is None else Rules(recipe.delta_only, NewRows(recipe.new_rows))
        if recipe is not None:
            refuse_others(recipe, of_base, of_primary)
        matching = match(of_base.tensors, of_primary.tensors, operation, rules)
        for text in (*of_base.notes, *of_primary.notes, *matching.warnings):
            report.warn(text)
        pair = Pair(of_base, of_primary, hashes, matching, recipe)
        for role, checkpoint in inputs.items():
            identity = identify(checkpoint, hashes.files[role], read=role in hashes.read)
            report.note(f"{role:15} {identity.text}")
            if recipe is not None and role == "base":
                _check_base(pair, identity, recipe, report, allow=allow)
        if recipe is not None:
            _check_delta(pair, recipe, report)
        _doubt(pair, operation, report, allow=allow)
        yield pair


def _pinned(role: str, place: ModelLocation, recipe: Recipe | None) -> ModelLocation:
    """Return ``place``; of a repository that the recipe has its base from, without the files whose hashes are not known."""
    source = place if isinstance(place, ModelSource) else model_source(place)
    if role != "base" or source is None or recipe is None or not has_base(recipe):
        return source or place
    known = base_of(recipe)
    return ModelSource(source.id, known.hidden) if known.id.repo.lower() == source.id.repo.lower() else source


def show_notice(recipe: Recipe, report: Report) -> None:
    """Show the recipe's notice, if it has one, line by line."""
    heads = chain([f"licence         {recipe.title}: "], repeat(" " * 16))
    for head, line in zip(heads, filter(None, recipe.notice.splitlines()), strict=False):
        report.note(f"{head}{line}")


def _recognised_by_id(delta: ModelLocation, report: Report) -> Recipe | None:
    """Return the recipe of a delta that is a repository of the Hub."""
    source = delta if isinstance(delta, ModelSource) else model_source(delta)
    name = recipe_of_repo(source.id.repo) if source is not None else None
    return _told(name, f"{source.id.repo} on the Hub", report) if source is not None and name is not None else None


def _told(name: str, how: str, report: Report) -> Recipe:
    """Say which recipe is used, and how that is known."""
    recipe = load(name)
    report.note(f"recipe          {name}: the delta is that of {recipe.title} ({how})")
    show_notice(recipe, report)
    return recipe


def _recognised(delta: Checkpoint, hashes: Mapping[str, str], report: Report) -> Recipe | None:
    """Return the recipe of a delta that is a snapshot of the Hub, a named archive, or of files whose hashes are known."""
    snapshot = snapshot_at(delta.path)
    by_hash = {recipe_of_file(sha256) for sha256 in hashes.values()} - {None}
    for name, how in (
        (recipe_of_repo(snapshot.repo) if snapshot else None, f"a snapshot of {snapshot.repo}" if snapshot else ""),
        (by_hash.pop() if len(by_hash) == 1 else None, "by the sha256 of its files"),
        (recipe_of_archive(delta.path.name), "by the name of its archive"),
    ):
        if name is not None:
            return _told(name, how, report)
    return None


def _check_base(pair: Pair, identity: Identity, recipe: Recipe, report: Report, *, allow: bool | None) -> None:
    """Hold what the base is known to be against the recipe: another model is refused, what is not listed is a warning."""
    base, wanted = pair.base, model(recipe.base_model) if recipe.base_model is not None else None
    title = wanted.title if wanted is not None else f"the base of recipe {recipe.name}"
    unlisted = _unlisted(pair.hashes.files["base"], recipe)
    if not unlisted and pair.hashes.files["base"]:
        return
    if wanted is not None and identity.model is not None and identity.model != wanted.key:
        problem = f"this is {model(identity.model).title}, not {title}"
        if not allow:
            remedy = f"use {title}{_passes(allow)}"
            raise Mismatch(problem, where=base.path, found=identity.text, expected=title, remedy=remedy)
        report.warn(f"{base.path}: {problem}")
        return
    if unlisted and (wanted is not None or recipe.base_files):
        report.warn(
            f"{base.path / unlisted[0]}: its sha256 is not one that is known of {title}: another copy, or damaged"
        )
    hint = generation_of_config(base)
    if wanted is not None and identity.model is None and hint not in {None, wanted.generation}:
        report.warn(f"{base.path}: config.json is that of {hint}, and the base should be {title}")


def _unlisted(hashes: Mapping[str, str], recipe: Recipe) -> list[str]:
    """Return the names of the files that are not known of the recipe's base."""
    accepted = {file.sha256 for file in recipe.base_files}
    known = {name: known_file(sha256) for name, sha256 in hashes.items()}
    ours = {name for name, found in known.items() if found is not None and found[0].key == recipe.base_model}
    return sorted(name for name, sha256 in hashes.items() if sha256 not in accepted and name not in ours)


def _check_delta(pair: Pair, recipe: Recipe, report: Report) -> None:
    """Warn of files and commits that are not those that the recipe knows: unknown, which is not damaged."""
    delta, hashes = pair.primary, pair.hashes.files[pair.primary.role]
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


def _doubt(pair: Pair, operation: Operation, report: Report, *, allow: bool | None) -> None:
    """Tell when base and primary are one checkpoint, or the delta's weights are as large as a model's: it is likely merged already.

    Buffers, new rows and tensors of the primary alone do not tell two checkpoints apart: only what the base has, too, does.
    """
    primary = pair.primary
    both = [m.primary.name for m in pair.matching.matches if m.base == m.primary and m.primary.count]
    if both and same_weights(pair.base.tensors, primary.tensors, both):
        problem = f"base and {operation.primary} hold the same weights, as far as samples tell"
        if operation is Operation.MAKE:
            report.warn(f"{primary.path}: {problem}: the delta will be zero where they meet")
        elif allow:
            report.warn(f"{primary.path}: {problem}")
        else:
            raise Mismatch(problem, where=primary.path, remedy=f"give the delta itself{_passes(allow)}")
        return
    if operation is not Operation.APPLY:
        return
    share = size_of_delta(pair.base.tensors, primary.tensors)
    if share is None or share < AS_LARGE:
        return
    found = f"weights {share:.2g} times as large as the base's"
    problem = "likely already a merged model, not a delta"
    if pair.stated and not allow:
        remedy = f"give the delta itself{_passes(allow)}"
        raise Mismatch(problem, where=primary.path, found=found, expected="a small part of them", remedy=remedy)
    report.warn(f"{primary.path}: {problem}: found {found}, expected a small part of them")


def _passes(allow: bool | None) -> str:
    return "; --allow-unproved-base lets it pass" if allow is not None else ""


def compute_dtype_of(given: str | None, recipe: Recipe | None) -> str:
    """Return the dtype of the arithmetic: the recipe's, or what was asked for, or float16.

    Raises ``UsageError`` when what was asked for is unknown, or not what the recipe says.
    """
    if given is not None and given not in DTYPES:
        raise UsageError("unknown dtype", found=given, expected=", ".join(DTYPES))
    if recipe is None:
        return given or "float16"
    if given not in {None, recipe.compute_dtype}:
        remedy = "leave --compute-dtype out, or give the recipe in a file of your own"
        raise UsageError(
            f"recipe {recipe.name} adds in another dtype", found=given, expected=recipe.compute_dtype, remedy=remedy
        )
    return recipe.compute_dtype
