"""The Hub's cache, written: blobs under their hashes, and snapshots that link to them.

Enters: files of a listing, and their bytes once they are all there and have their hash. Leaves: what ``hf`` leaves, so that each
uses what the other fetched. Never: a file under its final name that has not the hash that the Hub states, or a change in a folder
to which somebody turned one of the cache's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.safe_open import SEARCH, LeadsOutside, open_blob, opened_folder
from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.hub.access import COMMIT, HubFile, Listing
from deltaweights.hub.cache import PREFIX, SHA256
from deltaweights.hub.ids import HubId

MAX_REF = 1024
"""Bytes of the name of a commit, and room for a line's end."""


@dataclass(frozen=True)
class Store:
    """The cache's folder of one repository."""

    root: Path

    @classmethod
    def of(cls, cache: Path, repo: str) -> Store:
        """Return the store of ``repo``."""
        return cls(cache / f"{PREFIX}{repo.replace('/', '--')}")

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit's files."""
        return self.root / "snapshots" / commit

    def blob(self, key: str) -> Path:
        """Return where a file's content is, once it is whole."""
        return self.root / "blobs" / key

    def open_blob(self, key: str) -> int | None:
        """Open a file's content, if it is there. Raises ``LeadsOutside`` for a link out of the cache, and ``InputOutputError``."""
        blob = self.blob(key)
        try:
            if not blob.is_file():
                return None
            blobs = os.open(blob.parent, SEARCH)
            try:
                return open_blob(blobs, blob.name)
            finally:
                os.close(blobs)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputOutputError.from_os(error, blob, "open") from error

    def has_blob(self, key: str) -> bool:
        """Tell whether a file's content is there, and not by a link out of the cache. Raises ``InputOutputError``."""
        try:
            fd = self.open_blob(key)
        except LeadsOutside:
            return False
        if fd is not None:
            os.close(fd)
        return fd is not None

    def incomplete(self, key: str) -> Path:
        """Return where a file's content is gathered; beside it stands which pieces of it are there."""
        return self.root / "blobs" / f"{key}.deltaweights.incomplete"

    def prepare(self) -> None:
        """Make the folders. Raises ``InputOutputError``."""
        for folder in ("blobs", "snapshots", "refs"):
            try:
                with self._inside(folder):
                    pass
            except OSError as error:
                remedy = "choose another cache with --cache-dir or HF_HUB_CACHE"
                raise InputOutputError.from_os(error, self.root / folder, "make the folder", remedy) from error

    @contextmanager
    def _inside(self, *names: str) -> Iterator[int]:
        """Open a folder of the store, made where it is missing; none of ``names`` is a link. Raises ``OSError``."""
        self.root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            fd = os.open(self.root, SEARCH)
            stack.callback(os.close, fd)
            for name in names:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
                fd = stack.enter_context(opened_folder(name, fd))
            yield fd

    def name_commit(self, wanted: HubId, commit: str) -> None:
        """Keep which commit a branch or tag is at, for those who are offline."""
        revision = wanted.revision or "main"
        if COMMIT.fullmatch(revision):
            return
        *folders, name = revision.split("/")
        with contextlib.suppress(OSError), self._inside("refs", *folders) as folder:  # of use later only
            made = f".{name}.{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(made, flags, 0o666, dir_fd=folder), "w") as out:
                out.write(commit)
            os.replace(made, name, src_dir_fd=folder, dst_dir_fd=folder)

    def link(self, commit: str, file: HubFile) -> None:
        """Give a blob its name in a commit's snapshot. Raises ``InputOutputError``."""
        path, target = self.snapshot(commit) / file.name, f"../../blobs/{file.key}"
        try:
            with self._inside("snapshots", commit) as folder:
                with contextlib.suppress(FileNotFoundError):
                    if _text_of_link(file.name, folder) == target:
                        return
                    os.unlink(file.name, dir_fd=folder)
                with contextlib.suppress(FileExistsError):  # another process was faster
                    os.symlink(target, file.name, dir_fd=folder)
        except NotADirectoryError:
            found, remedy = "something else, or a link", "remove it, or choose another cache with --cache-dir"
            raise InputOutputError("no folder of a cache", where=path.parent, found=found, remedy=remedy) from None
        except OSError as error:
            raise InputOutputError.from_os(error, path, "link the file") from error

    # Without the Hub.

    def listing(self, wanted: HubId) -> Listing | None:
        """Return what the cache has of a commit; None when it has nothing. Raises ``InputOutputError``."""
        commit = self._commit_of(wanted.revision or "main")
        if commit is None:
            return None
        files = {}
        try:
            for entry in sorted(self.snapshot(commit).iterdir()):
                key = entry.readlink().name if entry.is_symlink() else ""
                blob = self.blob(key) if key else entry
                if blob.is_file():
                    sha256 = key if SHA256.fullmatch(key) else None
                    git_sha1 = key if COMMIT.fullmatch(key) else ""
                    files[entry.name] = HubFile(entry.name, blob.stat().st_size, sha256, git_sha1)
        except OSError as error:
            raise InputOutputError.from_os(error, self.snapshot(commit), "list") from error
        return Listing(wanted.repo, commit, files)

    def _commit_of(self, revision: str) -> str | None:
        if COMMIT.fullmatch(revision):
            return revision if self.snapshot(revision).is_dir() else None
        try:
            commit = read_small(self.root / "refs" / revision, MAX_REF).decode("ascii", "replace").strip()
        except (InputOutputError, MalformedInput):
            return None
        return commit if COMMIT.fullmatch(commit) and self.snapshot(commit).is_dir() else None


def _text_of_link(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError:  # no link
        return None
