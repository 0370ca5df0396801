"""Staging folders made by hand, as a run would have made them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.records import MANIFEST, FileRecord, Fragment
from deltaweights.staging.journal import stamps_of
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.ownership import new_ownership_record
from deltaweights.staging.publish import MOVED_LAST, recover_publication
from deltaweights.staging.staged_shards import plan_header
from deltaweights.staging.target_contents import contents_of
from deltaweights.util.open_folder import OpenFolder
from tests.support.killed_merges import Files
from tests.support.merging import files_of


def beside(target: Path) -> TargetLocation:
    """Return the location of a target whose staging is beside it."""
    return TargetLocation(target, target.parent / f".{target.name}.deltaweights", inside=False)


def within(target: Path) -> TargetLocation:
    """Return the location of a target whose staging is inside it."""
    return TargetLocation(target, target / ".deltaweights", inside=True)


def make_staging(location: TargetLocation) -> TargetLocation:
    """Make an empty staging folder that is ours, and return its location."""
    location.root.mkdir(0o700, parents=True, exist_ok=True)
    (location.root / "staging.json").write_bytes(new_ownership_record(location, location.root.stat().st_ino))
    return location


def under_lock(location: TargetLocation, do: Callable[[OpenStaging], object]) -> object:
    """Do something with staging under its lock."""
    with StagingLock(location) as lock:
        return do(lock.staging)


def recovered(location: TargetLocation) -> object:
    """Recover what was cut off at a location; return what was done, in words."""
    return under_lock(location, recover_publication)


def stage_result(location: TargetLocation, result: Path) -> str:
    """Move the folder ``result`` of a merge into new staging as the folder of shards; return its plan's identity."""
    make_staging(location)
    shutil.move(result, location.shards)
    manifest = parse_manifest((location.shards / MANIFEST).read_bytes())
    (location.root / "plan.json").write_text(f'{plan_header(manifest.plan).decode()}"arrivals":{{}}}}')
    location.fragments.mkdir()
    for name in set(manifest.places.values()):
        record = FileRecord(manifest.files[name].size, manifest.files[name].sha256)
        fragment = Fragment(manifest.plan, name, record, ())
        (location.fragments / f"{name}.json").write_bytes("".join(fragment.pieces()).encode())
    return manifest.plan


def write_journal(location: TargetLocation, plan: str, **changes: object) -> None:
    """Write the journal of a publication that is about to begin."""
    document: dict[str, object] = {"version": 2, "plan": plan}
    for key, folder in (("new", location.shards), ("old", location.target)):
        document[key] = {}
        if folder.exists():
            with OpenFolder.at(folder) as opened:
                document[key] = stamps_of(contents_of(opened, location))
    location.journal.write_text(json.dumps(document | changes))


def moves(location: TargetLocation) -> list[str]:
    """Return the names that a publication inside the target moves, in order."""
    names = json.loads(location.journal.read_text())["new"]
    return sorted(names, key=lambda name: (MOVED_LAST.index(name) + 1 if name in MOVED_LAST else 0, name))


def staged_swap(target: Path, results: tuple[Path, Path], *, steps: int) -> tuple[TargetLocation, Files, Files]:
    """Build what a swap of two steps leaves that dies after so many of them; return its location, and the files of old and new."""
    old, new = files_of(results[0]), files_of(results[1])
    location = beside(target)
    shutil.move(results[0], target)
    plan = stage_result(location, results[1])
    write_journal(location, plan)
    if steps > 0:
        target.rename(location.root / "replaced")
    if steps > 1:
        location.shards.rename(target)
    return location, old, new


def interrupt_inside(location: TargetLocation, source: Path, moved: int) -> None:
    """Build what a publication inside the target leaves that dies after so many moves."""
    write_journal(location, stage_result(location, source))
    for name in moves(location)[:moved]:
        (location.shards / name).rename(location.target / name)
