"""Which cached files this user has verified, so that they need not be hashed in every run.

The records are in the user's own state folder, since a cache may be shared. A record counts only while it is this user's alone and
the file's identity, times and size are unchanged.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deltaweights.checkpoint.safe_open import SEARCH
from deltaweights.hub.repo_listing import HubFile, RepoListing, at_top, in_folders
from deltaweights.report import Report
from deltaweights.util.state import state_folder
from deltaweights.util.text import Json, strict_json

MAX_RECORD_BYTES = 1024 * 1024
"""The record of a file has some 300 bytes, that of a commit 150 for each of its files."""

MOST_PER_FILE = 200
"""Bytes of what is recorded of a file beside its name: a size, a hash of each kind, and punctuation."""

SETTLED = 60 * 1_000_000_000
"""Nanoseconds after which a change of a file that others can write shows in its times: file systems' clocks are coarse, and what is
written through mapped memory is stamped when its page is first touched and again when it is written back, within 35 s."""

_THIS_RUN: weakref.WeakKeyDictionary[object, dict[str, dict[str, Json]]] = weakref.WeakKeyDictionary()
"""What each run recorded, by name: where no record can be written, a file is hashed once a run all the same."""

_WARNED: weakref.WeakSet[Report] = weakref.WeakSet()
"""Reports that already say that there are no records."""


@dataclass(frozen=True)
class VerificationRecord:
    """That a file had its hash, whether it is unchanged since, and the id of our download that brought it, if any."""

    current: bool
    download_id: str | None


class VerificationRecords:
    """The records of this user. Without a folder for them, files are hashed in every run."""

    def __init__(self, report: Report, run: object | None = None) -> None:
        self._report, self._run = report, report if run is None else run

    def find(self, blob: Path, key: str, found: os.stat_result) -> VerificationRecord | None:
        """Return the record that ``blob`` has the hash ``key``, compared with how the open file was ``found``."""
        name, identity = _name_of_blob(blob), _identity(key, found)
        made = _THIS_RUN.get(self._run, {}).get(name)
        record = made if made is not None and made["file"] == identity else self._read(name)
        if record is None or not isinstance(record.get("file"), dict) or record["file"].get("key") != key:
            return None
        download_id = record.get("arrival")
        current = record["file"] == identity
        return VerificationRecord(current, download_id if isinstance(download_id, str) else None)

    def add(self, blob: Path, key: str, found: os.stat_result, download_id: str | None) -> None:
        """Record the hash, unless others can write the file and it was changed just now: the next change may have the same time."""
        only_we_can_write = found.st_uid in {0, os.geteuid()} and not found.st_mode & 0o022  # beside root
        if not only_we_can_write and time.time_ns() - found.st_ctime_ns < SETTLED:
            return
        name, record = _name_of_blob(blob), {"file": _identity(key, found), "arrival": download_id}
        _THIS_RUN.setdefault(self._run, {})[name] = record
        self._write(name, record)

    def add_listing(self, listing: RepoListing) -> None:
        """Record what the Hub states of a commit's files; of those in folders as far as the record stays one that is read."""
        stated = {name: file for name, file in listing.all_files.items() if name not in listing.bare}
        if sum(len(os.fsencode(name)) + MOST_PER_FILE for name in stated) > MAX_RECORD_BYTES:
            stated = listing.files
        files = {file.name: [file.size, file.sha256, file.git_sha1, file.unstated_key] for file in stated.values()}
        self._write(_name_of_commit(listing), {"files": files})

    def with_stated_hashes(self, cached: RepoListing) -> RepoListing:
        """Return a cache's listing with each file as the Hub stated it to this user, if it did.

        Whoever can write the cache can change a snapshot's links: their targets may have their own hash, and be other files.
        """
        record = self._read(_name_of_commit(cached))
        if record is None or not isinstance(record.get("files"), dict):
            return cached
        stated = record["files"]
        with contextlib.suppress(TypeError):
            files = {name: HubFile(name, *stated[name]) for name in cached.all_files if name in stated}
            return replace(cached, files=at_top(files), below=in_folders(files))
        return cached

    def _read(self, name: str) -> dict[str, Json] | None:
        with contextlib.suppress(OSError, ValueError), self._folder(create=False) as folder:
            if folder is None:
                return None
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=folder), "rb") as file:
                about = os.fstat(file.fileno())
                if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
                    record = strict_json(file.read(MAX_RECORD_BYTES))
                    return record if isinstance(record, dict) else None
        return None

    def _write(self, name: str, record: Json) -> None:
        try:
            with self._folder(create=True) as folder:
                if folder is None:
                    return
                temporary, flags = secrets.token_hex(8), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with open(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
                    file.write(json.dumps(record).encode())
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            self._note_none(f"{_folder_path() or 'XDG_STATE_HOME'}: {error.strerror or error}")

    @contextmanager
    def _folder(self, *, create: bool) -> Iterator[int | None]:
        """Open the folder of records, None unless it is there and this user's alone. Raises ``OSError``."""
        path = _folder_path()
        if path is None:
            if create:
                self._note_none("neither XDG_STATE_HOME nor HOME is set, or HOME belongs to another user")
            yield None
            return
        if create and not os.path.lexists(path):
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o700)
        try:
            fd = os.open(path, SEARCH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            self._warn_of_folder(path, "not a folder")
            yield None
            return
        try:
            about = os.fstat(fd)
            if about.st_uid == os.geteuid() and not about.st_mode & 0o077:
                yield fd
            else:
                self._warn_of_folder(path, f"owner {about.st_uid}, mode {stat.S_IMODE(about.st_mode):o}")
                yield None
        finally:
            os.close(fd)

    def _note_none(self, reason: str) -> None:
        self._once(
            self._report.note, f"cannot record verified files, so cached files are hashed in every run: {reason}"
        )

    def _warn_of_folder(self, path: Path, found: str) -> None:
        problem = f"records of verified files that others can write are ignored: found {found}"
        text = f"{path}: {problem}, expected a folder of yours with mode 700; chmod 700 it, or remove it"
        self._once(self._report.warn, text)

    def _once(self, say: Callable[[str], None], text: str) -> None:
        if self._report not in _WARNED:
            _WARNED.add(self._report)
            say(text)


def _folder_path() -> Path | None:
    state = state_folder()
    return None if state is None else state / "verified"


def _name_of_blob(blob: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.abspath(blob))).hexdigest()  # noqa: PTH100  (a blob may be a link)


def _name_of_commit(listing: RepoListing) -> str:
    return hashlib.sha256(f"{listing.repo}@{listing.commit}".encode()).hexdigest()


def _identity(key: str, found: os.stat_result) -> dict[str, Json]:
    return {
        "key": key,
        "user": os.geteuid(),
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }
