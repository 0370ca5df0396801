"""Giving a finished folder its name, in one step where the system has one, and mending what a kill left in between.

Enters: a place whose ``shards`` folder is complete and flushed. Leaves: the target. Never: a target that is neither the old nor the
new one, where staging is beside it; without ``SHA256SUMS``, where staging is inside it.
"""

from __future__ import annotations

import errno
from pathlib import Path

from deltaweights.errors import InputOutputError, TargetBusy
from deltaweights.manifest.manifest import INDEX, MANIFEST, SUMS
from deltaweights.staging.disk import exchange, flush_folder, remove, rename, replace_file
from deltaweights.staging.place import Place
from deltaweights.text import readable_json, strict_json

LAST = (INDEX, MANIFEST, SUMS)
"""Moved last when files are moved one by one: until they are there, no loader and no check takes the folder for whole."""


def publish(place: Place) -> None:
    """Make ``place.shards`` the target, and remove staging. What stood there before is replaced."""
    flush_folder(place.shards)
    if place.inside:
        names = sorted(entry.name for entry in place.shards.iterdir())
        ordered = [name for name in names if name not in LAST] + [name for name in LAST if name in names]
        replace_file(place.journal, readable_json(ordered))
        _move_in(place, ordered)
    elif place.contents():
        _swap(place)
    else:
        _rename_onto_nothing(place.shards, place.target)
    remove(place.root)
    flush_folder(place.root.parent)


def recover(place: Place) -> str | None:
    """Finish a publication that was cut off; return what was done, or None. The staging lock must be held."""
    if place.journal.exists():
        try:
            ordered = strict_json(place.journal.read_bytes())
        except (OSError, ValueError) as error:
            raise InputOutputError(
                "cannot read the journal of a publication", where=place.journal, found=error
            ) from None
        _move_in(place, [str(name) for name in ordered])
        remove(place.journal)
        return "finished a publication that was cut off"
    if place.replaced.exists():
        _finish_swap(place)
        return "finished a replacement that was cut off"
    return None


def _finish_swap(place: Place) -> None:
    """Go on with a swap of two steps whose first is done; once the second is done too, ``shards`` is gone."""
    if place.shards.exists():
        # The swap starts only when the new folder is complete, so going on is as safe as going back.
        _rename_onto_nothing(place.shards, place.target)
    elif not place.contents():
        _rename_onto_nothing(place.replaced, place.target)
    remove(place.replaced)


def _rename_onto_nothing(source: Path, target: Path) -> None:
    try:
        source.rename(target)  # POSIX: an empty folder of that name is replaced
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            problem = "something else appeared in the target during the run"
            raise TargetBusy(problem, where=target, remedy="move it away, and run again") from error
        raise InputOutputError.from_os(error, target, "publish the result") from error
    flush_folder(target.parent)
    flush_folder(source.parent)


def _swap(place: Place) -> None:
    # After the exchange ``shards`` holds the old model. Without a plan, no later run can take its files for finished shards.
    remove(place.plan)
    flush_folder(place.root)
    if exchange(place.shards, place.target):
        return
    rename(place.target, place.replaced)
    rename(place.shards, place.target)


def _move_in(place: Place, ordered: list[str]) -> None:
    """Move the files into the target one by one; may be called again after a kill at any point."""
    for name in place.contents():
        if name not in ordered:
            remove(place.target / name)
    for name in LAST:  # the old ones would vouch for a mixture
        if (place.shards / name).exists():
            remove(place.target / name)
    for name in ordered:
        if (place.shards / name).exists():
            rename(place.shards / name, place.target / name)
