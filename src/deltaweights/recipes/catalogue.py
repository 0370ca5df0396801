"""The recipes of the package, and recipe files."""

from __future__ import annotations

import os
from contextlib import closing
from functools import cache
from importlib.resources import files
from pathlib import Path

from deltaweights.checkpoint.files import LocalFile
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput, UsageError
from deltaweights.hub.ids import PREFIX, HubId, hub_id, is_address
from deltaweights.recipes.models import models
from deltaweights.recipes.recipe import Recipe, check_head, parse_recipe
from deltaweights.recipes.table import MAX_SIZE, NAME, Table, TomlDocument, candidates, overlay, parse_toml
from deltaweights.util.text import natural_key, shell_quoted

SUFFIX = ".toml"
DATA = files("deltaweights.recipes").joinpath("data")


@cache
def names() -> tuple[str, ...]:
    """Return the names of the recipes of the package, in natural order."""
    found = [entry.name.removesuffix(SUFFIX) for entry in DATA.iterdir() if entry.name.endswith(SUFFIX)]
    return tuple(sorted(found, key=natural_key))


def known_name(given: str) -> str:
    """Return the name of the recipe of the package that is ``given``, in any case, or whose delta has this id on the Hub.

    Raises ``UsageError`` when there is none, and for another revision than main and the one that the recipe pins.
    """
    name = given.lower()
    if name in names():
        return name
    place, code = _place(given), ErrorCode.UNKNOWN_RECIPE
    if place is None:
        expected, remedy = candidates(name, names()), "`deltaweights recipes` lists them"
        raise UsageError("no recipe has this name", found=given, expected=expected, remedy=remedy, code=code)
    of_repo = recipe_of_repo(place.repo)
    if of_repo is None:
        remedy = f"if it is a delta, give --delta {shell_quoted(str(place).removeprefix(PREFIX))}, and --base"
        raise UsageError("no recipe has its delta in this repository", found=given, remedy=remedy, code=code)
    pinned = load(of_repo).delta.revision
    if place.revision not in {None, "main", pinned}:
        remedy = f"give --delta {shell_quoted(str(place).removeprefix(PREFIX))}, and --base"
        problem = f"recipe {of_repo} is for another revision"
        raise UsageError(problem, found=place.revision, expected=pinned, remedy=remedy, code=code)
    return of_repo


def _place(given: str) -> HubId | None:
    """Return the id of the Hub that ``given`` is, also as an address; None for a name."""
    try:
        return hub_id(given if "://" in given or is_address(given) else f"{PREFIX}{given}") if "/" in given else None
    except UsageError:
        return None


@cache
def load(name: str) -> Recipe:
    """Return the recipe ``name`` of the package, in any case. Raises ``UsageError`` when there is none."""
    return _parse(_document(name), f"recipe {name}")


def load_file(path: str | os.PathLike[str], over: str | None = None) -> Recipe:
    """Return the recipe in the file at ``path``, laid over the recipe that it extends, or over the recipe ``over``.

    Raises ``UsageError`` when there is no recipe ``over``, or the file extends another one.
    """
    where = os.fspath(path)
    with closing(LocalFile(Path(path))) as file:
        document = parse_toml(file.read(0, min(file.size, MAX_SIZE + 1)), where)
    check_head(document, where)
    extends = Table(document, where).text("extends", NAME)
    if over is not None:
        over = known_name(over)
        below = _document(over)
        if extends not in {None, over}:
            problem = "extends another recipe than the one that is named"
            raise UsageError(problem, where=where, found=extends, expected=over, remedy="name one of them")
    elif extends is not None:
        if extends not in names():
            problem, expected = "extends a recipe that does not exist", candidates(extends, names())
            raise MalformedInput(problem, where=where, found=extends, expected=expected, remedy="correct it")
        below = _document(extends)
    else:
        return _parse(document, where)
    laid = overlay(below, document)  # both have a format and a version: those of the file, which was checked, win
    return _parse({key: value for key, value in laid.items() if key != "extends"}, where)


def recipe_of_file(sha256: str) -> str | None:
    """Return the name of the recipe whose delta has a file with this sha256 (lower-case hex), if there is one."""
    return next((name for name in names() if any(file.sha256 == sha256 for file in load(name).delta.files)), None)


def recipe_of_repo(repo: str) -> str | None:
    """Return the name of the recipe whose delta is in the Hub's repository ``repo`` (case-insensitive), if there is one."""
    return next((name for name in names() if (load(name).delta.repo or "").lower() == repo.lower()), None)


def recipe_of_archive(file_name: str) -> str | None:
    """Return the name of the recipe whose delta was distributed in a zip file of this name, if there is one."""
    return next((name for name in names() if file_name in load(name).delta.archives), None)


def is_of_package(name: str, digest: str) -> bool:
    """Return whether the package has a recipe of this name that decides the weights as the recipe with this digest does."""
    return name in names() and load(name).digest == digest


def _document(name: str) -> TomlDocument:
    name = known_name(name)
    return parse_toml(DATA.joinpath(f"{name}{SUFFIX}").read_bytes(), f"recipe {name}")


def _parse(document: TomlDocument, where: str) -> Recipe:
    recipe = parse_recipe(document, where)
    keys = [known.key for known in models()]
    if recipe.base_model is not None and recipe.base_model not in keys:
        expected, remedy = candidates(recipe.base_model, keys), "correct it, or leave it out"
        problem = "base.model is not a known model"
        raise MalformedInput(problem, where=where, found=recipe.base_model, expected=expected, remedy=remedy)
    return recipe
