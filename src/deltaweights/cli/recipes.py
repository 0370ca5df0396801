"""``deltaweights recipes``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import click

from deltaweights.cli.json_output import print_json
from deltaweights.cli.options import json_option
from deltaweights.cli.values import RecipeName
from deltaweights.errors import printable
from deltaweights.recipes.catalogue import load, names
from deltaweights.recipes.models import model
from deltaweights.recipes.recipe import Recipe, Shapes

NEW_ROWS = {"copy": "kept as they are", "zero": "added to zero", "mean": "added to the mean of the base's rows"}

CONTINUED = "\n" + 16 * " "
"""Separates the lines of one value."""


@click.group("recipes", invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """List the known pairs of base and delta, or show one.

    A recipe says which delta belongs on which base, and by which rules they are merged. To write one, see docs/recipes.md.
    """
    context.obj = as_json
    if context.invoked_subcommand is None:
        _list(as_json=as_json)


@command.command("list")
@json_option
@click.pass_obj
def list_command(group_json: bool, *, as_json: bool) -> None:
    """List the known pairs of base and delta."""
    _list(as_json=as_json or group_json)


@command.command("show")
@click.argument("name", metavar="NAME", type=RecipeName())
@json_option
@click.pass_obj
def show_command(group_json: bool, name: str, *, as_json: bool) -> None:
    """Show one recipe: delta, base, rules, hashes, sources, licence notice."""
    recipe = load(name)
    if as_json or group_json:
        print_json({**asdict(recipe), "delta_only": sorted(recipe.delta_only)})
    else:
        for label, value in _facts(recipe):
            lines = CONTINUED.join(printable(line) for line in value.splitlines())
            click.echo(f"{label:15} {lines}".rstrip())


def _list(*, as_json: bool) -> None:
    recipes = [load(name) for name in names()]
    if as_json:
        keys = ("name", "title", "base", "repo", "has_weights")
        rows = [(r.name, r.title, r.base_model, r.delta.repo, r.delta.has_weights) for r in recipes]
        print_json({"recipes": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    table = [("recipe", "model", "base", "delta")]
    table += [(r.name, r.title, r.base_model or "any", _published(r)) for r in recipes]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (f"{printable(cell):{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _published(recipe: Recipe) -> str:
    repo = recipe.delta.repo or "not published"
    return repo if recipe.delta.has_weights else f"{repo} (NO WEIGHTS)"


def _facts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the rows of ``show``: labels, and values of one or several lines."""
    yield "recipe", recipe.name
    yield "model", recipe.title
    if recipe.description:
        yield "", recipe.description
    delta = recipe.delta
    yield "delta", " at ".join(filter(None, [_published(recipe), delta.revision]))
    if delta.archives:
        yield "archive", "\n".join(delta.archives)
    if not delta.has_weights:
        yield "", "The repository has no weights. Whoever holds the archive can use that."
    if delta.files:
        yield "files", "\n".join(f"{file.sha256}  {file.name}" for file in delta.files)
    if recipe.base_model is not None:
        base = model(recipe.base_model)
        where = f": {base.repo} at {base.revision}" if base.repo else ""
        yield "base", f"{base.title} ({base.key}){where}"
    accepted = [*recipe.base_files, *(model(recipe.base_model).files if recipe.base_model is not None else ())]
    if accepted:
        yield "base files", "\n".join(f"{file.sha256}  {file.name}" for file in accepted)
    stated = "in which the delta was made" if recipe.stated else "whether the delta was made in it is not known"
    yield "arithmetic", f"{recipe.compute_dtype}, {stated}"
    yield "new rows", NEW_ROWS[recipe.new_rows]
    only = [f"{name} (required)" if name in recipe.required else name for name in sorted(recipe.delta_only)]
    yield "in delta only", "\n".join(only) or "nothing"
    yield "shapes", _shapes(recipe.shapes)
    if recipe.checks is not None:
        extent = "weights and inv_freq buffers" if recipe.checks.with_buffers else "weights"
        yield "sum", f"{recipe.checks.sum!r} within {recipe.checks.tolerance!r}, over {extent}"
    yield "digest", recipe.digest
    for label, value in (("notice", recipe.notice), ("notes", "\n".join(recipe.notes))):
        if value:
            yield label, value
    yield "sources", "\n".join(recipe.sources)


def _shapes(shapes: Shapes) -> str:
    known = {key.replace("_", " "): size for key, size in asdict(shapes).items() if size is not None}
    return ", ".join(f"{what} {size}" for what, size in known.items()) or "not known"
