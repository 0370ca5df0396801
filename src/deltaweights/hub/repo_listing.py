"""The files of a Hub repository at one commit, as the Hub's API states them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from deltaweights.checkpoint.foreign.listing import FolderListing
from deltaweights.util.text import Json

if TYPE_CHECKING:
    from hashlib import _Hash

COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")

PLAIN_NAME = re.compile(r"[\w.+ ()-]{1,200}")

_PART = re.compile(r"[\w.+ ()@,;=&'!#~%$\[\]{}-]{1,200}")
"""A part of a path of a file in folders."""

MAX_PARTS, MAX_PATH = 16, 1000
"""Parts, and bytes, of such a path."""

MOST_IN_TREE = 1000
"""Files in folders that messages take into account."""

MAX_FILE_BYTES = 1 << 40  # the Hub accepts files of at most 500 GB


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub states it: ``sha256`` for LFS files, only git's SHA-1 for the others.

    Some mirrors state neither (``git_sha1`` is then empty): ``unstated_key`` names the blob of such a file.
    """

    name: str
    size: int
    sha256: str | None
    git_sha1: str
    unstated_key: str = ""

    @property
    def key(self) -> str:
        """The name of its blob in the cache."""
        return self.sha256 or self.git_sha1 or self.unstated_key

    @property
    def has_stated_hash(self) -> bool:
        """Whether there is a hash to compare the content with."""
        return bool(self.sha256 or self.git_sha1)

    def accepts(self, found: str) -> bool:
        """Return whether content with the hash ``found`` may be this file: any, where no hash is stated."""
        return found == self.key or not self.has_stated_hash

    def new_hash(self) -> _Hash:
        """Return the running hash that yields the key: SHA-256, or git's SHA-1 over a header and the content."""
        if self.sha256 is not None or not self.git_sha1:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class RepoListing:
    """The files of a repository at a commit: those at its top by name, and ``below`` those in folders by path.

    Of those in folders ``bare`` have no size or hash yet: a mirror states them in headers only. ``unusable`` are names that no file
    is given here.
    """

    repo: str
    commit: str
    files: dict[str, HubFile]
    below: dict[str, HubFile] = field(default_factory=dict)
    bare: frozenset[str] = frozenset()
    unusable: tuple[str, ...] = ()

    @property
    def all_files(self) -> dict[str, HubFile]:
        """The files at the top and in folders."""
        return self.files | self.below

    def tree(self) -> FolderListing:
        """Return what is in the repository, as far as messages need it."""
        below = dict(islice(self.below.items(), MOST_IN_TREE))
        return FolderListing.of({name: max(0, file.size) for name, file in (self.files | below).items()})


def at_top(files: dict[str, HubFile]) -> dict[str, HubFile]:
    """Return those of ``files`` that are in no folder."""
    return {name: file for name, file in files.items() if "/" not in name}


def in_folders(files: dict[str, HubFile]) -> dict[str, HubFile]:
    """Return those of ``files`` that are in folders."""
    return {name: file for name, file in files.items() if "/" in name}


def parse_unusable(siblings: Json) -> tuple[str, ...]:
    """Return the names among the API's ``siblings`` that no file is given. Raises lookup and type errors when it is no listing."""
    names = (entry["rfilename"] for entry in siblings)
    return tuple(name for name in names if isinstance(name, str) and not is_usable(name))


def parse_files(siblings: Json) -> dict[str, HubFile]:
    """Return the files of the API's ``siblings`` that are usable. Raises lookup and type errors when it is no listing."""
    found = (_parse_file(entry["rfilename"], entry, "blobId", "sha256") for entry in siblings)
    return {file.name: file for file in found if file is not None}


def parse_tree(entries: Json) -> dict[str, HubFile]:
    """Return the same of the entries of ``/tree``."""
    files = [entry for entry in entries if entry["type"] == "file"]
    found = (_parse_file(entry["path"], entry, "oid", "oid") for entry in files)
    return {file.name: file for file in found if file is not None}


def without_details(siblings: Json) -> bool:
    """Return whether some ``siblings`` are mere names: a mirror ignored ``?blobs=true``."""
    return any(not {"size", "lfs"} & entry.keys() for entry in siblings)


def names_only(siblings: Json) -> list[str]:
    """Return the usable names among ``siblings``, whatever else is said of them."""
    return [entry["rfilename"] for entry in siblings if is_usable(entry["rfilename"])]


def is_usable(name: Json) -> bool:
    """Return whether a file may have this name, or be at this path, below a folder of ours.

    No path leads out of the folder, or into what ``hf`` (``.cache``) and git keep beside the files.
    """
    if not isinstance(name, str) or not name.isprintable():
        return False
    parts = name.split("/")
    if len(parts) == 1:
        return bool(PLAIN_NAME.fullmatch(name)) and name not in {".", ".."}
    if len(parts) > MAX_PARTS or len(name.encode()) > MAX_PATH or parts[0].casefold() == ".cache":
        return False
    return all(_PART.fullmatch(part) and part.casefold() not in {".", "..", ".git"} for part in parts)


def _parse_file(name: Json, entry: dict[str, Json], of_git: str, of_lfs: str) -> HubFile | None:
    """Return the file of an entry whose keys ``of_git`` and, in ``lfs``, ``of_lfs`` are its hashes. Either may be missing."""
    lfs, git_sha1 = entry.get("lfs"), entry.get(of_git, "")
    size, sha256 = (lfs["size"], lfs.get(of_lfs)) if lfs else (entry.get("size"), None)
    if not is_usable(name) or type(size) is not int or size not in range(MAX_FILE_BYTES):
        return None
    if not isinstance(git_sha1, str) or not (COMMIT.fullmatch(git_sha1) or not git_sha1):
        return None
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        return None
    # git's hash of an LFS file is that of its pointer, and says nothing about the content.
    return HubFile(name, size, sha256, "" if lfs and sha256 is None else git_sha1)
