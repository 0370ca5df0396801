"""What this user verified of files in caches, kept in the user's own state folder: a cache may be others', too.

Enters: files that have the hash that the Hub states. Leaves: whether a file is one of those, as it was then. Never: a note that
somebody else wrote, or one of a file that somebody else may have changed unseen since.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deltaweights.checkpoint.safe_open import SEARCH
from deltaweights.hub.access import HubFile, Listing
from deltaweights.report import Report
from deltaweights.util.state import state_folder
from deltaweights.util.text import Json, strict_json

MAX_NOTE = 1024 * 1024
"""Bytes of a note: one of a file has some 300, one of a commit 150 for each of its files."""

SETTLED = 60 * 1_000_000_000
"""Nanoseconds after which a change of a file that others may write shows in its times: file systems' clocks are coarse, and what is
written through memory is stamped when its page is first touched, and again once the system has written it out, within 35 s."""

_TOLD: weakref.WeakSet[Report] = weakref.WeakSet()
"""Who was told that there are no notes."""


@dataclass(frozen=True)
class Note:
    """That a file had its hash; ``holds`` says that it is still that file, unchanged.

    ``arrival`` is the mark of the download by which the content came, if that was one of ours.
    """

    holds: bool
    arrival: str | None


class Notes:
    """The notes of this user. Without a folder for them there are none, and files are hashed in every run."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def known(self, blob: Path, key: str, found: os.stat_result) -> Note | None:
        """Return the note of the hash ``key`` of ``blob``, held against how the file was ``found`` when opened, if any."""
        note = self._read(_name(blob))
        if note is None or not isinstance(note.get("file"), dict) or note["file"].get("key") != key:
            return None
        arrival = note.get("arrival")
        return Note(note["file"] == _mark(key, found), arrival if isinstance(arrival, str) else None)

    def keep(self, blob: Path, key: str, found: os.stat_result, arrival: str | None) -> None:
        """Keep that the file at ``blob``, as it was ``found``, has the hash ``key``, and the mark of the download that it came by.

        Not of a file that others may write and that was changed just now: the next change may have the same time.
        """
        if not _is_ours_alone(found) and time.time_ns() - found.st_ctime_ns < SETTLED:
            return
        self._write(_name(blob), {"file": _mark(key, found), "arrival": arrival})

    def keep_listing(self, listing: Listing) -> None:
        """Keep what the Hub states of a commit's files."""
        files = {file.name: [file.size, file.sha256, file.git_sha1] for file in listing.files.values()}
        self._write(_name_of(listing), {"files": files})

    def as_the_hub_had_it(self, cached: Listing) -> Listing:
        """Return the listing that a cache gives, with each file as the Hub stated it, if it did so to this user.

        A snapshot's links are whoever's can write the cache: what they lead to may have its own hash, and be another file.
        """
        note = self._read(_name_of(cached))
        if note is None or not isinstance(note.get("files"), dict):
            return cached
        stated = note["files"]
        with contextlib.suppress(TypeError):
            return replace(
                cached, files={name: HubFile(name, *stated[name]) for name in cached.files if name in stated}
            )
        return cached

    def _read(self, name: str) -> dict[str, Json] | None:
        with contextlib.suppress(OSError, ValueError), self._folder(make=False) as folder:
            if folder is None:
                return None
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=folder), "rb") as file:
                about = os.fstat(file.fileno())
                if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
                    note = strict_json(file.read(MAX_NOTE))
                    return note if isinstance(note, dict) else None
        return None

    def _write(self, name: str, note: Json) -> None:
        try:
            with self._folder(make=True) as folder:
                if folder is None:
                    return
                made, flags = secrets.token_hex(8), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with open(os.open(made, flags, 0o600, dir_fd=folder), "wb") as file:
                    file.write(json.dumps(note).encode())
                os.replace(made, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            self._say_none(f"{_place() or 'XDG_STATE_HOME'}: {error.strerror or error}")

    @contextmanager
    def _folder(self, *, make: bool) -> Iterator[int | None]:
        """Open the folder of notes, if it is there and this user's alone. Raises ``OSError``."""
        place = _place()
        if place is None:
            if make:
                self._say_none("neither XDG_STATE_HOME nor HOME is set, or HOME is somebody else's")
            yield None
            return
        if make and not os.path.lexists(place):
            place.parent.mkdir(0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                place.mkdir(0o700)
        try:
            fd = os.open(place, SEARCH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            self._warn(place, "not a folder")
            yield None
            return
        try:
            about = os.fstat(fd)
            if about.st_uid == os.geteuid() and not about.st_mode & 0o077:
                yield fd
            else:
                self._warn(place, f"owner {about.st_uid}, mode {stat.S_IMODE(about.st_mode):o}")
                yield None
        finally:
            os.close(fd)

    def _say_none(self, reason: str) -> None:
        if self._report not in _TOLD:
            _TOLD.add(self._report)
            self._report.note(
                f"what is verified cannot be noted, so files of the cache are hashed in every run: {reason}"
            )

    def _warn(self, place: Path, found: str) -> None:
        if self._report not in _TOLD:
            _TOLD.add(self._report)
            problem = f"notes of verified files that others may write count for nothing: found {found}"
            self._report.warn(
                f"{place}: {problem}, expected a folder of yours with mode 700; chmod 700 it, or remove it"
            )


def _place() -> Path | None:
    """Return where the notes are; None when nobody knows."""
    state = state_folder()
    return None if state is None else state / "verified"


def _name(blob: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.abspath(blob))).hexdigest()  # noqa: PTH100  (a blob may be a link)


def _name_of(listing: Listing) -> str:
    return hashlib.sha256(f"{listing.repo}@{listing.commit}".encode()).hexdigest()


def _mark(key: str, found: os.stat_result) -> dict[str, Json]:
    """Return what tells a file, as it was found, from all others and from itself after a change."""
    return {
        "key": key,
        "user": os.geteuid(),
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _is_ours_alone(found: os.stat_result) -> bool:
    """Tell whether nobody else, root apart, may write the file."""
    return found.st_uid in {0, os.geteuid()} and not found.st_mode & 0o022
