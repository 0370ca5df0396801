"""Files that stand beside each other, wherever that is.

Enters: a folder of this machine. Leaves: names, and open files. Never: a file that was not named, or a link that leads out of a
folder taken for what it claims to be.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from deltaweights.checkpoint.files import InputFile, LocalFile, read_all, read_small
from deltaweights.checkpoint.sniff import HEAD_BYTES
from deltaweights.errors import InputOutputError, MalformedInput


class Directory(ABC):
    """Files by their plain names. ``path`` is for messages, and for what must not overlap with the output."""

    path: Path

    @property
    def origin(self) -> dict[str, str]:
        """Where the files are from, as the manifest records it: repository and commit; empty for a folder of this machine."""
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
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """See ``Directory``."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path))
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "list") from error

    def has(self, name: str) -> bool:
        """See ``Directory``."""
        try:
            return (self.path / name).exists()
        except OSError as error:
            raise InputOutputError.from_os(error, self.path / name, "look for it") from error

    def open(self, name: str) -> InputFile:
        """See ``Directory``."""
        return LocalFile(self.path / name)

    def read_companion(self, name: str, most: int) -> bytes:
        """See ``Directory``. A link may stay in the folder, or lead into the Hub cache that the folder is a snapshot of."""
        path = self.path / name
        real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(self.path))
        blobs = folder.parent.parent / "blobs"  # models--ORG--NAME/{snapshots/COMMIT/NAME -> ../../blobs/HASH}
        if not real.is_relative_to(folder) and not real.is_relative_to(blobs):
            remedy = "if it belongs to the checkpoint, put a copy of it there"
            raise MalformedInput("a link that leaves the folder", where=path, found=real, remedy=remedy)
        return read_small(path, most)
