"""The shards of one plan in a staging directory, and which of them an earlier run finished."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress

from deltaweights.checkpoint.files import LocalFile
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy, wrap_os_errors
from deltaweights.manifest.records import Fragment
from deltaweights.merge.plan import Plan, Shard
from deltaweights.staging.location import COMPANIONS, FRAGMENTS, HANDOFF, PLAN, SHARDS
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.target_contents import FileStamp, stamp_of
from deltaweights.util.limits import FRAGMENT
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.text import compact_json, compact_pieces, in_chunks


class StagedShards:
    """The folders of shards and fragments in locked staging; a shard has a fragment only after it was flushed: it is finished."""

    def __init__(self, staging: OpenStaging) -> None:
        """Open or create both folders; they stay open as long as ``staging``."""
        self.staging = staging
        self.shards = staging.keep_open(SHARDS)
        self.fragments = staging.keep_open(FRAGMENTS)
        self._stamps: dict[str, FileStamp | None] = {}

    @classmethod
    def prepare(
        cls, staging: OpenStaging, plan: Plan, arrivals: Mapping[str, str]
    ) -> tuple[StagedShards, dict[str, Fragment], bool]:
        """Make staging ready for ``plan``; return it, the fragments to reuse by shard, and whether another plan's were discarded.

        ``arrivals`` are marks of downloaded and streamed input files. Shards made of bytes that had not been verified yet are
        reused only by a run that has the very same bytes, or that verifies none either.
        """
        root = staging.root
        stale = not _belongs_to(root, plan, arrivals)
        discarded = stale and staging.has(SHARDS)
        if stale:
            for leftover in (FRAGMENTS, SHARDS, COMPANIONS, HANDOFF, PLAN):
                root.remove(leftover)
        document = {"identity": plan.identity, "arrivals": dict(arrivals), **plan.document}
        root.replace(PLAN, in_chunks(compact_pieces(document)))  # first: fragments without a plan are worth nothing
        staged = cls(staging)
        fragments = staged.finished(plan, plan.shards)
        kept = {*fragments, *map(_fragment_name, fragments)}
        for folder in (staged.shards, staged.fragments):
            for name in set(folder.names()) - kept:
                folder.remove(name)
            folder.flush()
        return staged, fragments, discarded

    @classmethod
    def join(
        cls, staging: OpenStaging, plan: Plan, shards: Sequence[Shard]
    ) -> tuple[StagedShards, dict[str, Fragment]]:
        """Make staging ready for ``shards``, beside other parts. Raises ``TargetBusy`` when it holds another plan's."""
        document = {"identity": plan.identity, "arrivals": {}, **plan.document}
        existed = not staging.root.write_once(PLAN, in_chunks(compact_pieces(document)))
        if existed and not _belongs_to(staging.root, plan, {}):
            remedy = "use the inputs and options of the other parts, or discard their work with deltaweights clean"
            problem, code = "staging holds another plan", ErrorCode.TARGET_IN_USE
            raise TargetBusy(problem, where=staging.root.path, remedy=remedy, code=code)
        staged = cls(staging)
        return staged, staged.finished(plan, shards)

    def adopt(self, source: OpenFolder, fragment: Fragment) -> None:
        """Move a flushed shard here from ``source``, and record it; another part's shard of that name has the same bytes."""
        source.rename(fragment.file, self.shards, fragment.file)
        self.keep(fragment)

    def keep(self, fragment: Fragment) -> None:
        """Record a flushed shard as finished."""
        self.shards.flush()
        self._stamps[fragment.file] = self._stamp(fragment.file)
        self.fragments.replace(_fragment_name(fragment.file), in_chunks(fragment.pieces()))

    def refuse_modified(self, shards: Mapping[str, Fragment]) -> None:
        """Raise ``TargetBusy`` when a shard was modified since it was finished, or found finished.

        This notices another run where there are no locks, or they hold on one machine only. It costs an ``lstat`` each; a shard
        whose stamp differs is read, because some file systems renumber their files.
        """
        for shard, fragment in shards.items():
            stamp = self._stamp(shard)
            if stamp is None or (stamp != self._stamps.get(shard) and self.sha256(shard) != fragment.record.sha256):
                remedy = "let one run at a time write there, and run again"
                problem, where = "another run has written to this shard", self.shards.path / shard
                raise TargetBusy(problem, where=where, remedy=remedy, code=ErrorCode.TARGET_IN_USE)

    def open(self, shard: str) -> LocalFile:
        """Open a shard for reading. Raises ``InputOutputError``."""
        path = self.shards.path / shard
        with wrap_os_errors(path, "open"):
            return LocalFile(path, self.shards.open(shard))

    def sha256(self, shard: str) -> str:
        """Return the sha256 of a shard. Raises ``InputOutputError``."""
        with closing(self.open(shard)) as file:
            return file.sha256()

    def _stamp(self, shard: str) -> FileStamp | None:
        found = self.shards.look(shard)
        return None if found is None else stamp_of(found)

    def drop_fragment(self, shard: str) -> None:
        """Remove the record of a shard, so that it is made again."""
        self.fragments.remove(_fragment_name(shard))

    def discard(self) -> None:
        """Remove all shards and their records."""
        for name in (PLAN, SHARDS, FRAGMENTS):
            self.staging.root.remove(name)

    def finished(self, plan: Plan, shards: Sequence[Shard], *, read: bool = True) -> dict[str, Fragment]:
        """Return the fragments of those ``shards`` of ``plan`` that are complete and, if ``read``, have the recorded sha256."""
        finished = {}
        for shard in shards:
            with suppress(InputOutputError, MalformedInput, OSError, ValueError):
                fragment = Fragment.from_bytes(self.fragments.read(_fragment_name(shard.file), FRAGMENT.size))
                if self._is_complete(shard, fragment, plan, read=read):
                    finished[shard.file] = fragment
                    self._stamps[shard.file] = self._stamp(shard.file)
        return finished

    def _is_complete(self, shard: Shard, fragment: Fragment, plan: Plan, *, read: bool) -> bool:
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
    """Return how the file of a plan begins; nothing else of it is read, because the identity covers the rest."""
    head = {"identity": identity} if arrivals is None else {"identity": identity, "arrivals": dict(arrivals)}
    return f"{compact_json(head)[:-1]},".encode()
