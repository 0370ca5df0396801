"""The staging folder: one plan at a time, and what a killed run finished.

Enters: a place that is locked, and a plan. Leaves: fragments of shards that need not be made again. Never: a shard of another plan,
or one that was not flushed before its fragment.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltaweights.checkpoint.files import LocalFile, read_small
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.manifest.manifest import MOST_OBJECTS, Fragment
from deltaweights.merge.plan import Plan, Shard
from deltaweights.staging.disk import create_file, flush_folder, make_folder, remove, rename, replace_file
from deltaweights.staging.place import Place
from deltaweights.text import compact_pieces, in_chunks, strict_json

MAX_PLAN = 256 * 1024 * 1024
"""Of a plan, and of a shard's fragment; they are our own."""


class StagingFolder:
    """The contents of a locked staging folder."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._marks: dict[str, tuple[int, int, int] | None] = {}

    def prepare(self, plan: Plan, arrivals: Mapping[str, str]) -> tuple[dict[str, Fragment], bool]:
        """Make the folder ready for ``plan``; return the fragments to reuse by shard, and whether another plan's were discarded.

        ``arrivals`` are marks by input file, of downloads and of what was streamed: shards that were made of bytes which nobody had
        compared yet are of use only to a run that has the very same bytes, or compares none either.
        """
        place = self.place
        stale = not self._belongs_to(plan, arrivals)
        discarded = stale and place.shards.exists()
        if stale:
            for leftover in (place.fragments, place.shards, place.companions, place.ending, place.plan):
                remove(leftover)
        document = {"identity": plan.identity, "arrivals": dict(arrivals), **plan.document}
        replace_file(
            place.plan, in_chunks(compact_pieces(document))
        )  # first: fragments without a plan are those of a swap
        make_folder(place.shards)
        make_folder(place.fragments)
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
        place = self.place
        document = {"identity": plan.identity, "arrivals": {}, **plan.document}
        if not create_file(place.plan, in_chunks(compact_pieces(document))) and not self._belongs_to(plan, {}):
            remedy = "use the inputs and options of the other parts, or give their work up: deltaweights clean"
            raise TargetBusy("staging holds another plan", where=place.root, remedy=remedy)
        make_folder(place.shards)
        make_folder(place.fragments)
        return self.finished(plan, shards)

    def keep_from(self, folder: Path, fragment: Fragment) -> None:
        """Record a shard that is on the disk in ``folder``, and put it in its place; what another part put there is the same."""
        rename(folder / fragment.file, self.place.shards / fragment.file)
        self.keep(fragment)

    def keep(self, fragment: Fragment) -> None:
        """Record a shard that is on the disk."""
        flush_folder(self.place.shards)
        self._marks[fragment.file] = _mark(self.place.shards / fragment.file)
        replace_file(self._fragment_path(fragment.file), in_chunks(fragment.pieces()))

    def refuse_touched(self, shards: Mapping[str, Fragment]) -> None:
        """Raise ``TargetBusy`` when a shard is not what it was when it was finished, or found finished.

        Costs a look at each; it is what is left to notice another run by, where locks are none or hold on one machine only. One
        that looks otherwise is read: not every file system keeps the numbers of its files.
        """
        for shard, fragment in shards.items():
            path = self.place.shards / shard
            mark = _mark(path)
            if mark is None or (mark != self._marks.get(shard) and _sha256(path) != fragment.record.sha256):
                remedy = "let one run at a time write there, and run again"
                raise TargetBusy("another run has written to this shard", where=path, remedy=remedy)

    def _fragment_path(self, shard: str) -> Path:
        return self.place.fragments / f"{shard}.json"

    def forget(self, shard: str) -> None:
        """Have a shard made again: its record is gone."""
        remove(self._fragment_path(shard))

    def discard(self) -> None:
        """Remove what was made, since it is worth nothing."""
        for path in (self.place.plan, self.place.shards, self.place.fragments):
            remove(path)

    def _belongs_to(self, plan: Plan, arrivals: Mapping[str, str]) -> bool:
        try:
            document = strict_json(read_small(self.place.plan, MAX_PLAN), MOST_OBJECTS)
        except (InputOutputError, MalformedInput, ValueError):
            return False
        if not isinstance(document, dict) or document.get("identity") != plan.identity:
            return False
        return bool(document.get("arrivals", {}) == arrivals)

    def finished(self, plan: Plan, shards: Sequence[Shard], *, read: bool = True) -> dict[str, Fragment]:
        """Return the fragments of those ``shards`` of ``plan`` that are there and, if ``read``, have the recorded sha256."""
        finished = {}
        for shard in shards:
            try:
                fragment = Fragment.from_bytes(read_small(self._fragment_path(shard.file), MAX_PLAN))
                found = (self.place.shards / shard.file).stat(follow_symlinks=False)
            except (InputOutputError, MalformedInput, OSError, ValueError):
                continue
            whole = stat.S_ISREG(found.st_mode) and found.st_size == fragment.record.size == shard.size
            names = [tensor.name for tensor in fragment.tensors]
            expected = [tensor.spec.name for tensor in shard.tensors]
            ours = (fragment.plan, fragment.file) == (plan.identity, shard.file) and names == expected
            if whole and ours and (not read or _sha256(self.place.shards / shard.file) == fragment.record.sha256):
                finished[shard.file] = fragment
                self._marks[shard.file] = _mark(self.place.shards / shard.file)
        return finished


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Return what shows that a file was written to since, None when it is gone. Raises ``InputOutputError``."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputOutputError.from_os(error, path, "look at") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sha256(path: Path) -> str:
    file = LocalFile(path)
    try:
        return file.sha256()
    finally:
        file.close()
