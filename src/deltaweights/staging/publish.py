"""Giving a finished folder its name, in one step where the system has one, and finishing what a kill left in between.

Enters: staging whose folder of shards is complete and flushed. Leaves: the target. Never: a target that is neither the old nor the
new one, where staging is beside it; without ``SHA256SUMS``, where staging is inside it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable

from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.manifest.parse import Manifest, parse_manifest
from deltaweights.manifest.records import MANIFEST, SUMS, Fragment
from deltaweights.merge.shards import NAMES, index_name
from deltaweights.staging.journal import Journal, read_journal, stamps_of
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.open_staging import (
    COMPANIONS,
    ENDING,
    FRAGMENTS,
    JOURNAL,
    PARTS,
    PLAN,
    REPLACED,
    SHARDS,
    UNPACKED,
    OpenStaging,
)
from deltaweights.staging.target_contents import contents_of, refuse_content, stamp_of
from deltaweights.util.limits import FRAGMENT
from deltaweights.util.limits import MANIFEST as MANIFEST_LIMIT
from deltaweights.util.open_folder import OpenFolder

MOVED_LAST = (*map(index_name, NAMES), MANIFEST, SUMS)
"""Moved last when files are moved one by one: until they are there, no check takes the folder for whole."""


KEEP = "keep what you need of it, and remove it"


def publish(staging: OpenStaging, plan: str, *, overwrite: bool) -> None:
    """Make the folder of shards, the result of ``plan``, the target. With ``overwrite``, a checkpoint that stood there is replaced.

    Raises ``TargetBusy`` when something appeared in the target that may not be replaced. Staging is then as it was; afterwards it
    holds nothing that is worth keeping.
    """
    contents = staging.refuse_content(overwrite=overwrite)
    with staging.folder(SHARDS) as shards:
        shards.flush()
        journal = Journal(plan, stamps_of(contents_of(shards, staging.place)), stamps_of(contents))
    if staging.place.inside:
        journal.write(staging)
        _move_in(staging, journal)
    elif contents:
        journal.write(staging)
        _swap(staging, journal)
    else:
        _rename_onto_nothing(staging, SHARDS)
    clear_staging(staging)


def _turn(name: str) -> tuple[int, str]:
    return (MOVED_LAST.index(name) + 1 if name in MOVED_LAST else 0), name


def clear_staging(staging: OpenStaging) -> None:
    """Make staging worthless, so that whoever holds its lock removes it."""
    # The journal when nothing is left that is worth keeping, and the plan that it names after it.
    for name in (ENDING, FRAGMENTS, COMPANIONS, UNPACKED, PARTS, JOURNAL, PLAN):
        staging.root.remove(name)


def recover_publication(staging: OpenStaging) -> str | None:
    """Finish a publication that was cut off; return what was done, or None.

    Raises ``MalformedInput`` when the journal is not one that ``publish`` wrote, or the files are not those that it speaks of, and
    ``TargetBusy`` when something else stands in the target by now.
    """
    journal = read_journal(staging)
    if journal is None:
        return None
    if staging.place.inside:
        _refuse_unfinished(staging, journal)
        _move_in(staging, journal)
        clear_staging(staging)
        return "finished a publication that was cut off"
    return _finish_swap(staging, journal)


# Staging beside the target: one folder for another.


def _swap(staging: OpenStaging, journal: Journal) -> None:
    """Replace the target by the folder of shards; what was replaced is removed."""
    target, holder, root = staging.place.target.name, staging.holder, staging.root
    try:
        if root.exchange(SHARDS, holder, target):
            old = SHARDS
            _refuse_another(staging, journal, old)
        else:
            old = REPLACED
            holder.rename(target, root, old)
            _refuse_another(staging, journal, old)
            root.rename(SHARDS, holder, target)
    except BaseException as error:  # a signal's, too
        _go_back(staging, journal, error)
        raise
    root.remove(old)


def _refuse_another(staging: OpenStaging, journal: Journal, name: str) -> None:
    """Raise ``TargetBusy`` unless ``name`` in staging, which was the target until now, is what was looked at before."""
    if not _is(staging, name, journal.is_old):
        _refuse_no_checkpoint(staging, name)  # it says what is no part of a model
        problem = "something else appeared there during the run"
        raise TargetBusy(problem, where=staging.place.target, remedy="see what it is, and run again")


def _go_back(staging: OpenStaging, journal: Journal, error: BaseException) -> None:
    """Undo a swap that failed, as far as nothing is taken from anybody who came in between."""
    root, target = staging.root, staging.place.target.name
    try:
        if isinstance(error, TargetBusy) and root.look(SHARDS) and not _is(staging, SHARDS, journal.is_new):
            root.exchange(SHARDS, staging.holder, target)
        if _is(staging, SHARDS, journal.is_new):
            if root.look(REPLACED) and not staging.contents():
                _rename_onto_nothing(staging, REPLACED)
            root.remove(JOURNAL)
    except (InputOutputError, TargetBusy) as failed:
        where = root.path / (REPLACED if root.look(REPLACED) else SHARDS)
        remedy = f"move it to where it belongs: it is not what stood at {target}"
        raise TargetBusy(f"cannot be put back: {failed}", where=where, remedy=remedy) from error


def _refuse_no_checkpoint(staging: OpenStaging, name: str) -> None:
    """Raise ``TargetBusy`` when the folder ``name`` in staging holds what no model does."""
    with staging.root.folder(name) as old:
        refuse_content(contents_of(old, staging.place), old, old.path, overwrite=True)


def _finish_swap(staging: OpenStaging, journal: Journal) -> str | None:
    """Go on with a swap, from wherever it was cut off."""
    root = staging.root
    done: str | None = "finished a replacement that was cut off"
    shards_are_new = _is(staging, SHARDS, journal.is_new)
    if not root.look(SHARDS) and not root.look(REPLACED):
        done = None  # all was done but this, or the target was taken away since
    elif shards_are_new and _is(staging, REPLACED, journal.is_old):
        # The swap starts only when the new folder is complete, so going on is as safe as going back.
        _rename_onto_nothing(staging, SHARDS)
        root.remove(REPLACED)
    elif shards_are_new and not root.look(REPLACED):
        root.remove(JOURNAL)  # nothing was done, or somebody else took the old target away
        return None
    elif _is(staging, SHARDS, journal.is_old) and not root.look(REPLACED):
        root.remove(SHARDS)
        done = "removed what a replacement left that was cut off"
    elif _is(staging, REPLACED, journal.is_old) and not root.look(SHARDS):
        if staging.contents():
            root.remove(REPLACED)
        else:
            _rename_onto_nothing(staging, REPLACED)
            done = "put back what a replacement that was cut off had moved away"
    else:
        if not shards_are_new and root.look(SHARDS):
            _refuse_no_checkpoint(staging, SHARDS)  # it says what is no part of a model
        problem = "a replacement was cut off, and its folders are not those that it names"
        raise MalformedInput(problem, where=root.path, found=", ".join(root.names()), remedy=KEEP)
    clear_staging(staging)
    return done


def _is(staging: OpenStaging, name: str, kind: Callable[[OpenFolder, TargetLocation], bool]) -> bool:
    """Tell whether the folder ``name`` in staging is there, and of a ``kind``."""
    if staging.root.look(name) is None:
        return False
    with staging.root.folder(name) as folder:
        return kind(folder, staging.place)


def _rename_onto_nothing(staging: OpenStaging, name: str) -> None:
    """Give the folder ``name`` in staging the target's name, which nothing has, or an empty folder."""
    target, root, holder = staging.place.target, staging.root, staging.holder
    try:
        os.rename(name, target.name, src_dir_fd=root.fd, dst_dir_fd=holder.fd)  # POSIX: an empty folder is replaced
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            problem = "something else appeared there during the run"
            raise TargetBusy(problem, where=target, remedy="move it away, and run again") from error
        raise InputOutputError.from_os(error, target, "publish the result") from error
    holder.flush()
    root.flush()


