"""The staging folder: one run at a time, one plan at a time, and what a killed run finished.

Enters: a place and a plan. Leaves: fragments of shards that need not be made again. Never: a shard of another plan, or one that
was not flushed before its fragment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from deltaweights.checkpoint.files import LocalFile
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.manifest.manifest import MOST_OBJECTS, Fragment
from deltaweights.merge.plan import Plan, Shard
from deltaweights.staging.disk import create_file, flush_folder, make_folder, remove, rename, replace_file
from deltaweights.staging.place import Place
from deltaweights.text import compact_json, strict_json


class StagingLock:
    """Holds the staging folder for this process; the system lets go when the process ends, however it ends.

    A ``shared`` one is held by parts of one job, as many as there are, and by nobody who holds it alone.
    """

    def __init__(self, place: Place, *, shared: bool = False) -> None:
        """Take the lock. Raises ``TargetBusy`` when another run has it."""
        self._place, self._shared = place, shared
        self._path = place.root / "lock"
        self.note: str | None = None
        while True:
            make_folder(place.root)
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                continue  # a run that ended removed the folder in between
            except OSError as error:
                raise InputOutputError.from_os(error, self._path, "open the lock") from error
            if self._try() and self._is_current():
                return
            os.close(self._fd)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            remedy = "wait for it to end"
            raise TargetBusy("another run is writing to this folder", where=self._path.parent, remedy=remedy) from None
        except OSError as error:
            if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}:
                raise InputOutputError.from_os(error, self._path, "lock") from error
            self.note = "this file system has no locks: make sure that no other run writes to this folder"
        return True

    def _is_current(self) -> bool:
        # The run that had the lock before us may have removed the file that we opened.
        try:
            ours, named = os.fstat(self._fd), self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)

    def __enter__(self) -> StagingLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What a run leaves must be worth finding: a finished shard, or a publication that was begun.
        # Errors here change nothing about the result; the next run, or `clean`, comes across what is left.
        discard = self._is_current() and not self._place.worth_keeping() and self._is_alone()
        with contextlib.suppress(InputOutputError, OSError):
            if discard:
                self._discard()
        os.close(self._fd)
        if discard:
            with contextlib.suppress(OSError):  # another run may have begun here already
                self._place.root.rmdir()

    def _is_alone(self) -> bool:
        """Tell whether no other part holds the lock; from then on none can take it."""
        if not self._shared:
            return True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _discard(self) -> None:
        """Remove everything, the lock last: as long as it is there, no other run begins to work here."""
        for entry in self._place.root.iterdir():
            if entry != self._path:
                remove(entry)
        self._path.unlink()


class StagingFolder:
    """The contents of a locked staging folder."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def prepare(self, plan: Plan, arrivals: Mapping[str, str]) -> tuple[dict[str, Fragment], bool]:
        """Make the folder ready for ``plan``; return the fragments to reuse by shard, and whether another plan's were discarded.

        ``arrivals`` are marks by input file, of downloads and of what was streamed: shards that were made of bytes which nobody had
        compared yet are of use only to a run that has the very same bytes, or compares none either.
        """
        place = self._place
        if any(path.is_symlink() for path in (place.shards, place.fragments)):
            raise MalformedInput("staging is not ours", where=place.root, found="links in it", remedy="delete it")
        stale = not self._belongs_to(plan, arrivals)
        discarded = stale and place.shards.exists()
        if stale:
            for leftover in (place.plan, place.ending, place.shards, place.fragments, place.companions):
                remove(leftover)
        make_folder(place.shards)
        make_folder(place.fragments)
        replace_file(
            place.plan, compact_json({"identity": plan.identity, "arrivals": dict(arrivals), **plan.document}).encode()
        )
        fragments = self.finished(plan, plan.shards)
        kept = {*fragments, *(f"{shard}.json" for shard in fragments)}
        for folder in (place.shards, place.fragments):
            for entry in folder.iterdir():
                if entry.name not in kept:
                    remove(entry)
            flush_folder(folder)
        return fragments, discarded

    def join(self, plan: Plan, shards: Sequence[Shard]) -> dict[str, Fragment]:
        """Make the folder ready for ``shards`` of ``plan``, beside other parts; return the fragments of those that are finished.

        Raises ``TargetBusy`` when another plan's work is there: parts of two plans never mix.
        """
        place = self._place
        if any(path.is_symlink() for path in (place.shards, place.fragments)):
            raise MalformedInput("staging is not ours", where=place.root, found="links in it", remedy="delete it")
        make_folder(place.shards)
        make_folder(place.fragments)
        document = {"identity": plan.identity, "arrivals": {}, **plan.document}
        if not create_file(place.plan, compact_json(document).encode()) and not self._belongs_to(plan, {}):
            remedy = "use the inputs and options of the other parts, or give their work up: deltaweights clean"
            raise TargetBusy("staging holds another plan", where=place.root, remedy=remedy)
        return self.finished(plan, shards)

    def keep_from(self, folder: Path, fragment: Fragment) -> None:
        """Record a shard that is on the disk in ``folder``, and put it in its place; what another part put there is the same."""
        rename(folder / fragment.file, self._place.shards / fragment.file)
        self.keep(fragment)

    def keep(self, fragment: Fragment) -> None:
        """Record a shard that is on the disk."""
        flush_folder(self._place.shards)
        replace_file(self._fragment_path(fragment.file), fragment.to_bytes())

    def _fragment_path(self, shard: str) -> Path:
        return self._place.fragments / f"{shard}.json"

    def forget(self, shard: str) -> None:
        """Have a shard made again: its record is gone."""
        remove(self._fragment_path(shard))

    def discard(self) -> None:
        """Remove what was made, since it is worth nothing."""
        for path in (self._place.plan, self._place.shards, self._place.fragments):
            remove(path)

    def _belongs_to(self, plan: Plan, arrivals: Mapping[str, str]) -> bool:
        try:
            document = strict_json(self._place.plan.read_bytes(), MOST_OBJECTS)
        except (OSError, ValueError):
            return False
        if not isinstance(document, dict) or document.get("identity") != plan.identity:
            return False
        return bool(document.get("arrivals", {}) == arrivals)

    def finished(self, plan: Plan, shards: Sequence[Shard], *, read: bool = True) -> dict[str, Fragment]:
        """Return the fragments of those ``shards`` of ``plan`` that are there and, if ``read``, have the recorded sha256."""
        finished = {}
        for shard in shards:
            try:
                fragment = Fragment.from_bytes(self._fragment_path(shard.file).read_bytes())
                found = (self._place.shards / shard.file).stat(follow_symlinks=False)
            except (OSError, ValueError):
                continue
            whole = stat.S_ISREG(found.st_mode) and found.st_size == fragment.record.size == shard.size
            names = [tensor.name for tensor in fragment.tensors]
            expected = [tensor.spec.name for tensor in shard.tensors]
            ours = (fragment.plan, fragment.file) == (plan.identity, shard.file) and names == expected
            if whole and ours and (not read or _sha256(self._place.shards / shard.file) == fragment.record.sha256):
                finished[shard.file] = fragment
        return finished


def _sha256(path: Path) -> str:
    file = LocalFile(path)
    try:
        return file.sha256()
    finally:
        file.close()
