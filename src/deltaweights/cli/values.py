"""What arguments and options take: paths, ids of the Hub, names of recipes. Shells complete them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from deltaweights.errors import UsageError

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # in click 8.2 not generic


class PathName(ParamType):
    """A path, which need not exist; it is passed on as it was given. ``kind``: "file" or "dir", for completion."""

    def __init__(self, kind: str = "file") -> None:
        self.name, self.kind = "path", kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type=self.kind)]


class ModelName(PathName):
    """A path, or an id of the Hub; the name of a recipe is refused, with the id that was probably meant."""

    def __init__(self, *, of_base: bool = False) -> None:
        super().__init__()
        self._of_base = of_base

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not os.path.lexists(value) and not {"/", "."} & {*value}:
            self._refuse_recipe(value)
        return value

    def _refuse_recipe(self, value: str) -> None:
        """Raise ``UsageError`` if ``value`` is the name of a recipe."""
        from deltaweights.recipes.catalogue import load, names  # noqa: PLC0415  (only for what is not there)
        from deltaweights.recipes.models import model  # noqa: PLC0415

        if value.lower() not in names():
            return
        recipe = load(value.lower())
        base = model(recipe.base_model).repo if self._of_base and recipe.base_model is not None else None
        repo = base if self._of_base else recipe.delta.repo if recipe.delta.has_weights else None
        where = f"give {repo}" if repo else f"`deltaweights recipes show {recipe.name}` says what it needs"
        expected = "a path, or ORG/NAME on the Hub"
        raise UsageError(
            "the name of a recipe, not a model",
            found=value,
            expected=expected,
            remedy=where,
        )

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _items(_or_files(cached_ids(ctx), incomplete), incomplete)


class RecipeName(ParamType):
    """The name of a recipe; with ``models`` or ``files``, an id of the Hub or a file instead."""

    name = "recipe"

    def __init__(self, *, models: bool = False, files: bool = False) -> None:
        self._models, self._files = models, files

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from deltaweights.recipes.catalogue import names  # noqa: PLC0415  (only for completion)

        known = [*names(), *(cached_ids(ctx) if self._models else ())]
        return _items(_or_files(known, incomplete) if self._files else known, incomplete)


def cached_ids(ctx: click.Context) -> Iterator[str]:
    """Yield the ids of the models in the Hub's cache, by the names of its folders, in order."""
    from deltaweights.hub.ids import is_repo  # noqa: PLC0415  (only for completion)

    given = ctx.params.get("cache_dir")
    if given is None:
        from huggingface_hub import constants  # noqa: PLC0415  (only for completion)

        given = constants.HF_HUB_CACHE
    folder = Path(given)
    for name in sorted(each.name for each in folder.iterdir()) if folder.is_dir() else ():
        kind, _, repo = name.partition("--")
        repo = repo.replace("--", "/")
        if kind == "models" and is_repo(repo):
            yield repo


def _or_files(known: Iterable[str], incomplete: str) -> list[str] | None:
    """Return ``known`` if any of them fits and no file here does; None to complete the names of files."""
    folder, start = os.path.split(incomplete)
    try:
        here = [each.name for each in Path(folder).iterdir()]
    except OSError:
        here = []
    if any(name.startswith(start) for name in here if start or not name.startswith(".")):
        return None
    return [name for name in known if name.startswith(incomplete)] or None


def _items(names: Iterable[str] | None, incomplete: str) -> list[CompletionItem]:
    if names is None:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


FOLDER, FILE = PathName("dir"), PathName()
MODEL, BASE_MODEL = ModelName(), ModelName(of_base=True)
