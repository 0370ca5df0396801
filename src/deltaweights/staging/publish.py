"""Giving a finished folder its name, in one step where the system has one, and mending what a kill left in between.

Enters: a place whose ``shards`` folder is complete and flushed. Leaves: the target. Never: a target that is neither the old nor the
new one, where staging is beside it; without ``SHA256SUMS``, where staging is inside it.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

from deltaweights.checkpoint.files import read_small
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.manifest.folder_check import MAX_MANIFEST
from deltaweights.manifest.manifest import MANIFEST, MOST_OBJECTS, SUMS, plain_name
from deltaweights.merge.shards import NAMES, index_name
from deltaweights.staging.disk import exchange, flush_folder, remove, rename, replace_file
from deltaweights.staging.place import Place, refuse_content
from deltaweights.text import readable_json, strict_json

LAST = (*map(index_name, NAMES), MANIFEST, SUMS)
"""Moved last when files are moved one by one: until they are there, no check takes the folder for whole."""


def publish(place: Place, plan: str, *, overwrite: bool) -> None:
    """Make ``place.shards``, the result of ``plan``, the target. With ``overwrite``, a checkpoint that stood there is replaced.

    Raises ``TargetBusy`` when something appeared in the target that may not be replaced. Staging is then as it was; afterwards it
    holds nothing that is worth keeping.
    """
    flush_folder(place.shards)
    refuse_content(place, overwrite=overwrite)
    if place.inside:
        move = sorted((entry.name for entry in place.shards.iterdir()), key=_turn)
        old = [name for name in place.contents() if name not in move]
        replace_file(place.journal, readable_json({"plan": plan, "remove": old, "move": move}))
        _move_in(place, old, move)
    elif overwrite and place.contents():
        _swap(place)
    else:
        _rename_onto_nothing(place.shards, place.target)
    forget(place)


def _turn(name: str) -> tuple[int, str]:
    return (LAST.index(name) + 1 if name in LAST else 0), name


def forget(place: Place) -> None:
    """Make staging worthless, so that whoever holds its lock removes it."""
    for path in (place.journal, place.ending, place.fragments, place.plan, place.companions, place.unpacked):
        remove(path)


def recover(place: Place) -> str | None:
    """Finish a publication that was cut off; return what was done, or None. The staging lock must be held.

    Raises ``MalformedInput`` when the journal is not one that ``publish`` wrote: a folder from strangers may hold anything.
    """
    if place.journal.exists():
        steps = _read_journal(place)
        _move_in(place, steps["remove"], steps["move"])
        forget(place)
        return "finished a publication that was cut off"
    if place.replaced.exists():
        _finish_swap(place)
        forget(place)
        return "finished a replacement that was cut off"
    if _is_left(place):
        if place.shards.exists():
            refuse_content(replace(place, target=place.shards), overwrite=True)
        forget(place)
        remove(place.shards)
        return "removed what a replacement left that was cut off"
    return None


def is_cut_off(place: Place) -> bool:
    """Tell whether a publication was cut off, and ``recover`` has something to do."""
    return place.journal.exists() or place.replaced.exists() or _is_left(place)


def _is_left(place: Place) -> bool:
    """Tell whether ``shards`` may hold the old model: a swap takes the plan away first."""
    return place.fragments.exists() and not place.plan.exists()


def _read_journal(place: Place) -> dict[str, list[str]]:
    try:
        steps = strict_json(read_small(place.journal, MAX_MANIFEST))
        plan = strict_json(read_small(place.plan, MAX_MANIFEST), MOST_OBJECTS)
        named = {key: [plain_name(name) for name in steps[key]] for key in ("remove", "move")}
        fault = None if steps["plan"] == plan["identity"] else "it belongs to another plan"
    except (ValueError, TypeError, KeyError) as error:
        fault = str(error)
    if fault is not None:
        remedy = f"if you do not know where {place.root.name} comes from, delete it"
        raise MalformedInput("not a journal of ours", where=place.journal, found=fault, remedy=remedy)
    return named


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
            problem = "something else appeared there during the run"
            raise TargetBusy(problem, where=target, remedy="move it away, and run again") from error
        raise InputOutputError.from_os(error, target, "publish the result") from error
    flush_folder(target.parent)
    flush_folder(source.parent)


def _swap(place: Place) -> None:
    # After the exchange ``shards`` holds the old model. Without a plan, no later run can take its files for finished shards.
    plan, new = read_small(place.plan, MAX_MANIFEST), _inode(place.shards)
    remove(place.plan)
    flush_folder(place.root)
    try:
        if exchange(place.shards, place.target):
            _refuse_strangers(place)
            return
        rename(place.target, place.replaced)
        rename(place.shards, place.target)
    except BaseException:  # a signal's, too
        # Another one came at the last moment, and cannot go back: nothing may be taken from it.
        if _inode(place.shards) == new:
            if place.replaced.exists() and not place.contents():
                _rename_onto_nothing(place.replaced, place.target)
            replace_file(place.plan, plan)
        raise
    remove(place.replaced)


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _refuse_strangers(place: Place) -> None:
    """Exchange back, and raise ``TargetBusy``, when what was exchanged is no checkpoint: it came after the last look."""
    old = replace(place, target=place.shards)
    try:
        refuse_content(old, overwrite=True)
    except TargetBusy:
        try:
            exchange(place.shards, place.target)
        except InputOutputError as error:
            problem, remedy = (
                f"cannot be put back: {error}",
                f"move it to where it belongs: it is no checkpoint, and not {place.target.name}",
            )
            raise TargetBusy(problem, where=place.shards, remedy=remedy) from error
        raise


def _move_in(place: Place, old: list[str], new: list[str]) -> None:
    """Move ``new`` into the target one by one, ``old`` out; may be called again after a kill at any point."""
    for name in reversed(LAST):  # the old ones would vouch for a mixture
        if name in old or (place.shards / name).exists():
            remove(place.target / name)
    flush_folder(place.target)
    for name in old:
        remove(place.target / name)
    for name in new:
        if (place.shards / name).exists():
            rename(place.shards / name, place.target / name)
