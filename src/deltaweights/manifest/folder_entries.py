"""The names in a folder and what each is, without opening any file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path

from deltaweights.errors import InputOutputError, wrap_os_errors
from deltaweights.manifest.file_parts import is_loadable
from deltaweights.util.litter import is_litter

PERMITTED = frozenset({"model.sig", ".cache", "lost+found", ".deltaweights"})
"""What may be beside our files, as may ``.git*``: a signature, the Hub client's cache, ext4's folder at the root of a disk, and
staging of a run that replaces the model, or was killed while it did."""

UNSIGNED = PERMITTED | {".git", ".gitattributes", ".github", ".gitignore"}
"""What a signature does not cover, as in OpenSSF Model Signing. Links and other names that begin with ``.git`` are covered."""

A_FILE, A_FOLDER, A_LINK = "a file", "a folder", "a link"


@dataclass
class FolderEntries:
    """Names in a folder; ``links`` are to regular files, ``folders`` may be links, ``others`` are described.

    ``linked_folders`` are those of ``folders`` that are links. ``passed_over`` describes the names that may stand beside any
    checkpoint (``PERMITTED`` and ``.git*``); they are in none of the other sets.
    """

    files: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    others: dict[str, str] = field(default_factory=dict)
    linked_folders: set[str] = field(default_factory=set)
    passed_over: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_names(cls, files: Iterable[str], folders: Iterable[str] = ()) -> FolderEntries:
        """Return the entries of something that has no links: an archive, or a repository of the Hub."""
        entries = cls()
        for names, kind, to in ((files, A_FILE, entries.files), (folders, A_FOLDER, entries.folders)):
            for name in names:
                if is_permitted(name):
                    entries.passed_over[name] = kind
                else:
                    to.add(name)
        return entries

    @property
    def readable(self) -> set[str]:
        """Files and links to files."""
        return self.files | self.links

    @property
    def litter(self) -> set[str]:
        """Files and folders that systems leave anywhere; links are never among them."""
        return set(filter(is_litter, self.files | self.folders - self.linked_folders))

    @property
    def irregular(self) -> dict[str, str]:
        """Every name that is not a regular file, with a description."""
        found = dict.fromkeys(self.folders, A_FOLDER) | dict.fromkeys(self.links | self.linked_folders, A_LINK)
        return dict(sorted((found | self.others).items()))

    @property
    def unsigned(self) -> dict[str, str]:
        """What is passed over, and a signature must cover, with descriptions: other verifiers of its format know no litter."""
        links = {name for name, kind in self.passed_over.items() if kind == A_LINK}
        links |= set(filter(is_litter, self.links | self.linked_folders))
        links |= {name for name, kind in self.others.items() if is_litter(name) and kind.startswith(A_LINK)}
        passed = {*self.passed_over, *filter(is_litter, {*self.readable, *self.folders, *self.others})}
        return dict.fromkeys(sorted(passed - UNSIGNED), "an extra file") | dict.fromkeys(sorted(links), A_LINK)

    def without_litter(self) -> FolderEntries:
        """Return the entries that belong to the folder."""
        files, links, folders = (set(filterfalse(is_litter, names)) for names in (self.files, self.links, self.folders))
        others = {name: kind for name, kind in self.others.items() if not is_litter(name)}
        return FolderEntries(files, links, folders, others, self.linked_folders & folders, self.passed_over)


def scan_folder(root: Path, action: str) -> FolderEntries:
    """List the names in ``root``; ``action`` is for messages ("verify"). Raises ``InputOutputError``."""
    entries = FolderEntries()
    for name in _scan(root, action, "give the folder of a checkpoint"):
        path = root / name
        if is_permitted(name):
            entries.passed_over[name] = A_LINK if path.is_symlink() else A_FOLDER if path.is_dir() else A_FILE
            continue
        with wrap_os_errors(path, "look at it"):
            is_link = stat.S_ISLNK(path.lstat().st_mode)
            mode = path.stat().st_mode if not is_link or path.exists() else 0
        if stat.S_ISDIR(mode):
            entries.folders.add(name)
            if is_link:
                entries.linked_folders.add(name)
        elif stat.S_ISREG(mode):
            (entries.links if is_link else entries.files).add(name)
        elif is_link:
            entries.others[name] = "a link to a special file" if mode else "a link to nothing"
        else:
            entries.others[name] = "a special file"
    return entries


def name_inside(root: Path, path: Path | None) -> set[str]:
    """Return the name of ``path`` if it is directly in ``root``, else nothing."""
    return {path.name} if path is not None and path.parent.resolve() == root.resolve() else set()


def is_permitted(name: str) -> bool:
    """Return whether a file or folder of this name may stand beside any checkpoint: no loader takes git's files for weights."""
    return name in PERMITTED or (name.startswith(".git") and not is_loadable(name))


def _scan(root: Path, action: str, remedy: str | None = None) -> list[str]:
    try:
        return sorted(os.listdir(root))  # noqa: PTH208  (names are all that is needed)
    except OSError as error:
        raise InputOutputError.from_os(error, root, action, remedy) from error
