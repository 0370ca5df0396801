"""Look at what a folder is that has no weights, and say what to give instead."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePath

from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.foreign.formats import ADAPTER, ADAPTER_CONFIG
from deltaweights.checkpoint.foreign.hub_cache import REPOSITORY, is_repository
from deltaweights.checkpoint.foreign.listing import HEAD_BYTES, FolderListing, Layout, Recognised, Subject
from deltaweights.checkpoint.foreign.recognise import (
    HIDDEN_DOWNLOADS,
    lone_shard,
    recognise,
    recognise_file,
    wanted_heads,
)
from deltaweights.checkpoint.foreign.training import METADATA
from deltaweights.checkpoint.layout_names import EXPECTED
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.util.litter import is_litter

MOST_FOLDERS, MOST_NAMES, DEPTH = 1000, 3000, 2
"""How many folders are listed, how many names of each, and how far down (in the Hub's cache down to its snapshots)."""

_OF_CACHE = ("blobs", "refs", "snapshots")


def no_weights(directory: Directory, role: str) -> MalformedInput:
    """Return the error for a folder without weights: what it is, and what to give or run instead."""
    known = _recognise(directory)
    remedy = known.remedy or f"give the folder that holds the {role}'s weights"
    if known.layout is Layout.UNKNOWN:
        remedy = f"{remedy}; a README alone is not a checkpoint"
    return MalformedAt(directory.path, remedy)("no weights here", known.found, EXPECTED, code=ErrorCode.NO_WEIGHTS)


def explain(directory: Directory, error: MalformedInput) -> MalformedInput:
    """Return a better error than ``error`` for a folder whose files cannot be read because they are coded, else ``error``."""
    known = _recognise(directory)
    if known.layout is not Layout.XOR:
        return error
    return MalformedAt(directory.path, known.remedy)(
        "no weights here", known.found, "a checkpoint, or a delta that is added", code=ErrorCode.NO_WEIGHTS
    )


def remedy_for_nothing(path: Path, role: str) -> str:
    """Return what to do about a path where nothing is: it may be an address, or an id of the Hub."""
    if path.parts[:1] == ("hf:",):
        return "this command does not accept a model of the Hub"
    if path.parts[:1] in {("https:",), ("http:",)}:
        _, host, *names = path.parts
        known = host in {"huggingface.co", "hf.co"} and len(names) >= 2
        command = f"deltaweights download {names[0]}/{names[1]}" if known else ""
        return f"an address is not read: fetch it{f' with {command}' if known else ''}, and give the folder"
    return f"give the folder that holds the {role}'s weights"


def refuse_foreign_file(directory: Directory, name: str, role: str, *, adapters: bool) -> None:
    """Raise ``MalformedInput`` for a single file in a format that is not read; ``adapters`` says that those are."""
    names = [each for each in (name, *ADAPTER, METADATA) if directory.has(each)]
    heads = {name: b""}
    with suppress(InputOutputError, MalformedInput):
        heads[name] = directory.head(name)
    heads |= _heads(directory, [each for each in (ADAPTER_CONFIG, METADATA) if each in names])
    known = recognise_file(Subject(_where(directory.path), FolderListing(dict.fromkeys(names, 0)), heads), name)
    if known is not None and not (adapters and known.layout is Layout.ADAPTER):
        malformed = MalformedAt(directory.path / name, known.remedy)
        raise malformed(
            f"not a {role}",
            known.found,
            "weights in safetensors, torch's or Meta's format",
            code=ErrorCode.UNSUPPORTED_FORMAT,
        )


def refuse_lone_shard(directory: Directory, name: str) -> None:
    """Raise ``MalformedInput`` for one of several shards: it opens, and lacks what the others hold."""
    files = dict.fromkeys(directory.names(), 0)
    known = lone_shard(Subject(_where(directory.path), FolderListing(files)), name)
    if known is not None:
        malformed = MalformedAt(directory.path / name, known.remedy)
        raise malformed("is one shard, not a whole checkpoint", known.found, code=ErrorCode.INCOMPLETE)


def _recognise(directory: Directory) -> Recognised:
    if not isinstance(directory, LocalDirectory):
        return _recognise_remote(directory)
    path = directory.path
    if Path(_where(path)).name in _OF_CACHE and is_repository(scan(path.parent, depth=0)):
        path = path.parent
    listing = scan(path)
    heads: dict[str, bytes] = {}
    for name in wanted_heads(listing):
        with closing(LocalDirectory((path / name).parent)) as folder:
            heads[name] = _heads(folder, [(path / name).name]).get((path / name).name, b"")
    return recognise(Subject(_where(path), listing, heads))


def _recognise_remote(directory: Directory) -> Recognised:
    """Recognise a repository of the Hub: what is to be given or converted must be on this machine first."""
    listing, where = directory.tree(), str(directory.path)
    heads: dict[str, bytes] = {}
    for name in wanted_heads(listing):
        with suppress(InputOutputError, MalformedInput):  # opening a file would start to fetch all of it
            is_small = listing.files.get(name, HEAD_BYTES) < HEAD_BYTES
            heads[name] = directory.read(name, HEAD_BYTES) if is_small else directory.head(name)
    known = recognise(Subject(where, listing, heads))
    origin = directory.origin
    if where not in known.remedy or not origin:
        return known
    repo, inside = f"{origin['repo']} --revision {origin['commit']}", known.remedy.removeprefix(f"give {where}/")
    fetch = f"all of it with hf download {repo}"
    if known.layout is Layout.CHECKPOINT_BELOW:
        pattern = shlex.quote("*" if inside == known.remedy else f"{inside}/*")
        fetch = f"it with deltaweights download {repo} --include {pattern}"
    return replace(known, remedy=f"fetch {fetch}, and then: {known.remedy}")


def _where(path: Path) -> str:
    return str(path) if path.name not in {"", ".."} else os.path.abspath(path)  # noqa: PTH100  (names of links stay)


def _heads(directory: Directory, names: list[str]) -> Mapping[str, bytes]:
    heads = {}
    for name in names:
        with suppress(InputOutputError, MalformedInput), closing(directory.open(name)) as file:
            heads[name] = file.read(0, min(file.size, HEAD_BYTES))
    return heads


def scan(path: Path, depth: int = DEPTH) -> FolderListing:
    """List a folder and those below, as far as ``DEPTH`` and the limits say; what cannot be listed seems empty."""
    left = [MOST_FOLDERS]

    def look(folder: Path, level: int, *, in_cache: bool) -> FolderListing:
        files: dict[str, int] = {}
        folders: dict[str, FolderListing] = {}
        left[0] -= 1
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in islice(entries, MOST_NAMES):
                name = entry.name
                if is_litter(name):
                    continue
                if not entry.is_dir():
                    files[name] = _size(entry)
                    continue
                cached = in_cache or REPOSITORY.fullmatch(name) is not None
                near = level < depth + (2 if cached else 0) or name == PurePath(HIDDEN_DOWNLOADS).name
                hidden = name.startswith(".") and name != PurePath(HIDDEN_DOWNLOADS).parts[0]
                is_wanted = near and not hidden and left[0] > 0
                folders[name] = look(folder / name, level + 1, in_cache=cached) if is_wanted else FolderListing()
        return FolderListing(files, folders)

    return look(path, 0, in_cache=False)


def _size(entry: os.DirEntry[str]) -> int:
    with suppress(OSError):
        return entry.stat().st_size
    return 0