# Staging inside the target: file by file.


def _move_in(staging: OpenStaging, journal: Journal) -> None:
    """Move the result into the target one by one, what stood there out; may be called again after a kill at any point."""
    with staging.folder(SHARDS) as shards, staging.folder(REPLACED) as old, staging.target() as target:
        if target is None:
            raise InputOutputError("the target is gone", where=staging.place.target, remedy="run again")
        for name, mark in stamps_of(contents_of(old, staging.place)).items():
            if mark == journal.old.get(name):
                old.remove(name)  # moved out by a run that was killed then
        staged = sorted(set(shards.names()) & journal.new.keys(), key=_turn)
        for name in staged:
            found = target.look(name)
            if found is not None and stamp_of(found) not in {journal.old.get(name), journal.new[name]}:
                raise _appeared(target, name)
        for name in [*reversed(MOVED_LAST), *journal.old]:  # manifest and sums first: they would vouch for a mixture
            _move_out(target, old, name, journal)
        for name in staged:
            found = target.look(name)
            if found is not None and stamp_of(found) == journal.new[name]:
                shards.remove(name)  # moved, but for this
            elif not shards.move_if_absent(name, target, name):
                raise _appeared(target, name)


def _move_out(target: OpenFolder, old: OpenFolder, name: str, journal: Journal) -> None:
    """Remove the file ``name`` of the old model, by way of staging: whoever may write in the target cannot swap it there."""
    found = target.look(name)
    if found is None or stat.S_ISDIR(found.st_mode) or stamp_of(found) != journal.old.get(name):
        return
    target.rename(name, old, name)
    moved = old.look(name)
    if moved is None or stamp_of(moved) != journal.old[name]:
        try:
            old.rename(name, target, name)
        except InputOutputError as error:
            where, remedy = old.path / name, f"move it to {target.path}, where it belongs"
            raise TargetBusy(f"cannot be put back: {error}", where=where, remedy=remedy) from error
        raise _appeared(target, name)
    old.remove(name)


