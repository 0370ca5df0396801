"""A folder with the files of a repository themselves, not links, as ``hf download --local-dir`` leaves it.

What was downloaded is noted in ``.cache/huggingface/download/NAME.metadata`` (commit, hash, time), so that ``hf`` knows the files,
too. A file that nobody noted, or that was written after it was noted, is the user's own, and is never replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar

from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.safe_open import READ
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy, wrap_os_errors
from deltaweights.hub.ids import HubId
from deltaweights.hub.repo_cache import RepoCache
from deltaweights.hub.repo_listing import HubFile
from deltaweights.util.open_folder import OpenFolder

NOTES = (".cache", "huggingface", "download")
"""Where ``hf`` notes what it has downloaded, and both gather what is not complete yet."""

MAX_NOTE_BYTES = 1024

COARSE = 1.0
"""Seconds by which a file may be younger than its note: the times of some file systems are coarse."""

_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by huggingface_hub.\n"
    "# For information about cache directory tags, see:\n"
    "#\thttps://bford.info/cachedir/\n"
)


@dataclass(frozen=True)
class LocalFolder(RepoCache):
    """The files of one commit in the folder ``root``, each under its own name."""

    damage: ClassVar[str] = "downloaded before, and another file, or damaged"
    kind: ClassVar[str] = "in the folder"

    @classmethod
    def at(cls, path: Path) -> LocalFolder:
        """Return the folder at ``path``, which may be a link to it, and need not be there."""
        with wrap_os_errors(path, "look at it"):
            return cls(path.resolve())

    def snapshot(self, commit: str) -> Path:
        del commit
        return self.root

    def place(self, file: HubFile) -> Path:
        return self.root / file.name

    def gathering(self, file: HubFile) -> Path:
        # The pieces of another commit's file are not those of this one, and two files may have the same content.
        name = hashlib.sha256(f"{file.name}\0{file.key}".encode()).hexdigest()[:40]
        return self.root.joinpath(*NOTES, f"{name}.deltaweights.incomplete")

    def open(self, commit: str, file: HubFile) -> tuple[Path, int] | None:
        """Open what is in the place of ``file``, None if nothing is, or what will be replaced.

        Raises ``TargetBusy`` for what is the user's own by its kind or size; contents are compared by ``refuse_other``.
        """
        del commit  # a folder has one
        where = self.place(file)
        with contextlib.suppress(FileNotFoundError):
            try:
                with self.folder_of(where) as folder:
                    fd = os.open(where.name, READ | os.O_NOFOLLOW, dir_fd=folder)
            except FileNotFoundError:
                raise
            except OSError as error:
                if (blocking := self._blocking(where)) is not None:
                    raise _not_replaced(blocking, "a file or a link, where the download has a folder") from None
                if not stat.S_ISREG(where.lstat().st_mode):
                    raise _not_replaced(where, "something else, or a link") from None
                raise InputOutputError.from_os(error, where, "open") from error
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_size == file.size:
                return where, fd
            os.close(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _not_replaced(where, "no file")
            self.refuse_other(file, found)
        return None

    def _blocking(self, where: Path) -> Path | None:
        """Return what is no folder on the way to ``where``, if anything is not."""
        parts = where.relative_to(self.root).parts[:-1]
        folders = (self.root.joinpath(*parts[: count + 1]) for count in range(len(parts)))
        return next((each for each in folders if each.is_symlink() or not each.is_dir()), None)

    def refuse_other(self, file: HubFile, found: os.stat_result) -> None:
        """Raise ``TargetBusy`` unless what was ``found`` in the place of ``file`` was downloaded, and not changed since."""
        noted = self._note_of(file.name)
        if noted is None:
            raise _not_replaced(self.place(file), "another file of this name")
        if found.st_mtime - COARSE > noted:
            raise _not_replaced(self.place(file), "a file that was changed after it was downloaded")

    def make_way(self, file: HubFile) -> None:
        """Look again before a file is put in its place: a download takes long. Raises as ``open`` does."""
        if (found := self.open("", file)) is not None:
            with contextlib.closing(LocalFile(*found)) as other:
                self.refuse_other(file, other.status)

    def create(self) -> None:
        """Create the folder, and what ``hf`` has in it. Raises ``InputOutputError``, and ``MalformedInput`` for links in it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = "choose another folder with --local-dir"
            raise InputOutputError.from_os(error, self.root, "make the folder", remedy) from error
        with self._notes(create=True):
            pass

    def link(self, commit: str, file: HubFile) -> None:
        """Note that a file, which is in its place, is that of a commit. Raises as ``create`` does."""
        with self._notes(file.name, create=True) as notes:
            if notes is None:
                return
            name = f"{self.place(file).name}.metadata"
            old = _lines(notes, name)
            if old[:2] != [commit, file.key] or self._is_younger(file, old):
                notes.replace(name, f"{commit}\n{file.key}\n{time.time()}\n".encode())

    def _is_younger(self, file: HubFile, note: list[str]) -> bool:
        noted = _time_of(note)
        return noted is None or self.place(file).lstat().st_mtime - COARSE > noted

    def set_ref(self, wanted: HubId, commit: str) -> None:
        del wanted, commit  # a cache alone has them

    def hold(self, commit: str) -> None:
        del commit  # nothing prunes a folder

    def drop_leftovers(self, key: str) -> None:
        del key  # the pieces of a file have its name

    def copy(self, file: HubFile, source: LocalFile) -> None:
        """Put a copy of ``source``, which was verified, in the place of ``file``. Raises ``InputOutputError`` and as ``open``."""
        self.create()
        self.make_way(file)
        where = self.place(file)
        with (
            self._notes(create=True) as notes,
            wrap_os_errors(where, "put in place"),
            self.folder_of(where, create=True) as fd,
        ):
            if notes is None:
                raise AssertionError("they were created")
            folder = OpenFolder(fd, where.parent)
            name = f"{secrets.token_hex(8)}.deltaweights.copy"
            try:
                notes.write(name, source.chunks())
                source.check_unchanged()
                notes.rename(name, folder, where.name)
            finally:
                notes.remove(name)

    def _note_of(self, name: str) -> float | None:
        """Return when a file of this name was downloaded, in seconds since 1970; None if that is not noted."""
        with self._notes(name, create=False) as notes:
            return None if notes is None else _time_of(_lines(notes, f"{PurePath(name).name}.metadata"))

    @contextlib.contextmanager
    def _notes(self, name: str = "", *, create: bool) -> Iterator[OpenFolder | None]:
        """Open the folder of the note on the file ``name``, no part of which may be a link; None when it is not there."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(OpenFolder.at(self.root, follow=False))
            for part in (*NOTES, *PurePath(name).parts[:-1]):
                if not create and folder.look(part) is None:
                    yield None
                    return
                folder = stack.enter_context(folder.make(part) if create else folder.folder(part))
                if create and folder.path == self.root.joinpath(*NOTES[:2]):
                    folder.write_once("CACHEDIR.TAG", _TAG.encode())
                    folder.write_once(".gitignore", b"*")
            yield folder


def _lines(notes: OpenFolder, name: str) -> list[str]:
    """Return the lines of a note, none when there is none, or something else."""
    with contextlib.suppress(InputOutputError, MalformedInput):
        return notes.read(name, MAX_NOTE_BYTES).decode("ascii", "replace").split("\n")
    return []


def _time_of(note: list[str]) -> float | None:
    with contextlib.suppress(ValueError, IndexError):
        return float(note[2])
    return None


def _not_replaced(where: Path, found: str) -> TargetBusy:
    problem, remedy = "is not replaced", "move it away, leave it out with --exclude, or choose another folder"
    return TargetBusy(problem, where=where, found=found, remedy=remedy, code=ErrorCode.TARGET_NOT_EMPTY)
