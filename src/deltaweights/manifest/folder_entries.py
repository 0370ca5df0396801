"""What stands in a folder, before anything of it is read.

Enters: a folder. Leaves: its names, sorted by what they stand for. Never: an open file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from deltaweights.errors import InputOutputError

PERMITTED = frozenset({"model.sig", ".cache", "lost+found", ".deltaweights"})
"""What may stand beside our files: a signature, the Hub client's cache, what ext4 puts at the root of a disk, staging of a run that
replaces the model or was killed when it had; and ``.git*``."""


UNSIGNED = PERMITTED | {".git", ".gitattributes", ".github", ".gitignore"}
"""What a signature does not vouch for, as OpenSSF Model Signing has it: no link, and no other name that begins with ``.git``."""


@dataclass
class FolderEntries:
    """The names in a folder, but for those that may stand beside any checkpoint.

    ``files`` are regular files, ``links`` are links to such, ``folders`` are folders and links to such. ``others`` says of all
    the rest what it is.
    """

    files: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    others: dict[str, str] = field(default_factory=dict)

    @property
    def readable(self) -> set[str]:
        """What can be read as a file, be it by a link, as in the Hub's cache."""
        return self.files | self.links

    def odd(self, root: Path) -> dict[str, str]:
        """Return what is no regular file itself, and what it is instead."""
        folders = dict.fromkeys(self.folders, "a folder")
        found = folders | dict.fromkeys(self.links, "a link") | self.others
        return {name: "a link" if (root / name).is_symlink() else kind for name, kind in sorted(found.items())}


def scan(root: Path, doing: str) -> FolderEntries:
    """Look at the names in ``root``, to do with it what messages say. Raises ``InputOutputError``."""
    entries = FolderEntries()
    try:
        names = sorted(entry.name for entry in os.scandir(root))
    except OSError as error:
        raise InputOutputError.from_os(error, root, doing, "give the folder of a checkpoint") from error
    for name in names:
        if name in PERMITTED or name.startswith(".git"):
            continue
        path = root / name
        try:
            is_link = stat.S_ISLNK(path.lstat().st_mode)
            mode = path.stat().st_mode if not is_link or path.exists() else 0
        except OSError as error:
            raise InputOutputError.from_os(error, path, "look at it") from error
        if stat.S_ISDIR(mode):
            entries.folders.add(name)
        elif stat.S_ISREG(mode):
            (entries.links if is_link else entries.files).add(name)
        else:
            entries.others[name] = "a special file" if mode else "a link to nothing"
    return entries


def unsigned_entries(root: Path) -> dict[str, str]:
    """Return the names in ``root`` that ``scan`` passes over and a signature must not, and what each is.

    Raises ``InputOutputError``.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise InputOutputError.from_os(error, root, "look at") from error
    passed = [entry for entry in entries if entry.name in PERMITTED or entry.name.startswith(".git")]
    links = {entry.name: "a link" for entry in passed if entry.is_symlink()}
    return {entry.name: "an extra file" for entry in passed if entry.name not in UNSIGNED} | links


def name_inside(root: Path, path: Path | None) -> set[str]:
    """Return the name of ``path`` when it is one in ``root``."""
    return {path.name} if path is not None and path.parent.resolve() == root.resolve() else set()
