"""Download models from the Hub, into its cache or a folder, and verify them."""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from deltaweights.checkpoint.companions import is_terms
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput, UsageError
from deltaweights.hub.directory import HubDirectory
from deltaweights.hub.ids import ModelSource, hub_id
from deltaweights.hub.local_folder import LocalFolder
from deltaweights.hub.locate import Hub, HubOptions, needed_files
from deltaweights.jobs.recognised_recipe import show_notice
from deltaweights.manifest.file_parts import TEMPLATES
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.records import MANIFEST
from deltaweights.recipes.catalogue import load
from deltaweights.recipes.hub_sources import base_source, delta_source
from deltaweights.report import Report
from deltaweights.util import limits


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """Files of one commit in the folder ``path``: sizes by name; ``fetched`` counts the bytes that this call downloaded."""

    repo: str
    commit: str
    path: str
    files: dict[str, int]
    bytes: int
    fetched: int


@dataclass(frozen=True)
class Patterns:
    """Which files to download, as ``hf`` reads patterns: ``*`` matches slashes, too, and letters are told apart by their case."""

    include: Sequence[str] = field(default=())
    exclude: Sequence[str] = field(default=())

    def matching(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that are included, if any need be, and not excluded."""
        utils = importlib.import_module("huggingface_hub.utils")
        choose: Callable[..., Iterable[str]] = utils.filter_repo_objects
        return list(
            choose(list(names), allow_patterns=list(self.include) or None, ignore_patterns=list(self.exclude) or None)
        )

    def __str__(self) -> str:
        return ", ".join([*self.include, *(f"not {pattern}" for pattern in self.exclude)])


def download(
    model: str,
    *,
    files: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    local_dir: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    options: HubOptions | None = None,
    report: Report | None = None,
) -> list[Downloaded]:
    """Download the checkpoint ``model``, a Hub id or the name of a recipe, with all that belongs to it.

    That is what a loader reads, manifest, sums and signature, and licences, notices and cards; or ``files``, which are names; or,
    with ``include``, the files that match. None of those that match ``exclude`` is downloaded. They are put into the Hub's cache,
    or, themselves and not as links, into ``local_dir``, where a file that was not downloaded there is never replaced. Cached files
    are verified once, and used; with ``force`` they are fetched again. An interrupted download is resumed. With ``dry_run``
    nothing is fetched, and ``fetched`` counts what would be. Raises ``UsageError``, ``MalformedInput`` when there are no weights,
    ``TargetBusy`` when another file has the name of one, and ``InputOutputError``.
    """
    report, options, patterns = report or Report(), options or HubOptions(), Patterns(include, exclude)
    if options.stream:
        raise UsageError("a download that keeps nothing", remedy="leave stream out")
    if files and (include or exclude):
        raise UsageError("files by name and by pattern", found=patterns, remedy="give one of them")
    sources = _sources(model, report)
    if local_dir is not None and len(sources) > 1:
        remedy = "download each by its own id"
        raise UsageError("a recipe has two models, and --local-dir is for one", found=model, remedy=remedy)
    into = None if local_dir is None else LocalFolder.at(Path(local_dir))
    if into is not None and not dry_run:
        into.create()
    hub = Hub(replace(options, stream=True) if dry_run else options, report)  # a dry run keeps not even an index
    try:
        directories = [(role, hub.open(source.id, source.hidden, into)) for role, source in sources]
        chosen = [
            (directory, _named(directory, files) if files else _chosen(directory, role, patterns))
            for role, directory in directories
        ]
        for directory, names in chosen:
            _refuse_colliding(directory, names)
            directory.complete(names)
            if force and not dry_run:
                directory.forget(names)
            hub.announce(directory, names, dry_run=dry_run)
        if dry_run:
            return [_downloaded(each, names, _bytes_to_fetch(each, names, force=force)) for each, names in chosen]
        hub.fetch(chosen)
        return [_downloaded(directory, names, directory.fetched) for directory, names in chosen]
    finally:
        hub.close()


def _downloaded(directory: HubDirectory, names: Sequence[str], fetched: int) -> Downloaded:
    files = {name: directory.file(name).size for name in names}
    return Downloaded(
        repo=directory.listing.repo,
        commit=directory.listing.commit,
        path=str(directory.path),
        files=files,
        bytes=sum(files.values()),
        fetched=fetched,
    )


def _bytes_to_fetch(directory: HubDirectory, names: Sequence[str], *, force: bool) -> int:
    missing = map(directory.file, names) if force else directory.to_fetch(directory.missing(names))
    return sum(file.size for file in missing)


def _named(directory: HubDirectory, files: Sequence[str]) -> list[str]:
    """Return the names of files, each once. Raises ``UsageError`` for one that the repository does not have."""
    there = directory.paths
    for name in files:
        _refuse_unusable([name], directory)
        if name not in there:
            inside = [path for path in there if path.startswith(f"{name.rstrip('/')}/")]
            if inside:
                pattern = shlex.quote(f"{name.rstrip('/')}/*")
                found, expected, remedy = (
                    f"{name}, a folder",
                    inside[0],
                    f"use --include {pattern} for all that is in it",
                )
            else:
                found, expected, remedy = name, ", ".join(there[:8]), None
            raise UsageError(
                "no such file in the repository",
                found=found,
                expected=expected,
                remedy=remedy,
                code=ErrorCode.NOT_FOUND,
            )
    return sorted(set(files))


def _refuse_unusable(names: Iterable[str], directory: HubDirectory) -> None:
    """Raise ``MalformedInput`` for a name that the repository gives a file and that no file is given here."""
    name = next((name for name in names if name in directory.listing.unusable), None)
    if name is not None:
        problem, remedy = "unusable file name", "leave it out, with --exclude"
        raise MalformedInput(problem, where=str(directory.id), found=name, remedy=remedy)


def _refuse_colliding(directory: HubDirectory, names: Iterable[str]) -> None:
    """Raise ``MalformedInput`` for names in folders that some file systems do not tell apart, or that are a file and a folder."""
    seen, files = dict[str, str](), set(names)
    for name in sorted(files):
        for path in (name, *map(str, PurePosixPath(name).parents)):
            other = seen.setdefault(path.casefold(), path)
            differ_in_case = other != path and "/" in f"{name}{other}"
            if differ_in_case or (path != name and path in files):
                problem, remedy = "two files in the same place", "leave one of them out, with --exclude"
                found = f"{path if other != path else name} and {other}"
                raise MalformedInput(problem, where=str(directory.id), found=found, remedy=remedy)


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


def _chosen(directory: HubDirectory, role: str, patterns: Patterns) -> list[str]:
    """Return the names of the files to download, sorted. Raises ``UsageError`` and ``MalformedInput``."""
    matching = patterns.matching(directory.paths)
    if patterns.include:
        _refuse_unusable(patterns.matching(directory.listing.unusable), directory)
        names = matching
    else:
        directory.leave_out(set(directory.paths) - set(matching))
        try:
            names = _belonging(directory, role)
        except MalformedInput:
            if not patterns.exclude:
                raise
            directory.leave_out(())
            names = [name for name in _belonging(directory, role) if name in matching]  # the weights were left out
    if not names:
        raise UsageError("no file matches", found=patterns, expected=", ".join(directory.paths[:8]))
    return names


def _belonging(directory: HubDirectory, role: str) -> list[str]:
    """Return the names of all files that belong to a checkpoint: those that are needed, and those that its manifest lists."""
    names = set(needed_files(directory, role, keep=True))
    if MANIFEST in names and directory.file(MANIFEST).size <= limits.MANIFEST.size:
        try:
            listed = parse_manifest([directory.read(MANIFEST, limits.MANIFEST.size)]).files
        except (ValueError, MalformedInput):  # somebody else's: the name is not ours alone
            listed = {}
        names |= {name for name in listed if directory.has(name)}
    return sorted(names | set(filter(_belongs_below, directory.paths)))


def _belongs_below(path: str) -> bool:
    """Return whether a file in folders is one that a loader reads (templates, beside the tokenizer), or terms and notices."""
    folder, slash, name = path.rpartition("/")
    return bool(slash) and (folder == TEMPLATES or is_terms(name))
