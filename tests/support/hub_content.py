"""Content of the loopback Hub (tests/support/hub_server.py): repositories, their revisions, and their files' hashes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = {".bin", ".safetensors", ".pth", ".model", ".zip"}
LFS_SIZE = 1 << 20
"""Larger files are LFS files whatever their name."""

Files = Path | Mapping[str, Path]
"""A folder, or the file for each name; names are used as they are, hostile ones too."""

Entry = dict[str, Any]
"""An object of the Hub's JSON."""


class Refusal(Exception):
    """An error response: status, X-Error-Code ("" for none), X-Error-Message."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


class Hashes:
    """The sha256 of files, by path, size and modification time; shared by all servers of a process."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}
        self._lock = threading.Lock()

    @staticmethod
    def _key(path: Path) -> tuple[str, int, int]:
        status = path.stat()
        return str(path.resolve()), status.st_size, status.st_mtime_ns

    def state(self, path: Path, sha256: str) -> None:
        """Set a file's sha256."""
        with self._lock:
            self._known[self._key(path)] = sha256

    def sha256(self, path: Path) -> str:
        """Return a file's sha256, computed if unknown."""
        key = self._key(path)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            digest, buffer = hashlib.sha256(), bytearray(1 << 20)
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    digest.update(memoryview(buffer)[:count])
            known = digest.hexdigest()
            with self._lock:
                self._known[key] = known
        return known

    def load(self, file: Path) -> None:
        """Load what ``save`` has written, if anything."""
        if file.exists():
            with self._lock:
                self._known |= {(name, size, time): found for name, size, time, found in json.loads(file.read_text())}

    def save(self, file: Path) -> None:
        """Save all known hashes."""
        with self._lock:
            file.write_text(json.dumps([[*key, sha256] for key, sha256 in self._known.items()]))


HASHES = Hashes()


@dataclass(frozen=True)
class Blob:
    """A file of a repository: where its bytes are, and what the Hub says of it. ``sha256`` is that of LFS files.

    ``oid`` is git's hash of what git keeps: the file itself, or, of an LFS file, its pointer.
    """

    path: Path
    size: int
    oid: str
    lfs: bool
    sha256: str | None = None
    pointer_size: int = 0

    @classmethod
    def of(cls, name: str, path: Path) -> Blob:
        """Return the blob of a file that is called ``name`` in its repository."""
        size = path.stat().st_size
        if size <= LFS_SIZE and Path(name).suffix not in LFS_SUFFIXES:
            return cls(path, size, _git_hash(path.read_bytes()), lfs=False)
        sha256 = HASHES.sha256(path)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(path, size, _git_hash(pointer), lfs=True, sha256=sha256, pointer_size=len(pointer))

    def entry(self, path: str) -> Entry:
        """Return the entry of /tree and /paths-info."""
        entry: Entry = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry

    def sibling(self, path: str) -> Entry:
        """Return the entry of /api/models/{id}?blobs=true."""
        entry: Entry = {"rfilename": path, "size": self.size, "blobId": self.oid}
        if self.sha256:
            entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()


Tree = dict[str, Blob]
"""The files of a commit by their paths."""


@dataclass
class Repository:
    """A repository: its commits, and the branches and tags that name some of them."""

    name: str
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def push(self, files: Files, branch: str) -> str:
        """Move a branch to these files and return the commit, which follows from names and contents."""
        if isinstance(files, Path):
            files = {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}
        tree = {name: Blob.of(name, path) for name, path in sorted(files.items())}
        listing = json.dumps([self.name, [(name, blob.oid) for name, blob in tree.items()]])
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = tree
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str:
        """Return the commit that a branch, a tag or a full commit names. Raises Refusal: 404 RevisionNotFound."""
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def refs(self) -> Entry:
        """Return the response of /refs."""
        named = {"heads": self.branches, "tags": self.tags}
        heads, tags = (
            [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in refs.items()]
            for kind, refs in named.items()
        )
        return {"branches": heads, "tags": tags, "converts": [], "pullRequests": []}


def directory(path: str) -> Entry:
    """Return the entry of a folder; its hash depends on its name only."""
    return {"type": "directory", "oid": _git_hash(path.encode()), "size": 0, "path": path}


def listing(tree: Tree, folder: str, *, recursive: bool) -> Iterator[Entry]:
    """Return the entries below a folder ("" for all), folders before what is in them. Raises Refusal: 404 EntryNotFound."""
    prefix = f"{folder}/" if folder else ""
    below = {path: blob for path, blob in sorted(tree.items()) if path.startswith(prefix)}
    if folder and not below:
        raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
    seen: set[str] = set()
    for path, blob in below.items():
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            parent = prefix + "/".join(parts[:depth])
            if parent not in seen:
                seen.add(parent)
                yield directory(parent)
        if recursive or len(parts) == 1:
            yield blob.entry(path)
