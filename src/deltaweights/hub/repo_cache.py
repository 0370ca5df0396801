"""The Hub cache: ``models--ORG--NAME/{snapshots/COMMIT/FILE -> ../../blobs/HASH}``, as ``hf`` leaves it.

Folders are opened step by step without following links, so that nothing is changed outside the cache. The hash in a blob's name is
what the Hub stated when the file was fetched; it says nothing about the bytes there now.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from deltaweights.checkpoint.safe_open import SEARCH, LeadsOutside, open_blob, opened_folder
from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import InputOutputError, MalformedInput, wrap_os_errors
from deltaweights.hub.ids import HubId
from deltaweights.hub.repo_listing import COMMIT, SHA256, HubFile, RepoListing

PREFIX = "models--"

MAX_REF_BYTES = 1024  # the name of a commit, and a line's end


@dataclass(frozen=True)
class RepoCache:
    """The cache of one repository."""

    root: Path

    damage: ClassVar[str] = "damaged in the cache"
    """What is said of a file that does not have its hash."""
    kind: ClassVar[str] = "in the cache"

    @classmethod
    def of(cls, cache: Path, repo: str) -> RepoCache:
        """Return the folder of ``repo`` in ``cache``."""
        return cls(cache / f"{PREFIX}{repo.replace('/', '--')}")

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit's files."""
        return self.root / "snapshots" / commit

    def blob(self, key: str) -> Path:
        """Return where a complete file's content is."""
        return self.root / "blobs" / key

    def incomplete(self, key: str) -> Path:
        """Return where the pieces of a file are gathered."""
        return self.root / "blobs" / f"{key}.deltaweights.incomplete"

    def place(self, file: HubFile) -> Path:
        """Return where the content of ``file`` is, once it is complete."""
        return self.blob(file.key)

    def gathering(self, file: HubFile) -> Path:
        """Return where the pieces of ``file`` are gathered."""
        return self.incomplete(file.key)

    def open(self, file: HubFile) -> int | None:
        """Open the content of ``file``, as ``open_blob`` does."""
        return self.open_blob(file.key)

    def open_blob(self, key: str) -> int | None:
        """Open a file's content, None if absent. Raises ``LeadsOutside`` for a link out of the cache, and ``InputOutputError``."""
        blob = self.blob(key)
        with wrap_os_errors(blob, "open"), contextlib.suppress(FileNotFoundError):
            if blob.is_file():
                blobs = os.open(blob.parent, SEARCH)
                try:
                    return open_blob(blobs, blob.name)
                finally:
                    os.close(blobs)
        return None

    def has(self, file: HubFile) -> bool:
        """Return whether a file's content is there, and not by a link out of the cache. Raises ``InputOutputError``."""
        with contextlib.suppress(LeadsOutside):
            if (fd := self.open(file)) is not None:
                os.close(fd)
                return True
        return False

    def refuse_other(self, file: HubFile, found: os.stat_result) -> None:
        """Raise ``TargetBusy`` if what was ``found`` in the place of ``file`` must not be replaced: all of a cache may be."""

    def discard(self, file: HubFile, damaged: os.stat_result) -> None:
        """Remove the content of ``file``, unless another process has replaced what is ``damaged``. Raises ``InputOutputError``."""
        blob = self.place(file)
        try:
            if blob.stat().st_ino == damaged.st_ino:
                blob.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:  # or it would be found again and again
            raise InputOutputError.from_os(error, blob, "remove", "choose another cache with --cache-dir") from error

    def make_way(self, file: HubFile) -> None:
        """Prepare the place of ``file`` for its content: a blob needs nothing."""

    def create(self) -> None:
        """Create the folders that are missing. Raises ``InputOutputError``."""
        for folder in ("blobs", "snapshots", "refs"):
            try:
                with self._inside(folder):
                    pass
            except OSError as error:
                remedy = "choose another cache with --cache-dir or HF_HUB_CACHE"
                raise InputOutputError.from_os(error, self.root / folder, "make the folder", remedy) from error

    @contextmanager
    def _inside(self, *names: str) -> Iterator[int]:
        """Open the folder at ``names``, none of which may be a link, and create it if needed. Raises ``OSError``."""
        self.root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            fd = os.open(self.root, SEARCH)
            stack.callback(os.close, fd)
            for name in names:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
                fd = stack.enter_context(opened_folder(name, fd))
            yield fd

    def set_ref(self, wanted: HubId, commit: str) -> None:
        """Record which commit a branch or tag is at, for offline use. Errors are ignored."""
        revision = wanted.revision or "main"
        if COMMIT.fullmatch(revision):
            return
        *folders, name = revision.split("/")
        with contextlib.suppress(OSError), self._inside("refs", *folders) as folder:
            temporary = f".{name}.{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o666, dir_fd=folder), "w") as out:
                out.write(commit)
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)

    def link(self, commit: str, file: HubFile) -> None:
        """Link a blob under its name in a commit's snapshot. Raises ``InputOutputError``."""
        path, target = self.snapshot(commit) / file.name, f"../../blobs/{file.key}"
        try:
            with self._inside("snapshots", commit) as folder:
                with contextlib.suppress(OSError):  # there is nothing, or no link
                    if os.readlink(file.name, dir_fd=folder) == target:
                        return
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name, dir_fd=folder)
                with contextlib.suppress(FileExistsError):  # another process was faster
                    os.symlink(target, file.name, dir_fd=folder)
        except NotADirectoryError:
            found, remedy = "something else, or a link", "remove it, or choose another cache with --cache-dir"
            raise InputOutputError("not a folder of a cache", where=path.parent, found=found, remedy=remedy) from None
        except OSError as error:
            raise InputOutputError.from_os(error, path, "link the file") from error

    def listing(self, wanted: HubId) -> RepoListing | None:
        """Return what the cache has of a commit, None when it has nothing. Raises ``InputOutputError``."""
        commit = self.commit_of(wanted.revision or "main")
        if commit is None:
            return None
        files = {}
        with wrap_os_errors(self.snapshot(commit), "list"):
            for entry in sorted(self.snapshot(commit).iterdir()):
                key = entry.readlink().name if entry.is_symlink() else ""
                blob = self.blob(key) if key else entry
                if blob.is_file():
                    sha256 = key if SHA256.fullmatch(key) else None
                    git_sha1 = key if COMMIT.fullmatch(key) else ""
                    unstated = "" if sha256 or git_sha1 else key
                    files[entry.name] = HubFile(entry.name, blob.stat().st_size, sha256, git_sha1, unstated)
        return RepoListing(wanted.repo, commit, files)

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a commit's name is at, None when the cache does not have it."""
        if COMMIT.fullmatch(revision):
            return revision if self.snapshot(revision).is_dir() else None
        with contextlib.suppress(InputOutputError, MalformedInput):
            commit = read_small(self.root / "refs" / revision, MAX_REF_BYTES).decode("ascii", "replace").strip()
            return commit if COMMIT.fullmatch(commit) and self.snapshot(commit).is_dir() else None
        return None


@dataclass(frozen=True)
class Snapshot:
    """A repository's id, and one of its commits."""

    repo: str
    commit: str


def snapshot_at(path: Path) -> Snapshot | None:
    """Return the snapshot that ``path``, its folder or a file directly in it, belongs to; None outside a cache."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow the file's link to its blob)
    for folder in (absolute, absolute.parent):
        if folder.parent.name == "snapshots":
            repository = folder.parent.parent.name
            if repository.startswith(PREFIX):
                return Snapshot(repository.removeprefix(PREFIX).replace("--", "/"), folder.name)
    return None


def stated_sha256(path: Path) -> str | None:
    """Return the SHA-256 that the cache files ``path`` under; None unless it is a link to an LFS file's blob."""
    with contextlib.suppress(OSError):  # it is being changed
        blob = Path(os.path.realpath(path))
        if path.is_symlink() and blob.parent.name == "blobs" and SHA256.fullmatch(blob.name):
            return blob.name
    return None
