"""The staging folder: one plan at a time, and what a killed run finished.

Enters: staging that is locked, and a plan. Leaves: fragments of shards that need not be made again. Never: a shard of another plan,
or one that was not flushed before its fragment.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress

from deltaweights.checkpoint.files import LocalFile
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.manifest.records import Fragment
from deltaweights.merge.plan import Plan, Shard
from deltaweights.staging.open_staging import COMPANIONS, ENDING, FRAGMENTS, PLAN, SHARDS, OpenStaging
from deltaweights.staging.target_contents import FileStamp, stamp_of
from deltaweights.util.limits import FRAGMENT
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.text import compact_json, compact_pieces, in_chunks


class StagedShards:
    """The contents of locked staging, its folders of shards and of their fragments held open."""

    def __init__(self, staging: OpenStaging) -> None:
        """Open the folders ``shards`` and ``fragments``, made when they are not there, for as long as ``staging`` is open."""
        self.staging = staging
        self.shards = staging.keep_open(SHARDS)
        self.fragments = staging.keep_open(FRAGMENTS)
        self._marks: dict[str, FileStamp | None] = {}

    @classmethod
    def prepare(
        cls, staging: OpenStaging, plan: Plan, arrivals: Mapping[str, str]
    ) -> tuple[StagedShards, dict[str, Fragment], bool]:
        """Make staging ready for ``plan``; return it, the fragments to reuse by shard, and whether another plan's were discarded.

        ``arrivals`` are marks by input file, of downloads and of what was streamed: shards that were made of bytes which nobody had
        compared yet are of use only to a run that has the very same bytes, or compares none either.
        """
        root = staging.root
        stale = not _belongs_to(root, plan, arrivals)
        discarded = stale and staging.has(SHARDS)
        if stale:
            for leftover in (FRAGMENTS, SHARDS, COMPANIONS, ENDING, PLAN):
                root.remove(leftover)
        document = {"identity": plan.identity, "arrivals": dict(arrivals), **plan.document}
        root.replace(PLAN, in_chunks(compact_pieces(document)))  # first: fragments without a plan are worth nothing
        folder = cls(staging)
        fragments = folder.finished(plan, plan.shards)
        kept = {*fragments, *(f"{shard}.json" for shard in fragments)}
        for opened in (folder.shards, folder.fragments):
            for name in set(opened.names()) - kept:
                opened.remove(name)
            opened.flush()
        return folder, fragments, discarded

    @classmethod
    def join(
        cls, staging: OpenStaging, plan: Plan, shards: Sequence[Shard]
    ) -> tuple[StagedShards, dict[str, Fragment]]:
        """Make staging ready for ``shards`` of ``plan``, beside other parts; return it and the fragments of finished ones.

        Raises ``TargetBusy`` when another plan's work is there: parts of two plans never mix.
        """
        document = {"identity": plan.identity, "arrivals": {}, **plan.document}
        there = not staging.root.write_once(PLAN, in_chunks(compact_pieces(document)))
        if there and not _belongs_to(staging.root, plan, {}):
            remedy = "use the inputs and options of the other parts, or give their work up: deltaweights clean"
            raise TargetBusy("staging holds another plan", where=staging.root.path, remedy=remedy)
        folder = cls(staging)
        return folder, folder.finished(plan, shards)

    def adopt(self, source: OpenFolder, fragment: Fragment) -> None:
        """Record a shard that is on the disk in ``source``, and put it in its place; what another part put there is the same."""
        source.rename(fragment.file, self.shards, fragment.file)
        self.keep(fragment)

    def keep(self, fragment: Fragment) -> None:
        """Record a shard that is on the disk."""
        self.shards.flush()
        self._marks[fragment.file] = self._mark(fragment.file)
        self.fragments.replace(_fragment_name(fragment.file), in_chunks(fragment.pieces()))

    def refuse_modified(self, shards: Mapping[str, Fragment]) -> None:
        """Raise ``TargetBusy`` when a shard is not what it was when it was finished, or found finished.

        Costs a look at each; it is what is left to notice another run by, where locks are none or hold on one machine only. One
        that looks otherwise is read: not every file system keeps the numbers of its files.
        """
        for shard, fragment in shards.items():
            mark = self._mark(shard)
            if mark is None or (mark != self._marks.get(shard) and self.sha256(shard) != fragment.record.sha256):
                remedy = "let one run at a time write there, and run again"
                raise TargetBusy("another run has written to this shard", where=self.shards.path / shard, remedy=remedy)

    def open(self, shard: str) -> LocalFile:
        """Open a shard for reading. Raises ``InputOutputError``."""
        path = self.shards.path / shard
        try:
            return LocalFile(path, self.shards.open(shard))
        except OSError as error:
            raise InputOutputError.from_os(error, path, "open") from error

    def sha256(self, shard: str) -> str:
        """Return the sha256 of a shard. Raises ``InputOutputError``."""
        file = self.open(shard)
        try:
            return file.sha256()
        finally:
            file.close()

    def _mark(self, shard: str) -> FileStamp | None:
        found = self.shards.look(shard)
        return None if found is None else stamp_of(found)

    def forget(self, shard: str) -> None:
        """Have a shard made again: its record is gone."""
        self.fragments.remove(_fragment_name(shard))

    def discard(self) -> None:
        """Remove what was made, since it is worth nothing."""
        for name in (PLAN, SHARDS, FRAGMENTS):
            self.staging.root.remove(name)

    def finished(self, plan: Plan, shards: Sequence[Shard], *, read: bool = True) -> dict[str, Fragment]:
        """Return the fragments of those ``shards`` of ``plan`` that are there and, if ``read``, have the recorded sha256."""
        finished = {}
        for shard in shards:
            with suppress(InputOutputError, MalformedInput, OSError, ValueError):
                fragment = Fragment.from_bytes(self.fragments.read(_fragment_name(shard.file), FRAGMENT.size))
                if self._is_whole(shard, fragment, plan, read=read):
                    finished[shard.file] = fragment
                    self._marks[shard.file] = self._mark(shard.file)
        return finished

    def _is_whole(self, shard: Shard, fragment: Fragment, plan: Plan, *, read: bool) -> bool:
        found = self.shards.look(shard.file)
        if found is None or not stat.S_ISREG(found.st_mode) or not found.st_size == fragment.record.size == shard.size:
            return False
        names, expected = [tensor.name for tensor in fragment.tensors], [tensor.spec.name for tensor in shard.tensors]
        if (fragment.plan, fragment.file) != (plan.identity, shard.file) or names != expected:
            return False
        return not read or self.sha256(shard.file) == fragment.record.sha256


def _fragment_name(shard: str) -> str:
    return f"{shard}.json"


def _belongs_to(root: OpenFolder, plan: Plan, arrivals: Mapping[str, str]) -> bool:
    try:
        return root.begins(PLAN, plan_header(plan.identity, arrivals))
    except (InputOutputError, MalformedInput):
        return False


def plan_header(identity: str, arrivals: Mapping[str, str] | None = None) -> bytes:
    """Return how the document of a plan in staging begins: all of it that is ever read, since its identity tells the rest."""
    head = {"identity": identity} if arrivals is None else {"identity": identity, "arrivals": dict(arrivals)}
    return f"{compact_json(head)[:-1]},".encode()
