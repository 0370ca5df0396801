"""Where a result will be published, and where it is built until then."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import TargetBusy

# The names in a staging directory.
SHARDS = "shards"  # the folder that becomes the target
FRAGMENTS = "fragments"  # records of finished shards
PARTS = "parts"  # where parts of a job write unfinished shards, each in a folder of its own
UNPACKED = "unpacked"  # inputs that came in archives
COMPANIONS = "companions"  # files to publish beside the weights, left by a part in the same way
HANDOFF = "ending.json"  # what the documents will say, left by a part for the process that finishes the job
PLAN = "plan.json"  # the plan that staging belongs to
JOURNAL = "publishing.json"  # what is being published, and what it replaces
REPLACED = "replaced"  # the old target, while it is being replaced
# Removed in this order: the journal when nothing else is worth keeping, and the plan that it names after it.
CLEARED = (HANDOFF, FRAGMENTS, COMPANIONS, UNPACKED, PARTS, JOURNAL, PLAN)
INSIDE = ".deltaweights"  # the name of a staging directory inside its target


@dataclass(frozen=True)
class TargetLocation:
    """``target`` is the folder to publish, ``root`` the staging directory, which is in ``target`` if ``inside``."""

    target: Path
    root: Path
    inside: bool

    @property
    def shards(self) -> Path:
        """The path of ``SHARDS``."""
        return self.root / SHARDS

    @property
    def fragments(self) -> Path:
        """The path of ``FRAGMENTS``."""
        return self.root / FRAGMENTS

    @property
    def unpacked(self) -> Path:
        """The path of ``UNPACKED``."""
        return self.root / UNPACKED

    @property
    def journal(self) -> Path:
        """The path of ``JOURNAL``."""
        return self.root / JOURNAL

    def publication_begun(self) -> bool:
        """Return whether a publication was started, and perhaps cut off."""
        return os.path.lexists(self.journal)

    def worth_keeping(self) -> bool:
        """Return whether staging holds a finished shard, an unpacked input, or a publication that was started."""
        try:
            finished = self.fragments.exists() and any(self.fragments.iterdir())
            return finished or self.unpacked.exists() or self.journal.exists()
        except OSError:  # another user's, which is refused when the lock is taken
            return True

    def refuse_opened(self, opened: Iterable[Path]) -> None:
        """Raise ``TargetBusy`` when the target holds one of the ``opened`` files, other than unpacked ones."""
        refuse_inputs(self, [path for path in opened if not path.is_relative_to(self.unpacked)])


def locate_target(target: str | os.PathLike[str]) -> TargetLocation:
    """Return the location of ``target``, with staging beside it, or inside it where a rename cannot publish it.

    The latter is so when the target is a mount point, its parent is not writable, or it is the current working directory.
    Staging that an earlier run started, in either place, is used again: one target has one lock.
    """
    path = Path(os.path.realpath(os.path.expanduser(target)))  # noqa: PTH111  (Path's own raises when there is no such user)
    beside = TargetLocation(path, path.parent / f".{path.name}.deltaweights", inside=False)
    inside = TargetLocation(path, path / INSIDE, inside=True)
    if not path.is_dir() or beside.root.exists():
        return beside
    parent_is_closed = not os.access(path.parent, os.W_OK | os.X_OK)
    if path.is_mount() or parent_is_closed or Path.cwd().is_relative_to(path) or inside.root.exists():
        return inside
    return beside


def refuse_inputs(location: TargetLocation, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ``TargetBusy`` when the target is one of ``inputs`` (folders and weights files), inside one, or holds one."""
    for given in inputs:
        source = Path(os.path.realpath(os.path.expanduser(given)))  # noqa: PTH111  (see above)
        if location.target.is_relative_to(source) or source.is_relative_to(location.target):
            found, remedy = f"input {source}", "choose another output folder"
            raise TargetBusy(
                "output and input overlap",
                where=location.target,
                found=found,
                remedy=remedy,
                code=ErrorCode.TARGET_IS_INPUT,
            )
