"""The Hub's cache, whole or one repository of it: which snapshot is meant."""

from __future__ import annotations

import posixpath
import re

from deltaweights.checkpoint.foreign.listing import FolderListing, Layout, Recognised, Subject, either, some
from deltaweights.util.text import natural_key

REPOSITORY = re.compile(r"(models|datasets|spaces)--(.+)")
"""The name of a repository's folder; slashes of the id are ``--``."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_INCOMPLETE = ".incomplete"


def is_repository(listing: FolderListing) -> bool:
    """Return whether a folder is one repository of a cache."""
    return "snapshots" in listing.folders and ("blobs" in listing.folders or "refs" in listing.folders)


def recognise_cache(subject: Subject) -> Recognised | None:
    """Return which snapshot of a cache is meant; None for a folder that is no part of a cache."""
    if is_repository(subject.listing):
        return _recognise_repository(subject)
    if "hub" in subject.listing.folders and _repositories(subject.listing.folders["hub"]):
        return _recognise_whole(subject.below("hub"), "the folder of the Hub's cache")
    if _repositories(subject.listing):
        return _recognise_whole(subject, "the Hub's cache")
    return None


def _repositories(listing: FolderListing) -> list[str]:
    return sorted((name for name in listing.folders if REPOSITORY.fullmatch(name)), key=natural_key)


def _recognise_whole(cache: Subject, what: str) -> Recognised:
    names = _repositories(cache.listing)
    models = [name for name in names if name.startswith("models--")]
    snapshots = [path for name in models for path in _chosen(cache.below(name))]
    if len(snapshots) == 1:
        return Recognised(Layout.HUB_CACHE, f"{what}, with {some(models)}", f"give {snapshots[0]}")
    ids = [_id(name) for name in models]
    if snapshots:
        remedy = f"give one model of it: by its id ({either(ids)}), or its snapshot, such as {snapshots[0]}"
    else:
        remedy = "fetch a model: deltaweights download ORG/NAME"
        if ids:
            remedy = f"it has no weights of a model: fetch them: deltaweights download {ids[0]}"
    return Recognised(Layout.HUB_CACHE, f"{what}, with {some(names)}", remedy)


def _recognise_repository(subject: Subject) -> Recognised:
    name = posixpath.basename(subject.where)
    match = REPOSITORY.fullmatch(name)
    if match and match[1] != "models":
        found = f"a {match[1].removesuffix('s')} in the Hub's cache"
        return Recognised(Layout.HUB_REPOSITORY, found, "give a model's folder")
    found = "a repository in the Hub's cache: blobs, refs and snapshots"
    chosen = _chosen(subject)
    if len(chosen) == 1:
        return Recognised(Layout.HUB_REPOSITORY, found, f"give its snapshot, {chosen[0]}")
    if chosen:
        found = f"{found}, of which {len(chosen)} have weights and none is main's"
        return Recognised(Layout.HUB_REPOSITORY, found, f"give the one you mean: {either(chosen)}")
    unfinished = [name for name in subject.listing.at("blobs").files if name.endswith(_INCOMPLETE)]
    if unfinished:
        found = f"{found}, and {len(unfinished)} unfinished in blobs"
    fetch = f"deltaweights download {_id(name)}" if match else "run the same download again"
    return Recognised(Layout.HUB_REPOSITORY, f"{found}, without weights", f"fetch them: {fetch}")


def _id(name: str) -> str:
    match = REPOSITORY.fullmatch(name)
    return match[2].replace("--", "/") if match else name


def _chosen(repository: Subject) -> list[str]:
    """Return the path of the snapshot of the main branch if it has weights, else those of all snapshots with weights."""
    snapshots = repository.listing.at("snapshots").folders
    complete = sorted(name for name, listing in snapshots.items() if listing.has_checkpoint)
    main = repository.heads.get("refs/main", b"").decode("ascii", "replace").strip()
    if _COMMIT.fullmatch(main) and main in complete:
        complete = [main]
    return [repository.path("snapshots", name) for name in complete]
