"""A snapshot in the Hub's cache, whose files are links to blobs of the same repository."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.safe_open import SEARCH, LeadsOutside, link_target, open_inside
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, wrap_os_errors
from deltaweights.hub.repo_listing import COMMIT, SHA256
from deltaweights.manifest.folder_entries import A_FILE, is_permitted
from deltaweights.manifest.verify_source import LocalSource, StatedFile, StatedHashes

BY_BLOBS = "the hashes that the cache names its files by"


class CacheSource(LocalSource):
    """A snapshot. A link counts as its file while it leads to a blob of the same cache; any other is described, and not opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        with wrap_os_errors(root, "open"):
            self._fd = os.open(root, SEARCH)
        links, self.entries.links = self.entries.links, set()
        permitted = {name for name, kind in self.entries.passed_over.items() if kind != A_FILE}
        for name in links | permitted:
            kind = self._kind(name)
            if kind is None and is_permitted(name):
                self.entries.passed_over[name] = A_FILE
            elif kind is None:
                self.entries.files.add(name)
            elif name in links:
                self.entries.others[name] = kind
        self.stated = self._by_blobs()

    def _kind(self, name: str) -> str | None:
        """Return what is wrong with a link; None when it leads to a blob."""
        try:
            os.close(open_inside(self._fd, name))
        except LeadsOutside:
            return f"a link out of the cache, to {link_target(self.root / name)}"
        except OSError as error:
            return f"a link that cannot be followed: {error.strerror}"
        return None

    def open(self, name: str) -> InputFile:
        path = self.root / name
        with wrap_os_errors(path, "open"):
            try:
                fd = open_inside(self._fd, name)
            except LeadsOutside:
                remedy = "nothing else may change the cache meanwhile"
                found, code = link_target(path), ErrorCode.LINK_OUTSIDE
                raise MalformedAt(path, remedy)("a link out of the cache", found, code=code) from None
        return LocalFile(path, fd)

    def _by_blobs(self) -> StatedHashes | None:
        """Return the hashes that the names of the blobs are; None where the snapshot holds files themselves."""
        files: dict[str, StatedFile] = {}
        for name in self.entries.files:
            with suppress(OSError):
                key = Path(os.readlink(name, dir_fd=self._fd)).name
                if SHA256.fullmatch(key):
                    files[name] = StatedFile(key)
                elif COMMIT.fullmatch(key):
                    files[name] = StatedFile(None, key)
        return StatedHashes(BY_BLOBS, files) if files else None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def snapshot_in(repository: Path) -> Path:
    """Return the snapshot in the folder of a repository in the cache: its only one, or that of ``refs/main``.

    Raises ``InputOutputError`` when there is none, or several and no ``refs/main``.
    """
    from deltaweights.hub.repo_cache import RepoCache  # noqa: PLC0415  (only where it is needed)

    cache, snapshots = RepoCache(repository), repository / "snapshots"
    with wrap_os_errors(snapshots, "list"):
        commits = sorted(name for name in os.listdir(snapshots) if COMMIT.fullmatch(name))  # noqa: PTH208
    commit = commits[0] if len(commits) == 1 else cache.commit_of("main")
    if commit is None:
        found = ", ".join(commits[:8]) or "none"
        remedy = "give one of them" if commits else "fetch the model first"
        raise InputOutputError("no single snapshot", where=snapshots, found=found, remedy=remedy)
    return cache.snapshot(commit)
