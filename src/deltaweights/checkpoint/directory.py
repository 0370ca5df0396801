"""Files that stand beside each other, wherever that is.

Enters: a folder of this machine. Leaves: names, and open files. Never: a file that was not named, or a link that leads out of a
folder taken for what it claims to be.
"""

from __future__ import annotations

import errno
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.files import InputFile, LocalFile, read_all
from deltaweights.checkpoint.opening import (
    SEARCH,
    LinkOfOthers,
    NotRegular,
    Outside,
    open_inside,
    open_outside,
    where_led,
)
from deltaweights.checkpoint.sniff import HEAD_BYTES
from deltaweights.errors import InputOutputError, MalformedInput


@dataclass(frozen=True)
class Led:
    """Where a link out of the folder leads, and whether it, or one on the way, is by others than this user and root."""

    to: str
    by_others: bool


class Directory(ABC):
    """Files by their plain names. ``path`` is for messages, and for what must not overlap with the output."""

    path: Path

    @property
    def origin(self) -> dict[str, str]:
        """Where the files are from, as the manifest records it: repository and commit; empty for a folder of this machine."""
        return {}

    @property
    def led(self) -> Mapping[str, Led]:
        """The files so far that were opened by links out of the folder."""
        return {}

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files, sorted. Raises ``InputOutputError``."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Tell whether ``name`` can be opened; a link to nothing cannot. Raises ``InputOutputError`` when nobody can tell."""

    @abstractmethod
    def open(self, name: str) -> InputFile:
        """Open a file. Raises ``InputOutputError`` when it is not there, ``MalformedInput`` when it is no regular file."""

    def head(self, name: str) -> bytes:
        """Return the first bytes of a file, as many as tell what it is (``sniff``). Raises as ``open`` does."""
        file = self.open(name)
        try:
            return file.read(0, min(file.size, HEAD_BYTES))
        finally:
            file.close()

    def read(self, name: str, most: int) -> bytes:
        """Return the contents of a small file. Raises as ``open`` does, and ``MalformedInput`` when it is too long."""
        file = self.open(name)
        try:
            return read_all(file, most)
        finally:
            file.close()

    def read_companion(self, name: str, most: int) -> bytes:
        """Do as ``read`` does, for a file that will be copied: also refuse one that belongs elsewhere."""
        return self.read(name, most)

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Release what the directory holds."""


class LocalDirectory(Directory):
    """A folder of this machine, opened once: what its path leads to later is another one."""

    def __init__(self, path: Path, fd: int | None = None) -> None:
        """Take the folder at ``path``, or that of the descriptor ``fd``, which stays the caller's."""
        self.path = path
        self._led: dict[str, Led] = {}
        self._close: weakref.finalize[[int], LocalDirectory] | None = None
        if fd is not None:
            self._hold(os.dup(fd))

    def _hold(self, fd: int) -> None:
        self._fd_of = fd
        self._close = weakref.finalize(self, os.close, fd)

    @property
    def led(self) -> Mapping[str, Led]:
        return self._led

    @property
    def _fd(self) -> int:
        """The folder, opened. Raises ``OSError``."""
        if self._close is None or not self._close.alive:
            self._hold(os.open(self.path, SEARCH))
        return self._fd_of

    def close(self) -> None:
        if self._close is not None:
            self._close()

    def names(self) -> list[str]:
        try:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                return sorted(entry.name for entry in os.scandir(fd))
            finally:
                os.close(fd)
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "list") from error

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

    def open(self, name: str) -> InputFile:
        """See ``Directory``. A link out of the folder is followed, and noted in ``led``.

        But not where somebody else made it, or a link that it leads to, and the file is not his: it would have us read for him what
        he may not.
        """
        try:
            try:
                fd = open_inside(self._fd, name)
            except Outside:
                fd = self._opened_outside(name)
        except OSError as error:
            raise InputOutputError.from_os(error, self.path / name, "open") from error
        return LocalFile(self.path / name, fd)

    def _opened_outside(self, name: str) -> int:
        where, to = self.path / name, where_led(self.path / name)
        try:
            fd, by_others = open_outside(self._fd, name)
        except LinkOfOthers:
            problem = "a link that somebody else made, to a file that is not his"
            remedy = "give the folder that it leads to, or make the link yourself"
            raise MalformedInput(problem, where=where, found=to, remedy=remedy) from None
        except NotRegular as error:
            remedy = "give the weights file itself"
            raise MalformedInput("not a regular file", where=where, found=error.args[0], remedy=remedy) from None
        self._led[name] = Led(to, by_others)
        return fd

    def read_companion(self, name: str, most: int) -> bytes:
        """See ``Directory``. A link may stay in the folder, or lead into the Hub cache that the folder is a snapshot of."""
        path = self.path / name
        try:
            file = LocalFile(path, open_inside(self._fd, name))
        except Outside:
            remedy = "if it belongs to the checkpoint, put a copy of it there"
            problem, found = "a link that leaves the folder", where_led(path)
            raise MalformedInput(problem, where=path, found=found, remedy=remedy) from None
        except OSError as error:
            raise InputOutputError.from_os(error, path, "open") from error
        try:
            return read_all(file, most)
        finally:
            file.close()
