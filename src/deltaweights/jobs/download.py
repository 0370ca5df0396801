"""Download models from the Hub into its cache, and verify them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from deltaweights.errors import UsageError
from deltaweights.hub.directory import HubDirectory
from deltaweights.hub.ids import ModelSource, hub_id
from deltaweights.hub.locate import Hub, HubOptions, needed_files
from deltaweights.jobs.recognised_recipe import show_notice
from deltaweights.recipes.catalogue import load
from deltaweights.recipes.hub_sources import base_source, delta_source
from deltaweights.report import Report


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """Files of one commit in the cache folder ``path``: sizes by name; ``fetched`` counts the bytes that this call downloaded."""

    repo: str
    commit: str
    path: str
    files: dict[str, int]
    bytes: int
    fetched: int


def download(
    model: str, *, include: Sequence[str] = (), options: HubOptions | None = None, report: Report | None = None
) -> list[Downloaded]:
    """Download the checkpoint ``model``, a Hub id or the name of a recipe, or only its files that match ``include``.

    Cached files are verified once, and used; an interrupted download is resumed. Raises ``UsageError``, ``MalformedInput`` when
    there are no weights, and ``InputOutputError``.
    """
    report, options = report or Report(), options or HubOptions()
    if options.stream:
        raise UsageError("a download that keeps nothing", remedy="leave stream out")
    sources = _sources(model, report)
    hub = Hub(options, report)
    try:
        directories = [(role, hub.open(source.id, source.hidden)) for role, source in sources]
        chosen = [(directory, _chosen(directory, role, include)) for role, directory in directories]
        for directory, names in chosen:
            hub.announce(directory, names)
        hub.fetch(chosen)
        return [
            Downloaded(
                repo=directory.listing.repo,
                commit=directory.listing.commit,
                path=str(directory.path),
                files={name: directory.file(name).size for name in names},
                bytes=sum(directory.file(name).size for name in names),
                fetched=directory.fetched,
            )
            for directory, names in chosen
        ]
    finally:
        hub.close()


def _sources(model: str, report: Report) -> list[tuple[str, ModelSource]]:
    """Return the repositories, by role; show the notice of a recipe."""
    wanted = hub_id(model)
    if wanted is not None:
        return [("checkpoint", ModelSource(wanted))]
    if "/" in model:
        raise UsageError("not a Hub id", found=model, expected="ORG/NAME, ORG/NAME@REVISION, or the name of a recipe")
    recipe = load(model)
    show_notice(recipe, report)
    return [("base", base_source(recipe)), ("delta", delta_source(recipe))]


def _chosen(directory: HubDirectory, role: str, include: Sequence[str]) -> list[str]:
    if not include:
        return needed_files(directory, role)
    names = [name for name in directory.names() if any(fnmatch.fnmatchcase(name, pattern) for pattern in include)]
    if not names:
        raise UsageError("no file matches", found=", ".join(include), expected=", ".join(directory.names()[:8]))
    return names
