"""Where a result will stand, and where it is built until then.

Enters: the path that the user named. Leaves: a ``Place``. Never: a change to the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltaweights.errors import TargetBusy

INSIDE = ".deltaweights"
"""The name of a staging folder inside its target."""


@dataclass(frozen=True)
class TargetLocation:
    """``target`` is the folder to publish, ``root`` the staging folder. With ``inside``, ``root`` is in ``target``."""

    target: Path
    root: Path
    inside: bool

    @property
    def shards(self) -> Path:
        """The folder that becomes the target."""
        return self.root / "shards"

    @property
    def fragments(self) -> Path:
        """The folder of the records of finished shards."""
        return self.root / "fragments"

    @property
    def plan(self) -> Path:
        """The plan that staging belongs to."""
        return self.root / "plan.json"

    @property
    def unpacked(self) -> Path:
        """Where inputs are unpacked that came in archives."""
        return self.root / "unpacked"

    @property
    def ending(self) -> Path:
        """What the documents will say, for whoever finishes what parts have made."""
        return self.root / "ending.json"

    @property
    def companions(self) -> Path:
        """The files that will stand beside the weights, for the same."""
        return self.root / "companions"

    @property
    def workrooms(self) -> Path:
        """Where parts write their shards until they are whole, each in a folder of its own."""
        return self.root / "parts"

    @property
    def journal(self) -> Path:
        """What is being published, and what it replaces."""
        return self.root / "publishing.json"

    def publication_begun(self) -> bool:
        """Tell whether a publication was begun, and perhaps cut off."""
        return os.path.lexists(self.journal)

    def worth_keeping(self) -> bool:
        """Tell whether staging holds a finished shard, an unpacked input, or a publication that was begun."""
        try:
            finished = self.fragments.exists() and any(self.fragments.iterdir())
            return finished or self.unpacked.exists() or self.journal.exists()
        except OSError:  # of another user's, which whoever takes the lock will refuse
            return True

    def refuse_opened(self, opened: Iterable[Path]) -> None:
        """Raise ``TargetBusy`` when the target holds one of the files that were ``opened``, unpacked ones apart."""
        refuse_inputs(self, [path for path in opened if not path.is_relative_to(self.unpacked)])


def locate_target(target: str | os.PathLike[str]) -> TargetLocation:
    """Return the place for ``target``: staging beside it, or inside it where a rename cannot publish it.

    That is so when it is a mount point, when its parent cannot be written, and when it is the working folder of this process.
    Staging that an earlier run has begun, in either place, is where this one goes on: one target has one lock.
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


def refuse_inputs(place: TargetLocation, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ``TargetBusy`` when the target is one of ``inputs`` (folders and weights files), inside one, or holds one."""
    for given in inputs:
        source = Path(os.path.realpath(os.path.expanduser(given)))  # noqa: PTH111  (see above)
        if place.target.is_relative_to(source) or source.is_relative_to(place.target):
            raise TargetBusy(
                "output and input overlap",
                where=place.target,
                found=f"input {source}",
                remedy="choose another output folder",
            )
