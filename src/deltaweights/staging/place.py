"""Where a result will stand, and where it is built until then.

Enters: the path that the user named. Leaves: a ``Place``. Never: a change to the disk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.companions import COPIED, LEGAL, NOTICE_NAME, README
from deltaweights.checkpoint.layout import WEIGHTS
from deltaweights.errors import InputOutputError, TargetBusy
from deltaweights.manifest.manifest import INDEX, MANIFEST, SUMS

REPLACEABLE = COPIED | {
    MANIFEST,
    SUMS,
    INDEX,
    NOTICE_NAME,
    README,
    f"DELTA_{README}",
    f"TARGET_{README}",
    f"BASE_{README}",
    "pytorch_model.bin.index.json",
    "model.sig",
    ".cache",
    ".gitattributes",
}
"""What may stand in a checkpoint, weights and licence files apart; a folder with anything else is not ours to replace."""


INSIDE = ".deltaweights"
"""The name of a staging folder inside its target."""


@dataclass(frozen=True)
class Place:
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
    def replaced(self) -> Path:
        """Where the old target waits in the middle of a swap of two steps."""
        return self.root / "replaced"

    @property
    def journal(self) -> Path:
        """The names that are being moved into ``target``, when staging is inside."""
        return self.root / "publishing.json"

    def worth_keeping(self) -> bool:
        """Tell whether staging holds a finished shard, an unpacked input, or a publication that was begun."""
        finished = self.fragments.exists() and any(self.fragments.iterdir())
        return finished or self.unpacked.exists() or self.replaced.exists() or self.journal.exists()

    def refuse_opened(self, opened: Iterable[Path]) -> None:
        """Raise ``TargetBusy`` when the target holds one of the files that were ``opened``, unpacked ones apart."""
        refuse_inputs(self, [path for path in opened if not path.is_relative_to(self.unpacked)])

    def contents(self) -> list[str]:
        """Return what stands in the target, apart from staging and what belongs to the disk. A file is its own content."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.target))
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            return [self.target.name]
        except OSError as error:
            raise InputOutputError.from_os(error, self.target, "look into") from error
        return [name for name in names if self.target / name != self.root and name != "lost+found"]


def locate(target: str | os.PathLike[str]) -> Place:
    """Return the place for ``target``: staging beside it, or inside it where a rename cannot publish it.

    That is so when it is a mount point, when its parent cannot be written, and when it is the working folder of this process.
    Staging that an earlier run has begun, in either place, is where this one goes on: one target has one lock.
    """
    path = Path(os.path.realpath(os.path.expanduser(target)))  # noqa: PTH111  (Path's own raises when there is no such user)
    beside = Place(path, path.parent / f".{path.name}.deltaweights", inside=False)
    inside = Place(path, path / INSIDE, inside=True)
    if not path.is_dir() or beside.root.exists():
        return beside
    parent_is_closed = not os.access(path.parent, os.W_OK | os.X_OK)
    if path.is_mount() or parent_is_closed or Path.cwd().is_relative_to(path) or inside.root.exists():
        return inside
    return beside


def refuse_inputs(place: Place, inputs: Iterable[str | os.PathLike[str]]) -> None:
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


def refuse_content(place: Place, *, overwrite: bool) -> None:
    """Raise ``TargetBusy`` when something stands in the target and may not be replaced."""
    contents = place.contents()
    if not contents:
        return
    some = ", ".join(contents[:3]) + (f" and {len(contents) - 3} more" if len(contents) > 3 else "")
    if not overwrite:
        remedy = "choose another output folder, or replace it with --overwrite"
        raise TargetBusy("already there, with other content", where=place.target, found=some, remedy=remedy)
    if not stat.S_ISDIR(place.target.stat().st_mode):
        raise TargetBusy("not a folder", where=place.target, remedy="choose another output folder")
    strangers = [name for name in contents if not _may_be_replaced(name)]
    if strangers or not any(name == MANIFEST or WEIGHTS.fullmatch(name) for name in contents):
        some = ", ".join(strangers[:3]) or some
        raise TargetBusy(
            "will not overwrite a folder that is not a checkpoint",
            where=place.target,
            found=some,
            remedy="empty it, or choose another output folder",
        )


def refuse_foreign(place: Place, *, overwrite: bool) -> None:
    """Raise ``TargetBusy`` when what stands in the target is certainly no result of ours, and may not be replaced.

    Cheap, so that nobody waits for inputs to be unpacked or hashed to hear it.
    """
    if MANIFEST not in place.contents() and not place.worth_keeping():
        refuse_content(place, overwrite=overwrite)


def _may_be_replaced(name: str) -> bool:
    return name in REPLACEABLE or WEIGHTS.fullmatch(name) is not None or LEGAL.fullmatch(name) is not None
