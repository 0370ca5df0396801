"""The Hub's cache, written: blobs under their hashes, snapshots that link to them, and what is known to be whole.

Enters: files of a listing, and their bytes once they are all there and have their hash. Leaves: what ``hf`` leaves, so that each
uses what the other fetched. Never: a file under its final name that has not the hash that the Hub states.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from deltaweights.errors import InputOutputError
from deltaweights.hub.access import COMMIT, HubFile, Listing
from deltaweights.hub.cache import PREFIX, SHA256
from deltaweights.hub.ids import HubId
from deltaweights.text import Json, strict_json


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

    def incomplete(self, key: str) -> Path:
        """Return where a file's content is gathered; beside it stands which pieces of it are there."""
        return self.root / "blobs" / f"{key}.deltaweights.incomplete"

    def prepare(self) -> None:
        """Make the folders. Raises ``InputOutputError``."""
        for folder in ("blobs", "snapshots", "refs", _OURS):
            try:
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                remedy = "choose another cache with --cache-dir or HF_HUB_CACHE"
                raise InputOutputError.from_os(error, self.root / folder, "make the folder", remedy) from error

    def name_commit(self, wanted: HubId, commit: str) -> None:
        """Keep which commit a branch or tag is at, for those who are offline."""
        revision = wanted.revision or "main"
        if COMMIT.fullmatch(revision):
            return
        path = self.root / "refs" / revision
        with contextlib.suppress(OSError):  # of use later only
            path.parent.mkdir(parents=True, exist_ok=True)
            made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            made.write_text(commit)
            made.replace(path)

    def link(self, commit: str, file: HubFile) -> None:
        """Give a blob its name in a commit's snapshot. Raises ``InputOutputError``."""
        path, target = self.snapshot(commit) / file.name, f"../../blobs/{file.key}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.is_symlink():
                raise InputOutputError("the snapshot is a link, which none is", where=path.parent, remedy="remove it")
            if os.path.lexists(path):
                if path.is_symlink() and os.readlink(path) == target:  # noqa: PTH115  (as text)
                    return
                path.unlink()
            path.symlink_to(target)
        except FileExistsError:  # another process was faster
            pass
        except OSError as error:
            raise InputOutputError.from_os(error, path, "link the file") from error

    # Blobs that are known to be what their names say: by size, times and inode, so that a look is enough.

    def is_verified(self, key: str, found: os.stat_result) -> bool:
        """Tell whether the blob, as it was ``found``, is the one that had its hash."""
        try:
            return bool(self._known(key)["blob"] == _mark(found))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def arrival(self, key: str) -> str | None:
        """Return the mark of the download by which a blob that is verified came, if that was one of ours."""
        try:
            mark = self._known(key)["arrival"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return mark if isinstance(mark, str) else None

    def _known(self, key: str) -> Json:
        return strict_json((self.root / _OURS / key).read_bytes())

    def keep_verified(self, key: str, found: os.stat_result, arrival: str | None = None) -> None:
        """Keep that the blob, as it was ``found``, has its hash, and the mark of the download that it came by."""
        with contextlib.suppress(OSError):  # it would be found out once more
            (self.root / _OURS).mkdir(parents=True, exist_ok=True)
            (self.root / _OURS / key).write_text(json.dumps({"blob": _mark(found), "arrival": arrival}))

    # Without the Hub.

    def listing(self, wanted: HubId) -> Listing | None:
        """Return what the cache has of a commit; None when it has nothing. Raises ``InputOutputError``."""
        commit = self._commit_of(wanted.revision or "main")
        if commit is None:
            return None
        files = {}
        try:
            for entry in sorted(self.snapshot(commit).iterdir()):
                blob = Path(os.path.realpath(entry))
                if blob.is_file():
                    sha256 = blob.name if SHA256.fullmatch(blob.name) else None
                    git_sha1 = blob.name if COMMIT.fullmatch(blob.name) else ""
                    files[entry.name] = HubFile(entry.name, blob.stat().st_size, sha256, git_sha1)
        except OSError as error:
            raise InputOutputError.from_os(error, self.snapshot(commit), "list") from error
        return Listing(wanted.repo, commit, files)

    def _commit_of(self, revision: str) -> str | None:
        if COMMIT.fullmatch(revision):
            return revision if self.snapshot(revision).is_dir() else None
        try:
            commit = (self.root / "refs" / revision).read_text().strip()
        except OSError:
            return None
        return commit if COMMIT.fullmatch(commit) and self.snapshot(commit).is_dir() else None


_OURS = ".deltaweights"
"""The folder of what we know of blobs; ``hf`` looks at blobs, refs and snapshots alone."""


def _mark(found: os.stat_result) -> dict[str, int]:
    times = {"mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    return {"size": found.st_size, "inode": found.st_ino, **times}
