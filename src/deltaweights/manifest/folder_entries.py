"""The names in a folder and what each is, without opening any file."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path

from deltaweights.errors import InputOutputError, wrap_os_errors
from deltaweights.util.litter import is_litter

PERMITTED = frozenset({"model.sig", ".cache", "lost+found", ".deltaweights"})
"""What may be beside our files, as may ``.git*``: a signature, the Hub client's cache, ext4's folder at the root of a disk, and
staging of a run that replaces the model, or was killed while it did."""

UNSIGNED = PERMITTED | {".git", ".gitattributes", ".github", ".gitignore"}
"""What a signature does not cover, as in OpenSSF Model Signing. Links and other names that begin with ``.git`` are covered."""

LINK = "a link"


@dataclass
class FolderEntries:
    """Names in a folder but permitted ones; ``links`` are to regular files, ``folders`` may be links, ``others`` are described."""

    files: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    others: dict[str, str] = field(default_factory=dict)

    @property
    def readable(self) -> set[str]:
        """Files and links to files, as in the Hub's cache."""
        return self.files | self.links

    def without_litter(self) -> FolderEntries:
        """Return the entries that belong to the folder."""
        files, links, folders = (set(filterfalse(is_litter, names)) for names in (self.files, self.links, self.folders))
        return FolderEntries(
            files, links, folders, {name: kind for name, kind in self.others.items() if not is_litter(name)}
        )

    def irregular(self, root: Path) -> dict[str, str]:
        """Return every name that is not itself a regular file, with a description."""
        found = dict.fromkeys(self.folders, "a folder") | dict.fromkeys(self.links, "a link") | self.others
        return {name: "a link" if (root / name).is_symlink() else kind for name, kind in sorted(found.items())}


def scan_folder(root: Path, action: str) -> FolderEntries:
    """List the names in ``root``; ``action`` is for messages ("verify"). Raises ``InputOutputError``."""
    entries = FolderEntries()
    for entry in _scan(root, action, "give the folder of a checkpoint"):
        name, path = entry.name, root / entry.name
        if _is_permitted(name):
            continue
        with wrap_os_errors(path, "look at it"):
            is_link = stat.S_ISLNK(path.lstat().st_mode)
            mode = path.stat().st_mode if not is_link or path.exists() else 0
        if stat.S_ISDIR(mode):
            entries.folders.add(name)
        elif stat.S_ISREG(mode):
            (entries.links if is_link else entries.files).add(name)
        else:
            entries.others[name] = "a special file" if mode else "a link to nothing"
    return entries


def unsigned_entries(root: Path) -> dict[str, str]:
    """Return what ``scan_folder`` passes over and a signature must cover, with descriptions. Raises ``InputOutputError``."""
    # Other verifiers of this format know no litter.
    permitted = [entry for entry in _scan(root, "look at") if _is_permitted(entry.name) or is_litter(entry.name)]
    links = {entry.name: LINK for entry in permitted if entry.is_symlink()}
    return {entry.name: "an extra file" for entry in permitted if entry.name not in UNSIGNED} | links


def name_inside(root: Path, path: Path | None) -> set[str]:
    """Return the name of ``path`` if it is directly in ``root``, else nothing."""
    return {path.name} if path is not None and path.parent.resolve() == root.resolve() else set()


def _is_permitted(name: str) -> bool:
    return name in PERMITTED or name.startswith(".git")


def _scan(root: Path, action: str, remedy: str | None = None) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise InputOutputError.from_os(error, root, action, remedy) from error
