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
from pathlib import Path

from deltaweights.checkpoint.folder import Checkpoint, Unpacker, open_checkpoint
from deltaweights.errors import Mismatch, UsageError
from deltaweights.hub.cache import snapshot_at
from deltaweights.merge.expected import refuse_other_shapes
from deltaweights.merge.operation import NewRows, Operation
from deltaweights.merge.plan import DTYPES
from deltaweights.merge.rules import PLAIN, Matching, Rules, match
from deltaweights.naming import AS_LARGE, Identity, identify, size_of_delta, stated_hashes
from deltaweights.recipes.catalogue import load, load_file, recipe_of_file, recipe_of_repo
from deltaweights.recipes.models import model
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Pair:
    """Base and lead, open and known to fit; ``recipe`` is None where the plain rules apply."""

    base: Checkpoint
    lead: Checkpoint
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


@contextmanager
def open_pair(
    operation: Operation,
    base: PathLike,
    lead: PathLike,
    *,
    recipe: Recipe | None = None,
    allow: bool | None = False,
    unpacker: Unpacker | None = None,
    report: Report | None = None,
) -> Iterator[Pair]:
    """Open and match base and lead, and say what they are.

    With ``allow``, a base that is known to be another one passes; None says that the caller has no such option to offer. Raises
    ``UsageError``, ``MalformedInput``, ``Mismatch`` and ``InputOutputError``.
    """
    report = Report() if report is None else report
    for role, given in (("base", base), (operation.lead, lead)):
        if not os.fspath(given):
            raise UsageError(f"{role} is an empty path", remedy="is a variable unset?")
    with (
        open_checkpoint(Path(base), "base", unpacker, report) as of_base,
        open_checkpoint(Path(lead), operation.lead, unpacker, report) as of_lead,
    ):
        hashes = {of_base.role: stated_hashes(of_base), of_lead.role: stated_hashes(of_lead)}
        if recipe is None and operation is Operation.APPLY:
            recipe = _recognised(of_lead, hashes[of_lead.role], report)
        rules = PLAIN if recipe is None else Rules(recipe.delta_only, NewRows(recipe.new_rows))
        if recipe is not None:
            _show_notice(recipe, report)
            refuse_other_shapes(recipe, of_base, of_lead)
        matching = match(of_base.tensors, of_lead.tensors, operation, rules)
        for text in (*of_base.notes, *of_lead.notes, *matching.warnings):
            report.warn(text)
        pair = Pair(of_base, of_lead, matching, recipe)
        say_what_they_are({"base": of_base, operation.lead: of_lead}, recipe, hashes, report, allow=allow)
        if operation is Operation.APPLY:
            _doubt_the_delta(pair, report, allow=allow)
        yield pair


def _show_notice(recipe: Recipe, report: Report) -> None:
    """Show the recipe's notice, if it has one, line by line."""
    heads = chain([f"licence         {recipe.title}: "], repeat(" " * 16))
    for head, line in zip(heads, filter(None, recipe.notice.splitlines()), strict=False):
        report.note(f"{head}{line}")


def say_what_they_are(
    checkpoints: Mapping[str, Checkpoint],
    recipe: Recipe | None,
    hashes: Mapping[str, Mapping[str, str]],
    report: Report,
    *,
    allow: bool | None,
    read: bool = False,
) -> None:
    """Name the inputs; ``hashes`` are sha256 by role and file name, as far as they are known; ``read`` says: made from the files.

    Raises ``Mismatch`` when hashes say that the base is another model than the recipe's, unless the user lets it pass (``allow``).
    """
    for role, checkpoint in checkpoints.items():
        identity = identify(checkpoint, hashes[role], read=read)
        report.note(f"{role:15} {identity.text}")
        if read and hashes[role] == stated_hashes(checkpoint):
            continue  # what follows from them was said before they were read
        if recipe is not None and role == "base" and recipe.base_model is not None:
            _check_base(checkpoint, identity, recipe.base_model, report, allow=allow)
        if recipe is not None and role == "delta":
            _check_delta(checkpoint, hashes[role], recipe, report)


def _check_delta(delta: Checkpoint, hashes: Mapping[str, str], recipe: Recipe, report: Report) -> None:
    """Warn of files that have another hash than those of their name that are known: unknown, which is not damaged."""
    known = {file.name for file in recipe.delta.files}
    listed = {file.sha256 for file in recipe.delta.files}
    for name, sha256 in sorted(hashes.items()):
        if name in known and sha256 not in listed:
            report.warn(
                f"{delta.path / name}: sha256 {sha256} is not that of recipe {recipe.name}: another copy, or damaged"
            )


def _check_base(base: Checkpoint, identity: Identity, wanted: str, report: Report, *, allow: bool | None) -> None:
    if identity.model is None or identity.model == wanted:
        return
    title = model(wanted).title
    problem = f"this is {model(identity.model).title}, not {title}"
    if allow:
        report.warn(f"{base.path}: {problem}")
        return
    remedy = f"use {title}{_passes(allow)}"
    raise Mismatch(problem, where=base.path, found=identity.text, expected=title, remedy=remedy)


def _passes(allow: bool | None) -> str:
    return "; --allow-unproved-base lets it pass" if allow is not None else ""


def _recognised(delta: Checkpoint, hashes: Mapping[str, str], report: Report) -> Recipe | None:
    """Return the recipe of a delta that is a snapshot of the Hub, or whose files' hashes are known."""
    snapshot = snapshot_at(delta.path)
    name, how = None, ""
    if snapshot is not None:
        name, how = recipe_of_repo(snapshot.repo), f"a snapshot of {snapshot.repo}"
    if name is None:
        names = {recipe_of_file(sha256) for sha256 in hashes.values()} - {None}
        name, how = names.pop() if len(names) == 1 else None, "by the sha256 of its files"
    if name is None:
        return None
    recipe = load(name)
    report.note(f"recipe          {name}: the delta is that of {recipe.title} ({how})")
    return recipe


def _doubt_the_delta(pair: Pair, report: Report, *, allow: bool | None) -> None:
    """Say so when the delta's weights are as large as a model's: then it is likely merged already."""
    share = size_of_delta(pair.base.tensors, pair.lead.tensors)
    if share is None or share < AS_LARGE:
        return
    found = f"weights {share:.2g} times as large as the base's"
    problem = "likely already a merged model, not a delta"
    if pair.stated and not allow:
        remedy = f"give the delta itself{_passes(allow)}"
        raise Mismatch(problem, where=pair.lead.path, found=found, expected="a small part of them", remedy=remedy)
    report.warn(f"{pair.lead.path}: {problem}: found {found}, expected a small part of them")


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
