"""The Hub cache: ``models--ORG--NAME/{snapshots/COMMIT/FILE -> ../../blobs/HASH}``, as ``hf`` leaves it.

A blob may be a link to ``../../blobs/PREFIX/XET_HASH``, in a store that all repositories of the cache share, and a snapshot may
have files in place of links (HF_HUB_DISABLE_SYMLINKS, or a copy).

Folders are opened step by step without following links, so that nothing is changed outside the cache. The hash in a blob's name is
what the Hub stated when the file was fetched; it says nothing about the bytes there now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.safe_open import READ, SEARCH, LeadsOutside, open_blob, opened_folder
from deltaweights.checkpoint.small_files import read_small
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, wrap_os_errors
from deltaweights.hub.ids import PREFIX as ID_PREFIX
from deltaweights.hub.ids import HubId
from deltaweights.hub.repo_listing import COMMIT, SHA256, HubFile, RepoListing, at_top, in_folders, is_usable
from deltaweights.hub.tree_cache import cached_tree

PREFIX = "models--"

OTHER_CACHE = (
    "choose another cache with --cache-dir or HF_HUB_CACHE, or have its owner open this one to the group: chmod -R g+w"
)

HELD = "deltaweights"
"""The folder of our own refs, to commits that no branch or tag of the cache names."""


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
        """Return where the pieces of a file are gathered. Whatever ends in ``.incomplete``, ``hf cache prune`` removes."""
        return self.root / "blobs" / f"{key}.deltaweights.partial"

    def place(self, file: HubFile) -> Path:
        """Return where the content of ``file`` is, once it is complete."""
        return self.blob(file.key)

    def gathering(self, file: HubFile) -> Path:
        """Return where the pieces of ``file`` are gathered."""
        return self.incomplete(file.key)

    def open(self, commit: str, file: HubFile) -> tuple[Path, int] | None:
        """Open a file's content: its blob, else the snapshot's own file, which is no link; None if both are absent.

        Raises ``LeadsOutside`` for a blob that is a link out of the cache, and ``InputOutputError``.
        """
        blob, own = self.blob(file.key), self.snapshot(commit) / file.name
        with wrap_os_errors(blob, "open"), contextlib.suppress(FileNotFoundError):
            if file.key and blob.is_file():
                with _opened(blob.parent) as blobs:
                    return blob, open_blob(blobs, blob.name)
        if not own.is_symlink() and own.is_file():
            with (
                wrap_os_errors(own, "open"),
                contextlib.suppress(FileNotFoundError),
                self.folder_of(own) as folder,
            ):
                return own, os.open(own.name, READ | os.O_NOFOLLOW, dir_fd=folder)
        return None

    @contextmanager
    def folder_of(self, path: Path, *, create: bool = False) -> Iterator[int]:
        """Open the folder of ``path``, which is below the root; none on the way may be a link. Raises ``OSError``."""
        with self._inside(*path.relative_to(self.root).parts[:-1], create=create) as folder:
            yield folder

    def has(self, commit: str, file: HubFile) -> bool:
        """Return whether a file's content is there, and not by a link out of the cache. Raises ``InputOutputError``."""
        with contextlib.suppress(LeadsOutside):
            if (found := self.open(commit, file)) is not None:
                os.close(found[1])
                return True
        return False

    def refuse_other(self, file: HubFile, found: os.stat_result) -> None:
        """Raise ``TargetBusy`` if what was ``found`` in the place of ``file`` must not be replaced: all of a cache may be."""

    def discard(self, where: Path, damaged: os.stat_result) -> None:
        """Remove a content, unless another process has replaced what is ``damaged``. Raises ``InputOutputError``."""
        try:
            with self.folder_of(where) as folder:
                if os.stat(where.name, dir_fd=folder).st_ino == damaged.st_ino:
                    os.unlink(where.name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:  # or it would be found again and again
            raise InputOutputError.from_os(error, where, "remove", "choose another cache with --cache-dir") from error

    def forget(self, commit: str, file: HubFile) -> None:
        """Remove a file's content, if it is there. Raises as ``open``, ``refuse_other`` and ``discard`` do."""
        if (found := self.open(commit, file)) is not None:
            with contextlib.closing(LocalFile(*found)) as local:
                self.refuse_other(file, local.status)
                self.discard(found[0], local.status)

    def make_way(self, file: HubFile) -> None:
        """Prepare the place of ``file`` for its content: a blob needs nothing."""

    def drop_leftovers(self, key: str) -> None:
        """Remove what this user's ended downloads left of a file that is there by now: ``hf`` fetches anew. Errors are ignored."""
        if not key:
            return
        with contextlib.suppress(OSError), opened_folder(self.root / "blobs") as blobs:
            for path in (self.root / "blobs").glob(f"{key}.deltaweights*"):
                if path.suffix in {".partial", ".incomplete"}:
                    with contextlib.suppress(OSError):
                        _remove_unused(path, blobs)

    def create(self) -> None:
        """Create the folders that are missing. Raises ``InputOutputError``."""
        for folder in ("blobs", "snapshots", "refs"):
            try:
                with self._inside(folder):
                    pass
            except OSError as error:
                raise InputOutputError.from_os(error, self.root / folder, "make the folder", OTHER_CACHE) from error
        if not os.access(self.root / "blobs", os.W_OK):
            raise InputOutputError(
                "cannot write in the folder",
                where=self.root / "blobs",
                remedy=OTHER_CACHE,
                code=ErrorCode.NO_PERMISSION,
            )

    @contextmanager
    def _inside(self, *names: str, create: bool = True) -> Iterator[int]:
        """Open the folder at ``names``, none of which may be a link, and create it if needed. Raises ``OSError``."""
        if create:
            self.root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            fd = os.open(self.root, SEARCH)
            stack.callback(os.close, fd)
            for name in names:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=fd)
                fd = stack.enter_context(opened_folder(name, fd))
            yield fd

    def set_ref(self, wanted: HubId, commit: str) -> None:
        """Record which commit a branch or tag is at, for offline use. Errors are ignored."""
        revision = wanted.revision or "main"
        if COMMIT.fullmatch(revision):
            self.hold(commit)
            return
        if self._write_ref(revision, commit):
            with contextlib.suppress(OSError), self._inside("refs", HELD) as folder:
                os.unlink(commit, dir_fd=folder)

    def hold(self, commit: str) -> None:
        """Make a commit one that ``hf cache prune`` keeps: it removes what no ref names. Errors are ignored."""
        with (
            contextlib.suppress(OSError),
            self._inside("snapshots", commit),
        ):  # of a ref to nothing ``hf`` says that it is corrupt
            self._write_ref(f"{HELD}/{commit}", commit)

    def _write_ref(self, ref: str, commit: str) -> bool:
        *folders, name = ref.split("/")
        with contextlib.suppress(OSError), self._inside("refs", *folders) as folder:
            temporary = f".{name}.{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o666, dir_fd=folder), "w") as out:
                out.write(commit)
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            return True
        return False

    def link(self, commit: str, file: HubFile) -> None:
        """Link a blob under its name in a commit's snapshot, unless the file itself is there. Raises ``InputOutputError``."""
        path = self.snapshot(commit) / file.name
        up = "../" * (2 + file.name.count("/"))
        target, name = f"{up}blobs/{file.key}", path.name
        if not file.key:
            return
        try:
            with self.folder_of(path, create=True) as folder:
                if not path.is_symlink() and path.is_file() and not self.blob(file.key).is_file():
                    return
                with contextlib.suppress(OSError):  # there is nothing, or no link
                    if os.readlink(name, dir_fd=folder) == target:
                        return
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                with contextlib.suppress(FileExistsError):  # another process was faster
                    os.symlink(target, name, dir_fd=folder)
        except NotADirectoryError:
            found, remedy = "something else, or a link", "remove it, or choose another cache with --cache-dir"
            raise InputOutputError("not a folder of a cache", where=path.parent, found=found, remedy=remedy) from None
        except OSError as error:
            raise InputOutputError.from_os(error, path, "link the file", OTHER_CACHE) from error

    def listing(self, wanted: HubId) -> RepoListing | None:
        """Return what the cache has of a commit, None when it has nothing. Raises ``InputOutputError``."""
        commit = self.commit_of(wanted.revision or "main")
        if commit is None:
            return None
        stated = cached_tree(self.root, commit)
        with wrap_os_errors(self.snapshot(commit), "list"):
            files = {file.name: file for file in self._files_in(self.snapshot(commit), "", stated)}
        return RepoListing(wanted.repo, commit, at_top(files), in_folders(files))

    def _files_in(self, folder: Path, prefix: str, stated: dict[str, HubFile]) -> Iterator[HubFile]:
        """Yield the files of a folder of a snapshot and of the folders in it, which are no links. Raises ``OSError``."""
        for entry in sorted(folder.iterdir()):
            name = prefix + entry.name
            if entry.is_symlink():
                key = entry.readlink().name
                sha256 = key if SHA256.fullmatch(key) else None
                git_sha1 = key if COMMIT.fullmatch(key) else ""
                unstated = "" if sha256 or git_sha1 else key
                if self.blob(key).is_file():
                    yield HubFile(name, self.blob(key).stat().st_size, sha256, git_sha1, unstated)
            elif entry.is_file():
                yield stated.get(name, HubFile(name, entry.stat().st_size, None, ""))
            elif entry.is_dir() and is_usable(f"{name}/x"):
                yield from self._files_in(entry, f"{name}/", stated)

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a commit's name is at, None when the cache does not have it."""
        if COMMIT.fullmatch(revision):
            return revision if self.snapshot(revision).is_dir() else None
        with contextlib.suppress(InputOutputError, MalformedInput):
            commit = read_small(self.root / "refs" / revision, MAX_REF_BYTES).decode("ascii", "replace").strip()
            return commit if COMMIT.fullmatch(commit) and self.snapshot(commit).is_dir() else None
        return None


def not_in_cache(where: str, found: Path | None = None) -> InputOutputError:
    """Return the error for what is not in the cache (``found``) and is not to be fetched; ``where`` is an id, or one of a file."""
    model = "/".join(where.removeprefix(ID_PREFIX).split("/")[:2])
    remedy = f"leave --offline out, or fetch it first: deltaweights download {model}"
    return InputOutputError("not in the cache", where=where, found=found, remedy=remedy, code=ErrorCode.NOT_IN_CACHE)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, SEARCH)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove_unused(path: Path, blobs: int) -> None:
    """Remove a file of pieces and its marks, if it is this user's. Raises ``OSError``, also when a process has it."""
    fd = os.open(path.name, READ | os.O_NOFOLLOW, dir_fd=blobs)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path.name, dir_fd=blobs)
            os.unlink(path.with_suffix(".pieces").name, dir_fd=blobs)
    finally:
        os.close(fd)
