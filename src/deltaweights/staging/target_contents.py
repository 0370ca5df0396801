"""What is in a target, and what of it ``--overwrite`` may replace."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from deltaweights.checkpoint.companions import COPIED, LEGAL, NOTICE_NAME, README, SOURCE_MANIFEST
from deltaweights.checkpoint.layout_names import HF_WEIGHTS
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import TargetBusy, wrap_os_errors
from deltaweights.manifest.records import INDEX, MANIFEST, SUMS
from deltaweights.staging.location import TargetLocation
from deltaweights.util.litter import JUPYTER, is_litter, jupyter_original
from deltaweights.util.open_folder import OpenFolder

READMES = {README, f"DELTA_{README}", f"TARGET_{README}", f"BASE_{README}"}
DOCUMENTS = {MANIFEST, SUMS, INDEX, "pytorch_model.bin.index.json", "model.sig", NOTICE_NAME}

REPLACEABLE = COPIED | READMES | DOCUMENTS | {SOURCE_MANIFEST, ".gitattributes"}
"""Files of a checkpoint other than weights and licences; a folder that holds anything else is not ours to replace."""

HUB_METADATA = ".cache"  # where ``hf download --local-dir`` keeps facts about the files, in a folder ``huggingface``

OF_LOCAL_DIR = frozenset({"download", "upload", ".gitignore", "CACHEDIR.TAG"})
"""What is in that folder. If the target is HOME, the Hub's whole cache and a token are there as well."""

Contents = Mapping[str, os.stat_result]  # the ``lstat`` of each name in a folder
FileStamp = tuple[int, int, int]  # inode, size and modification time (ns): tells a file from one put in its place


def is_result_file(name: str) -> bool:
    """Return whether a file of a checkpoint may have this name."""
    return name in REPLACEABLE or HF_WEIGHTS.fullmatch(name) is not None or LEGAL.fullmatch(name) is not None


def stamp_of(found: os.stat_result) -> FileStamp:
    """Return the stamp of a file."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def contents_of(folder: OpenFolder, location: TargetLocation) -> dict[str, os.stat_result]:
    """Return what is in ``folder``, without staging, litter and what belongs to the file system. Raises ``InputOutputError``."""
    # In a mount point, which is staged inside, ``lost+found`` is the system's; elsewhere it is the user's folder.
    ignored = {"lost+found", location.root.name} if location.inside else set[str]()
    looks = {name: folder.look(name) for name in folder.names() if name not in ignored}
    return {name: found for name, found in looks.items() if found is not None and not _is_litter(folder, name, found)}


def _is_litter(folder: OpenFolder, name: str, found: os.stat_result) -> bool:
    """Return whether a name is a file that systems leave, or Jupyter's folder with nothing but copies of a checkpoint's files."""
    if stat.S_ISREG(found.st_mode):
        return is_litter(name)
    if name != JUPYTER or not stat.S_ISDIR(found.st_mode):
        return False
    with folder.folder(name) as inner:
        originals = [jupyter_original(each) for each in inner.names()]
    return all(each is not None and is_result_file(each) for each in originals)


def refuse_content(contents: Contents, folder: OpenFolder | None, where: Path, *, overwrite: bool) -> None:
    """Raise ``TargetBusy`` when the ``contents`` of the target ``where`` may not be replaced; ``folder`` is None for a file."""
    if not contents:
        return
    code, choose = ErrorCode.TARGET_NOT_EMPTY, "choose another output folder"
    if folder is None:
        problem = "not a folder" if overwrite else "already there, and not a folder"
        raise TargetBusy(problem, where=where, remedy=choose, code=code)
    irreplaceable = _irreplaceable(contents, folder)
    if not overwrite:
        remedy = f"empty it, or {choose}" if irreplaceable else f"{choose}, or replace it with --overwrite"
        found = _some(list(contents))
        raise TargetBusy("already there, with other content", where=where, found=found, remedy=remedy, code=code)
    if irreplaceable:
        problem, remedy = "will not overwrite a folder that is not a checkpoint", f"empty it, or {choose}"
        raise TargetBusy(problem, where=where, found=_some(irreplaceable), remedy=remedy, code=code)


def _irreplaceable(contents: Contents, folder: OpenFolder) -> list[str]:
    """Return the names that are no part of a checkpoint, or all when there are no weights: empty if it may be replaced."""
    # A directory under the name of a checkpoint's file holds something of the user's.
    folders = {name for name, found in contents.items() if stat.S_ISDIR(found.st_mode)}
    strangers = [n for n in contents if not (is_hub_metadata(folder, n) if n in folders else is_result_file(n))]
    has_weights = any(name == MANIFEST or HF_WEIGHTS.fullmatch(name) for name in contents)
    return strangers or ([] if has_weights else list(contents))


def may_be_replaced(location: TargetLocation) -> bool:
    """Return whether ``--overwrite`` would replace the folder that is the target."""
    with OpenFolder.at(location.target) as folder:
        return not _irreplaceable(contents_of(folder, location), folder)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def is_hub_metadata(folder: OpenFolder, name: str) -> bool:
    """Return whether the folder ``name`` holds only what ``hf download --local-dir`` writes. Raises ``InputOutputError``."""
    if name != HUB_METADATA:
        return False
    with folder.folder(name) as metadata:
        if set(metadata.names()) - {"huggingface"}:
            return False
        if metadata.look("huggingface") is None:
            return True
        with metadata.folder("huggingface") as inner:
            return set(inner.names()) <= OF_LOCAL_DIR


def refuse_foreign_content(location: TargetLocation, *, overwrite: bool) -> None:
    """Fail fast on what may not be replaced; what may be ours is left to the check under the lock. Raises ``TargetBusy``."""
    target = location.target
    found = None
    with wrap_os_errors(target, "look into"), suppress(FileNotFoundError):
        found = target.stat()
    if found is None:
        return
    folder = OpenFolder.at(target) if stat.S_ISDIR(found.st_mode) else None
    with folder or nullcontext():
        contents = {target.name: found} if folder is None else contents_of(folder, location)
        if MANIFEST not in contents and not location.worth_keeping():
            refuse_content(contents, folder, target, overwrite=overwrite)
