"""The recipe of a delta for which the user named none: told by its repository, its files' hashes, its name or its manifest."""

from __future__ import annotations

from collections.abc import Mapping

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import UsageError
from deltaweights.hub.ids import ModelSource
from deltaweights.hub.snapshot import snapshot_at
from deltaweights.jobs.request import Place
from deltaweights.jobs.stated_facts import MadeDelta
from deltaweights.recipes.catalogue import is_of_package, load, recipe_of_archive, recipe_of_file, recipe_of_repo
from deltaweights.recipes.recipe import Recipe
from deltaweights.report import Report


def show_notice(recipe: Recipe, report: Report) -> None:
    """Show the lines of the recipe's notice, if it has one."""
    head = f"licence         {recipe.title}: "
    for line in filter(None, recipe.notice.splitlines()):
        report.note(f"{head}{line}")
        head = " " * 16


def recipe_of_repository(delta: Place, report: Report) -> Recipe | None:
    """Return the recipe of a delta that is a Hub repository."""
    if not isinstance(delta, ModelSource):
        return None
    name = recipe_of_repo(delta.id.repo)
    return _use(name, f"{delta.id.repo} on the Hub", report) if name is not None else None


def recipe_of_delta(
    delta: Checkpoint, hashes: Mapping[str, str], made: MadeDelta | None, report: Report
) -> Recipe | None:
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
    if made is None or not made.recipe:
        return None
    if not is_of_package(made.recipe, made.recipe_digest):
        problem = f"was made by the recipe {made.recipe}, which is not one of the package"
        raise UsageError(problem, where=f"delta {delta.path}", remedy="give the recipe's file: --recipe FILE")
    return recipe_of_manifest(made.recipe, report)


def _use(name: str, how: str, report: Report) -> Recipe:
    """Load a recipe, and report how the delta was recognised."""
    recipe = load(name)
    report.note(f"recipe          {name}: the delta is that of {recipe.title} ({how})")
    show_notice(recipe, report)
    return recipe


def recipe_of_manifest(name: str, report: Report) -> Recipe | None:
    """Return the recipe that a manifest names, if it is a known one."""
    try:
        recipe = load(name)
    except UsageError:
        report.warn(f"the manifest names the recipe {name}, which is not known here: give it with --recipe")
        return None
    report.note(f"{'recipe':15} {name} (as the manifest says)")
    show_notice(recipe, report)
    return recipe
