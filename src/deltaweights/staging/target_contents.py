"""What stands in a target, and what of it ``--overwrite`` may replace."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from deltaweights.checkpoint.companions import COPIED, LEGAL, NOTICE_NAME, README
from deltaweights.checkpoint.layout import HF_WEIGHTS
from deltaweights.errors import InputOutputError, TargetBusy
from deltaweights.manifest.records import INDEX, MANIFEST, SUMS
from deltaweights.staging.location import TargetLocation
from deltaweights.util.open_folder import OpenFolder

REPLACEABLE = COPIED | {
    MANIFEST,
    SUMS,
    INDEX,
    NOTICE_NAME,
    README,
    f"DELTA_{README}",
    f"TARGET_{README}",
    f"BASE_{README}",
    "pytorch_model.bin.index.json",
    "model.sig",
    ".gitattributes",
}
"""Files of a checkpoint, weights and licence files apart; a folder with anything else is not ours to replace."""

HUB_METADATA = ".cache"
"""The folder in which ``hf download --local-dir`` keeps what it knows of the files, in a folder ``huggingface``."""

OF_LOCAL_DIR = frozenset({"download", "upload", ".gitignore", "CACHEDIR.TAG"})
"""What is in that one. Where HOME is the target, the Hub's whole cache and a token are there, too."""

Contents = Mapping[str, os.stat_result]
"""What the system says of each name in a folder, links themselves and not where they lead."""

FileStamp = tuple[int, int, int]
"""Inode, size and time of modification (ns): what tells a file from another one that was put in its place."""


def is_result_file(name: str) -> bool:
    """Tell whether ``name`` is one that a file of a checkpoint may have."""
    return name in REPLACEABLE or HF_WEIGHTS.fullmatch(name) is not None or LEGAL.fullmatch(name) is not None


def stamp_of(found: os.stat_result) -> FileStamp:
    """Return the mark of a file."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def contents_of(folder: OpenFolder, place: TargetLocation) -> dict[str, os.stat_result]:
    """Return what stands in ``folder``, staging and what belongs to the disk left out. Raises ``InputOutputError``."""
    # A mount point, where ``lost+found`` is the system's, is staged inside; elsewhere it is somebody's folder.
    passed_over = {"lost+found", place.root.name} if place.inside else set[str]()
    looks = {name: folder.look(name) for name in folder.names() if name not in passed_over}
    return {name: found for name, found in looks.items() if found is not None}


def contents_at(place: TargetLocation) -> dict[str, os.stat_result]:
    """Return what stands in the target of ``place``, nothing when it is not there; a file is its own content.

    For a look before anything is locked. Raises ``InputOutputError``.
    """
    try:
        found = place.target.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputOutputError.from_os(error, place.target, "look into") from error
    if not stat.S_ISDIR(found.st_mode):
        return {place.target.name: found}
    with OpenFolder.at(place.target) as folder:
        return contents_of(folder, place)


def refuse_content(contents: Contents, folder: OpenFolder | None, where: Path, *, overwrite: bool) -> None:
    """Raise ``TargetBusy`` when what stands in the target ``where`` may not be replaced; ``folder`` is None when it is a file."""
    if not contents:
        return
    if not overwrite:
        remedy = "choose another output folder, or replace it with --overwrite"
        raise TargetBusy("already there, with other content", where=where, found=_some(contents), remedy=remedy)
    if folder is None:
        raise TargetBusy("not a folder", where=where, remedy="choose another output folder")
    strangers = [name for name, found in contents.items() if not _may_be_replaced(folder, name, found)]
    if strangers or not any(name == MANIFEST or HF_WEIGHTS.fullmatch(name) for name in contents):
        raise TargetBusy(
            "will not overwrite a folder that is not a checkpoint",
            where=where,
            found=_some(strangers or contents),
            remedy="empty it, or choose another output folder",
        )


def _some(names: Mapping[str, object] | list[str]) -> str:
    first = list(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _may_be_replaced(folder: OpenFolder, name: str, found: os.stat_result) -> bool:
    """Tell whether ``name`` is a file of a checkpoint, and really a file: a folder of that name holds something of the user's."""
    return is_hub_metadata(folder, name) if stat.S_ISDIR(found.st_mode) else is_result_file(name)


def is_hub_metadata(folder: OpenFolder, name: str) -> bool:
    """Tell whether the folder ``name`` holds only what ``hf download --local-dir`` keeps. Raises ``InputOutputError``."""
    if name != HUB_METADATA:
        return False
    with folder.folder(name) as metadata:
        if set(metadata.names()) - {"huggingface"}:
            return False
        if metadata.look("huggingface") is None:
            return True
        with metadata.folder("huggingface") as inner:
            return set(inner.names()) <= OF_LOCAL_DIR


def refuse_foreign_content(place: TargetLocation, *, overwrite: bool) -> None:
    """Raise ``TargetBusy`` when what stands in the target is certainly no result of ours, and may not be replaced.

    Cheap, so that nobody waits for inputs to be unpacked or hashed to hear it.
    """
    contents = contents_at(place)
    if MANIFEST in contents or place.worth_keeping():
        return
    folder = OpenFolder.at(place.target) if contents and place.target.is_dir() else None
    with folder or nullcontext():
        refuse_content(contents, folder, place.target, overwrite=overwrite)
