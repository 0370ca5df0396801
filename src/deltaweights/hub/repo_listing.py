"""The files of a Hub repository at one commit, as the Hub's API states them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaweights.checkpoint.foreign.listing import FolderListing
from deltaweights.util.text import Json

if TYPE_CHECKING:
    from hashlib import _Hash

COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")

PLAIN_NAME = re.compile(r"[\w.+ ()-]{1,200}")

_DEEPER = re.compile(r"(?!.*\.\./)(?:\w[\w.+ ()-]{0,200}/){1,4}\w[\w.+ ()-]{0,200}")

MOST_DEEPER = 1000

MAX_FILE_BYTES = 1 << 40  # the Hub accepts files of at most 500 GB


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub states it: ``sha256`` for LFS files, only git's SHA-1 for the others."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str

    @property
    def key(self) -> str:
        """The name of its blob in the cache."""
        return self.sha256 or self.git_sha1

    def new_hash(self) -> _Hash:
        """Return the running hash that yields the key: SHA-256, or git's SHA-1 over a header and the content."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class RepoListing:
    """The top-level files of a repository at a commit; ``deeper`` are the paths of some that are in folders, which are not read."""

    repo: str
    commit: str
    files: dict[str, HubFile]
    deeper: tuple[str, ...] = ()

    def tree(self) -> FolderListing:
        """Return what is in the repository, as far as messages need it: sizes are known of top-level files only."""
        return FolderListing.of({name: file.size for name, file in self.files.items()} | dict.fromkeys(self.deeper, 0))


def parse_deeper(siblings: Json) -> tuple[str, ...]:
    """Return the paths of files in folders among the API's ``siblings``. Raises lookup and type errors when it is no listing."""
    names = (entry["rfilename"] for entry in siblings)
    return tuple(name for name in names if isinstance(name, str) and _DEEPER.fullmatch(name))[:MOST_DEEPER]


def parse_files(siblings: Json) -> dict[str, HubFile]:
    """Return the top-level files of the API's ``siblings`` that are usable. Raises lookup and type errors when it is no listing."""
    found = (_parse_file(entry) for entry in siblings)
    return {file.name: file for file in found if file is not None}


def _parse_file(entry: dict[str, Json]) -> HubFile | None:
    name, lfs, git_sha1 = entry["rfilename"], entry.get("lfs"), entry.get("blobId")
    size, sha256 = (lfs["size"], lfs["sha256"]) if lfs else (entry.get("size"), None)
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name) or name in {".", ".."} or not name.isprintable():
        return None
    if type(size) is not int or size not in range(MAX_FILE_BYTES):
        return None
    if not isinstance(git_sha1, str) or not COMMIT.fullmatch(git_sha1):
        return None
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        return None
    return HubFile(name, size, sha256, git_sha1)
