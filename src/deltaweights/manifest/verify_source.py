"""Where the files to verify are: a folder, a snapshot of the Hub's cache, an archive, a repository of the Hub."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.safe_open import READ, opened_folder
from deltaweights.checkpoint.small_files import read_all
from deltaweights.errors import wrap_os_errors
from deltaweights.manifest.digests import Digests
from deltaweights.manifest.folder_entries import FolderEntries, name_inside, scan_folder
from deltaweights.manifest.open_checkpoint import open_for_listing

if TYPE_CHECKING:
    from deltaweights.checkpoint.folder import Checkpoint


@dataclass(frozen=True)
class StatedFile:
    """What is stated of one file: ``size`` in bytes, sha256 or, in its place, git's SHA-1 of a blob, in hex; None if unknown."""

    sha256: str | None
    git_sha1: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class StatedHashes:
    """Hashes by name that something other than a manifest states; ``origin`` is for messages: "the Hub", "SHA256SUMS".

    ``documents`` are files that state them, and cannot state their own. ``fault`` is one of these and what is wrong with it.
    """

    origin: str
    files: Mapping[str, StatedFile]
    documents: frozenset[str] = frozenset()
    fault: tuple[str, str] | None = None

    @property
    def folders(self) -> frozenset[str]:
        """The folders inside in which something is stated: other files there are extra ones."""
        return frozenset(name.rpartition("/")[0] for name in self.files if "/" in name)


class VerifySource(ABC):
    """Files to verify. ``title`` is what messages call the whole: a path, or a model's id."""

    title: str
    entries: FolderEntries
    """The names at the top level; whatever may be read without any further condition is among its ``files``."""
    unread: frozenset[str] = frozenset()
    """The files of which ``digests`` has what somebody states, not what was read."""
    not_looked_at: frozenset[str] = frozenset()
    """Files and folders that are there, and neither among ``entries`` nor compared."""
    most_workers: int | None = None
    """How many files may be read at once; None for any number."""
    stated: StatedHashes | None = None
    """What is used where there is no manifest."""
    digests: Digests | None = None
    """The digests of all files, where they had to be read to find out which there are, as in an archive."""
    errors: Mapping[str, Exception] = MappingProxyType({})
    """Why some of these files, or the tensors in them, could not be read."""
    only: str | None = None
    """The name of the one file that is to be verified, beside others of its folder."""

    def where(self, name: str) -> str:
        """Return what messages call a file."""
        return f"{self.title}/{name}"

    @abstractmethod
    def open(self, name: str) -> InputFile:
        """Open a file. Thread-safe. Raises ``InputOutputError``, and ``MalformedInput`` when it is not a regular file."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, without reading it; None when it is not known yet."""

    @abstractmethod
    def checkpoint(self) -> Checkpoint:
        """Open the weights as a loader finds them, for the content digest of a listing. Raises as ``open`` does."""

    def is_inside(self, path: Path | None) -> bool:
        """Return whether a file of this machine is one of these files."""
        del path
        return False

    def read(self, name: str, most: int) -> bytes:
        """Return a file of at most ``most`` bytes. Raises as ``open`` does, and ``MalformedInput`` when it is longer."""
        with closing(self.open(name)) as file:
            return read_all(file, most)

    def state(self, stated: StatedHashes | None) -> None:
        """Take what states the hashes if there is no manifest; folders inside of which it names files are looked at, too."""
        self.stated = stated

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Release what the source holds."""


class LocalSource(VerifySource):
    """A folder of this machine, or one file in it. A file that has become a link since the names were listed is not opened."""

    def __init__(self, root: Path, action: str = "verify") -> None:
        """List the names; ``action`` is for messages. Raises ``InputOutputError``."""
        self.root, self.title = root, str(root)
        self.entries = scan_folder(root, action)

    def state(self, stated: StatedHashes | None) -> None:
        self.stated = stated
        for folder in stated.folders if stated is not None else ():
            with suppress(OSError, ValueError):
                names = os.listdir(self.root / folder) if self._is_plain(folder, stat.S_ISDIR) else ()  # noqa: PTH208
                for name in (f"{folder}/{name}" for name in names):
                    if self._is_plain(name):
                        self.entries.files.add(name)
                    elif not self._is_plain(name, stat.S_ISDIR):
                        self.entries.others[name] = "a link, or a special file"

    def _is_plain(self, name: str, kind: Callable[[int], bool] = stat.S_ISREG) -> bool:
        """Return whether a file in a folder inside is a regular file (or of ``kind``), and no link is on the way."""
        place = self.root
        try:
            for part in name.split("/"):
                if not (place == self.root or stat.S_ISDIR(place.lstat().st_mode)):
                    return False
                place /= part
            return kind(place.lstat().st_mode)
        except (OSError, ValueError):
            return False

    def where(self, name: str) -> str:
        return str(self.root / name)

    def open(self, name: str) -> InputFile:
        *folders, last = name.split("/")
        if not folders:
            return LocalFile(self.root / name, follow=name in self.entries.links)
        with wrap_os_errors(self.root / name, "open"), ExitStack() as stack:
            fd = stack.enter_context(opened_folder(os.path.realpath(self.root)))
            for folder in folders:
                fd = stack.enter_context(opened_folder(folder, fd))
            return LocalFile(self.root / name, os.open(last, READ | os.O_NOFOLLOW, dir_fd=fd))

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return None

    def checkpoint(self) -> Checkpoint:
        return open_for_listing(self.root, self.only)

    def is_inside(self, path: Path | None) -> bool:
        return bool(name_inside(self.root, path))
