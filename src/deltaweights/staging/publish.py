"""Publishing a finished result under the target's name, and finishing a publication that was cut off.

With staging beside the target, the target is the old model, the new one or absent at any time. With staging inside it, files are
moved one by one, and ``SHA256SUMS`` exists only while the files beside it belong together.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.manifest.parse import Manifest, parse_manifest
from deltaweights.manifest.records import MANIFEST, SUMS, Fragment
from deltaweights.merge.shards import NAMES, index_name
from deltaweights.staging.journal import Journal, read_journal, stamps_of
from deltaweights.staging.location import CLEARED, FRAGMENTS, JOURNAL, REPLACED, SHARDS, TargetLocation
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.target_contents import contents_of, refuse_content, stamp_of
from deltaweights.util.limits import FRAGMENT
from deltaweights.util.limits import MANIFEST as MANIFEST_LIMIT
from deltaweights.util.open_folder import OpenFolder

MOVED_LAST = (*map(index_name, NAMES), MANIFEST, SUMS)
"""Moved last when files are moved one by one: until they are there, no check accepts the folder as complete."""

KEEP = "keep what you need of it, and remove it"


def publish(staging: OpenStaging, plan: str, *, overwrite: bool) -> None:
    """Publish the shards of ``plan``; only with ``overwrite`` replace a checkpoint. Raises ``TargetBusy``, nothing changed."""
    contents = staging.refuse_content(overwrite=overwrite)
    with staging.folder(SHARDS) as shards:
        shards.flush()
        journal = Journal(plan, stamps_of(contents_of(shards, staging.location)), stamps_of(contents))
    if staging.location.inside:
        journal.write(staging)
        _move_in(staging, journal)
    elif contents or staging.has_target_files():  # a folder of nothing but litter cannot be renamed onto, either
        journal.write(staging)
        _swap(staging, journal)
    else:
        _rename_to_target(staging, SHARDS)
    clear_staging(staging)


def clear_staging(staging: OpenStaging) -> None:
    """Remove everything that is worth keeping, so that releasing the lock removes staging."""
    for name in CLEARED:
        staging.root.remove(name)


def recover_publication(staging: OpenStaging) -> str | None:
    """Finish or undo a publication that was cut off; return what was done. Raises ``MalformedInput`` or ``TargetBusy``."""
    journal = read_journal(staging)
    if journal is None:
        return None
    if staging.location.inside:
        _refuse_unfinished(staging, journal)
        _move_in(staging, journal)
        clear_staging(staging)
        return "finished a publication that was cut off"
    return _finish_swap(staging, journal)


# Staging beside the target: one folder is swapped for another.


def _swap(staging: OpenStaging, journal: Journal) -> None:
    target, parent, root = staging.location.target.name, staging.parent, staging.root
    try:
        if root.exchange(SHARDS, parent, target):
            old = SHARDS
            _refuse_other_target(staging, journal, old)
        else:
            old = REPLACED
            parent.rename(target, root, old)
            _refuse_other_target(staging, journal, old)
            root.rename(SHARDS, parent, target)
    except BaseException as error:  # including Interrupted
        _undo_swap(staging, journal, error)
        raise
    root.remove(old)


def _refuse_other_target(staging: OpenStaging, journal: Journal, name: str) -> None:
    """Raise ``TargetBusy`` unless ``name`` in staging, which was the target until now, is the model in the journal."""
    if not _holds(staging, name, journal.is_old):
        _refuse_no_checkpoint(staging, name)
        raise _appeared(staging.location.target)


def _undo_swap(staging: OpenStaging, journal: Journal, error: BaseException) -> None:
    """Undo a swap that failed, as far as that displaces nothing that appeared meanwhile."""
    root, target = staging.root, staging.location.target.name
    try:
        if isinstance(error, TargetBusy) and root.look(SHARDS) and not _holds(staging, SHARDS, journal.is_new):
            root.exchange(SHARDS, staging.parent, target)
        if _holds(staging, SHARDS, journal.is_new):
            if root.look(REPLACED) and not staging.contents():
                _rename_to_target(staging, REPLACED)
            root.remove(JOURNAL)
    except (InputOutputError, TargetBusy) as failed:
        where = root.path / (REPLACED if root.look(REPLACED) else SHARDS)
        remedy = f"move it back to where it belongs: it is not the old {target}"
        raise TargetBusy(f"cannot be put back: {failed}", where=where, remedy=remedy) from error


def _refuse_no_checkpoint(staging: OpenStaging, name: str) -> None:
    """Raise ``TargetBusy`` when the folder ``name`` in staging holds files that are no part of a model, and name them."""
    with staging.root.folder(name) as old:
        refuse_content(contents_of(old, staging.location), old, old.path, overwrite=True)


def _finish_swap(staging: OpenStaging, journal: Journal) -> str | None:
    root = staging.root
    done: str | None = "finished a replacement that was cut off"
    shards_are_new = _holds(staging, SHARDS, journal.is_new)
    if not root.look(SHARDS) and not root.look(REPLACED):
        done = None  # only clearing staging was left, or the target was moved away since
    elif shards_are_new and _holds(staging, REPLACED, journal.is_old):
        # A swap starts only when the new folder is complete, so finishing it is as safe as undoing it.
        _rename_to_target(staging, SHARDS)
        root.remove(REPLACED)
    elif shards_are_new and not root.look(REPLACED):
        root.remove(JOURNAL)  # nothing was done, or somebody moved the old target away
        return None
    elif _holds(staging, SHARDS, journal.is_old) and not root.look(REPLACED):
        root.remove(SHARDS)
        done = "removed what a replacement that was cut off had left"
    elif _holds(staging, REPLACED, journal.is_old) and not root.look(SHARDS):
        if staging.contents():
            root.remove(REPLACED)
        else:
            _rename_to_target(staging, REPLACED)
            done = "put back what a replacement that was cut off had moved away"
    else:
        if not shards_are_new and root.look(SHARDS):
            _refuse_no_checkpoint(staging, SHARDS)
        problem = "a replacement was cut off, and its folders are not those that it names"
        raise MalformedInput(problem, where=root.path, found=", ".join(root.names()), remedy=KEEP)
    clear_staging(staging)
    return done


def _holds(staging: OpenStaging, name: str, is_model: Callable[[OpenFolder, TargetLocation], bool]) -> bool:
    if staging.root.look(name) is None:
        return False
    with staging.root.folder(name) as folder:
        return is_model(folder, staging.location)


def _rename_to_target(staging: OpenStaging, name: str) -> None:
    """Rename the folder ``name`` in staging to the target, which must not exist, or be an empty folder."""
    target, root, parent = staging.location.target, staging.root, staging.parent
    try:
        os.rename(name, target.name, src_dir_fd=root.fd, dst_dir_fd=parent.fd)  # POSIX: an empty folder is replaced
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise _appeared(target) from error
        raise InputOutputError.from_os(error, target, "publish the result") from error
    parent.flush()
    root.flush()


# Staging inside the target: file by file.


def _move_in(staging: OpenStaging, journal: Journal) -> None:
    """Move the old files out of the target and the new ones in, one by one; may be repeated after a kill at any point."""
    with staging.folder(SHARDS) as shards, staging.folder(REPLACED) as old, staging.target() as target:
        if target is None:
            raise InputOutputError("the target is gone", where=staging.location.target, remedy="run again")
        for name, stamp in stamps_of(contents_of(old, staging.location)).items():
            if stamp == journal.old.get(name):
                old.remove(name)  # moved out by a run that was killed before this
        remaining = set(shards.names()) & journal.new.keys()
        staged = [*sorted(remaining - set(MOVED_LAST)), *(name for name in MOVED_LAST if name in remaining)]
        for name in staged:
            found = target.look(name)
            if found is not None and stamp_of(found) not in {journal.old.get(name), journal.new[name]}:
                raise _appeared(target.path / name)
        # Manifest and sums first: they would vouch for a mixture of both models.
        for name in [*reversed(MOVED_LAST), *journal.old]:
            _move_out(target, old, name, journal)
        for name in staged:
            found = target.look(name)
            if found is not None and stamp_of(found) == journal.new[name]:
                shards.remove(name)  # moved already, except for this step
            elif not shards.move_if_absent(name, target, name):
                raise _appeared(target.path / name)


def _move_out(target: OpenFolder, old: OpenFolder, name: str, journal: Journal) -> None:
    """Remove the file ``name`` of the old model via staging, where nobody who may write in the target can swap it."""
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
        raise _appeared(target.path / name)
    old.remove(name)


def _appeared(where: Path) -> TargetBusy:
    remedy = "move it away, and run again"
    problem, code = "something else appeared there during the run", ErrorCode.TARGET_NOT_EMPTY
    return TargetBusy(problem, where=where, remedy=remedy, code=code)


def _refuse_unfinished(staging: OpenStaging, journal: Journal) -> None:
    """Raise ``MalformedInput`` unless the files still to be moved are the finished shards and documents of the journal's plan."""
    with staging.folder(SHARDS) as shards, staging.folder(FRAGMENTS) as fragments, staging.target() as target:
        fault = None
        try:
            folder = target if shards.look(MANIFEST) is None and target is not None else shards
            manifest = parse_manifest(folder.read(MANIFEST, MANIFEST_LIMIT.size))
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
    """Return whether a file is what the manifest records; of a shard only the fragment is compared, because hashing takes long."""
    found, record = shards.look(name), manifest.files[name]
    if found is None or stamp_of(found) != journal.new.get(name) or found.st_size != record.size:
        return False
    if name not in manifest.places.values():
        return hashlib.sha256(shards.read(name, record.size)).hexdigest() == record.sha256
    fragment = Fragment.from_bytes(fragments.read(f"{name}.json", FRAGMENT.size))
    return (fragment.plan, fragment.record) == (journal.plan, record)
