"""The files of one folder, wherever it is."""

from __future__ import annotations

import errno
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.file_type import HEAD_BYTES
from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.foreign.listing import FolderListing
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.safe_open import (
    SEARCH,
    ForeignLink,
    LeadsOutside,
    NotRegularFile,
    link_target,
    open_inside,
    open_outside,
)
from deltaweights.checkpoint.small_files import read_all
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, wrap_os_errors
from deltaweights.util.litter import is_litter


@dataclass(frozen=True)
class OutsideLink:
    """Where a link out of the folder leads, and whether a link on the way belongs to a user other than this one and root."""

    target: str
    by_others: bool


class Directory(ABC):
    """Files by name. ``path`` is for messages, and must not overlap with the output."""

    path: Path

    @property
    def origin(self) -> dict[str, str]:
        """Where the files came from, as the manifest records it: repository and commit; empty for a local folder."""
        return {}

    @property
    def outside_links(self) -> Mapping[str, OutsideLink]:
        """The files opened so far through links out of the folder."""
        return {}

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files but litter, sorted. Raises ``InputOutputError``."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Return whether ``name`` can be opened; a dangling link cannot. Raises ``InputOutputError`` when that is unknown."""

    @abstractmethod
    def open(self, name: str) -> InputFile:
        """Open a file. Raises ``InputOutputError`` when it is not there, ``MalformedInput`` when it is not a regular file."""

    def tree(self) -> FolderListing:
        """Return what is in the folder and below it, as far as that is known. Raises ``InputOutputError``."""
        return FolderListing(dict.fromkeys(self.names(), 0))

    def modified(self, name: str) -> float | None:
        """Return when a file was last written, in seconds since 1970; None when that says nothing or is not known."""
        del name
        return None

    def head(self, name: str) -> bytes:
        """Return enough of a file's start for ``detect_file_type``. Raises as ``open`` does."""
        with closing(self.open(name)) as file:
            return file.read(0, min(file.size, HEAD_BYTES))

    def read(self, name: str, most: int) -> bytes:
        """Return the contents of a file of at most ``most`` bytes. Raises ``InputOutputError`` and ``MalformedInput``."""
        with closing(self.open(name)) as file:
            return read_all(file, most)

    def read_companion(self, name: str, most: int) -> bytes:
        """Read a file that will be copied: like ``read``, but links out of the folder are refused."""
        return self.read(name, most)

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Release what the directory holds."""


class LocalDirectory(Directory):
    """A folder of this machine, opened once: a folder that its path leads to later is not read."""

    def __init__(self, path: Path, fd: int | None = None) -> None:
        """Take the folder at ``path``, or a duplicate of its descriptor ``fd``."""
        self.path = path
        self._outside_links: dict[str, OutsideLink] = {}
        self._close: weakref.finalize[[int], LocalDirectory] | None = None
        if fd is not None:
            self._hold(os.dup(fd))

    def _hold(self, fd: int) -> None:
        self._held_fd, self._close = fd, weakref.finalize(self, os.close, fd)

    @property
    def outside_links(self) -> Mapping[str, OutsideLink]:
        return self._outside_links

    @property
    def _fd(self) -> int:
        """The folder, opened on first use. Raises ``OSError``."""
        if self._close is None or not self._close.alive:
            self._hold(os.open(self.path, SEARCH))
        return self._held_fd

    def close(self) -> None:
        if self._close is not None:
            self._close()

    def names(self) -> list[str]:
        with wrap_os_errors(self.path, "list"):
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                return sorted(entry.name for entry in os.scandir(fd) if not is_litter(entry.name))
            finally:
                os.close(fd)

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd)
        except ValueError:
            return False
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return False
            raise InputOutputError.from_os(error, self.path / name, "look for it") from error
        return True

    def modified(self, name: str) -> float | None:
        try:
            return os.stat(name, dir_fd=self._fd).st_mtime
        except (OSError, ValueError):
            return None

    def open(self, name: str) -> InputFile:
        """Open a file. A link out of the folder is followed, and recorded in ``outside_links``.

        It is refused if it, or a link that it leads to, belongs to another user who does not own the file:
        they could make us read a file for them that they may not read.
        """
        with wrap_os_errors(self.path / name, "open"):
            try:
                fd = open_inside(self._fd, name)
            except LeadsOutside:
                fd = self._open_outside(name)
        return LocalFile(self.path / name, fd)

    def _open_outside(self, name: str) -> int:
        where, target = self.path / name, link_target(self.path / name)
        try:
            fd, by_others = open_outside(self._fd, name)
        except ForeignLink:
            remedy = "give the folder that it leads to, or make the link yourself"
            raise MalformedAt(where, remedy)("another user's link to a file that is not theirs", target) from None
        except NotRegularFile as error:
            raise MalformedAt(where, "give the file itself")("not a regular file", error.args[0]) from None
        self._outside_links[name] = OutsideLink(target, by_others)
        return fd

    def read_companion(self, name: str, most: int) -> bytes:
        """Read a file that will be copied. A link may stay in the folder, or lead into the Hub cache that it is a snapshot of."""
        path = self.path / name
        with wrap_os_errors(path, "open"):
            try:
                file = LocalFile(path, open_inside(self._fd, name))
            except LeadsOutside:
                remedy = "if it belongs to the checkpoint, put a copy of it there"
                problem, found = "a link that leaves the folder", link_target(path)
                raise MalformedAt(path, remedy)(problem, found, code=ErrorCode.LINK_OUTSIDE) from None
        with closing(file):
            return read_all(file, most)
