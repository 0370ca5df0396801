"""The recipes of the package, and recipe files.

Enters: the name of a recipe, or the path of a file that is one or is laid over one. Leaves: a ``Recipe``. Never: a name that
reaches outside the package, or a read from anything but a regular file.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from importlib.resources import files
from pathlib import Path

from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from deltaweights.recipes import table as forms
from deltaweights.recipes.models import models
from deltaweights.recipes.recipe import Recipe, check_head, parse_recipe
from deltaweights.recipes.table import Table, candidates
from deltaweights.recipes.toml_document import MAX_SIZE, TomlDocument, overlay, parse_toml
from deltaweights.util.text import natural_key

SUFFIX = ".toml"


def names() -> list[str]:
    """Return the names of the recipes of the package, in natural order."""
    return list(_names())


@cache
def _names() -> tuple[str, ...]:
    data = files("deltaweights.recipes").joinpath("data")
    found = [entry.name.removesuffix(SUFFIX) for entry in data.iterdir() if entry.name.endswith(SUFFIX)]
    return tuple(sorted(found, key=natural_key))


@cache
def load(name: str) -> Recipe:
    """Return the recipe of the package that is called ``name``. Raises ``UsageError`` when none is."""
    return _checked(_document(name), f"recipe {name}")


def load_file(path: str | os.PathLike[str], over: str | None = None) -> Recipe:
    """Return the recipe in the file at ``path``, laid over the recipe that it extends, or over the one called ``over``.

    Raises ``MalformedInput`` when it is not a recipe, ``InputOutputError`` when it cannot be read, ``UsageError`` when no recipe is
    called ``over``, or the file extends another one.
    """
    where = os.fspath(path)
    document = parse_toml(_read(Path(path)), where)
    check_head(document, where)
    extends = Table(document, where).text("extends", forms.NAME)
    if over is not None:
        below = _document(over)
        if extends not in {None, over}:
            raise UsageError(
                "extends another recipe than the one that is named",
                where=where,
                found=extends,
                expected=over,
                remedy="name one of them",
            )
    elif extends is not None:
        if extends not in _names():
            raise MalformedInput(
                "extends a recipe that does not exist",
                where=where,
                found=extends,
                expected=candidates(extends, _names()),
                remedy="correct it",
            )
        below = _document(extends)
    else:
        return _checked(document, where)
    head = {"format", "version"}  # checked above, the file's own
    laid = overlay({key: value for key, value in below.items() if key not in head}, document)
    return _checked({key: value for key, value in laid.items() if key != "extends"}, where)


def recipe_of_file(sha256: str) -> str | None:
    """Return the name of the recipe whose delta has a file of this sha256 (lower-case hex); None when none is known to."""
    return next((name for name in _names() if any(file.sha256 == sha256 for file in load(name).delta.files)), None)


def recipe_of_repo(repo: str) -> str | None:
    """Return the name of the recipe whose delta is published in ``repo``, an id of the Hub, where case does not count."""
    for name in _names():
        published = load(name).delta.repo
        if published is not None and published.lower() == repo.lower():
            return name
    return None


def recipe_of_archive(file_name: str) -> str | None:
    """Return the name of the recipe whose delta was distributed in a zip file of this name; None when none was."""
    return next((name for name in _names() if file_name in load(name).delta.archives), None)


def _document(name: str) -> TomlDocument:
    if name not in _names():
        raise UsageError(
            "no recipe has this name",
            found=name,
            expected=candidates(name, _names()),
            remedy="`deltaweights recipes` lists them",
        )
    data = files("deltaweights.recipes").joinpath("data", f"{name}{SUFFIX}").read_bytes()
    return parse_toml(data, f"recipe {name}")


def _checked(document: TomlDocument, where: str) -> Recipe:
    recipe = parse_recipe(document, where)
    keys = [known.key for known in models()]
    if recipe.base_model is not None and recipe.base_model not in keys:
        raise MalformedInput(
            "base.model is not a known model",
            where=where,
            found=recipe.base_model,
            expected=candidates(recipe.base_model, keys),
            remedy="correct it, or leave it out",
        )
    return recipe


def _read(path: Path) -> bytes:
    """Return the bytes of a file, one more than a recipe may have at most."""
    try:
        # Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputOutputError.from_os(error, path, "read the recipe") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise MalformedInput("not a regular file", where=path, remedy="give the recipe file itself")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_SIZE + 1)
    except OSError as error:
        raise InputOutputError.from_os(error, path, "read the recipe") from error
    finally:
        os.close(descriptor)