def _appeared(target: OpenFolder, name: str) -> TargetBusy:
    problem = "something else appeared there during the run"
    return TargetBusy(problem, where=target.path / name, remedy="move it away, and run again")


def _refuse_unfinished(staging: OpenStaging, journal: Journal) -> None:
    """Raise ``MalformedInput`` unless what is still to be moved are the finished shards and documents of the journal's plan."""
    with staging.folder(SHARDS) as shards, staging.folder(FRAGMENTS) as fragments, staging.target() as target:
        fault = None
        try:
            holder = target if shards.look(MANIFEST) is None and target is not None else shards
            manifest = parse_manifest(holder.read(MANIFEST, MANIFEST_LIMIT.size))
            if manifest.plan != journal.plan or journal.new.keys() != {*manifest.files, MANIFEST, SUMS}:
                fault = "those of another result"
            for name in sorted(set(manifest.files) & set(shards.names())):
                if not _is_finished(name, shards, fragments, manifest, journal):
                    fault = f"{name}, which is not what its manifest says"
        except (InputOutputError, MalformedInput, ValueError) as error:
            fault = f"no manifest: {error}"
    if fault is not None:
        problem = "a publication was cut off, and its files are not those that it names"
        raise MalformedInput(problem, where=staging.root.path, found=fault, remedy=KEEP)


def _is_finished(name: str, shards: OpenFolder, fragments: OpenFolder, manifest: Manifest, journal: Journal) -> bool:
    """Tell whether a file has what the manifest records; of a shard, whose bytes are many, its fragment is asked."""
    found, record = shards.look(name), manifest.files[name]
    if found is None or stamp_of(found) != journal.new.get(name) or found.st_size != record.size:
        return False
    if name not in manifest.places.values():
        return hashlib.sha256(shards.read(name, record.size)).hexdigest() == record.sha256
    fragment = Fragment.from_bytes(fragments.read(f"{name}.json", FRAGMENT.size))
    return (fragment.plan, fragment.record) == (journal.plan, record)
