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


def beside(target: Path) -> TargetLocation:
    """Return the place of a target whose staging is beside it."""
    return TargetLocation(target, target.parent / f".{target.name}.deltaweights", inside=False)


def within(target: Path) -> TargetLocation:
    """Return the place of a target whose staging is inside it."""
    return TargetLocation(target, target / ".deltaweights", inside=True)


def make_staging(place: TargetLocation) -> TargetLocation:
    """Make an empty staging folder that is ours, and return its place."""
    place.root.mkdir(0o700, parents=True, exist_ok=True)
    (place.root / "staging.json").write_bytes(new_ownership_record(place, place.root.stat().st_ino))
    return place


def under_lock(place: TargetLocation, do: Callable[[OpenStaging], object]) -> object:
    """Do something with staging under its lock."""
    with StagingLock(place) as lock:
        return do(lock.staging)


def recovered(place: TargetLocation) -> object:
    """Recover what was cut off at a place; return what was said."""
    return under_lock(place, recover_publication)


def stage_result(place: TargetLocation, result: Path) -> str:
    """Move the folder ``result`` of a merge into new staging as the folder of shards; return its plan's identity."""
    make_staging(place)
    shutil.move(result, place.shards)
    manifest = parse_manifest((place.shards / MANIFEST).read_bytes())
    place.plan.write_text(f'{plan_header(manifest.plan).decode()}"arrivals":{{}}}}')
    place.fragments.mkdir()
    for name in set(manifest.places.values()):
        record = FileRecord(manifest.files[name].size, manifest.files[name].sha256)
        fragment = Fragment(manifest.plan, name, record, ())
        (place.fragments / f"{name}.json").write_bytes("".join(fragment.pieces()).encode())
    return manifest.plan


def write_journal(place: TargetLocation, plan: str, **changes: object) -> None:
    """Write the journal of a publication that is about to begin."""
    document: dict[str, object] = {"version": 2, "plan": plan}
    for key, folder in (("new", place.shards), ("old", place.target)):
        document[key] = {}
        if folder.exists():
            with OpenFolder.at(folder) as opened:
                document[key] = stamps_of(contents_of(opened, place))
    place.journal.write_text(json.dumps(document | changes))


def moves(place: TargetLocation) -> list[str]:
    """Return the names that a publication inside the target moves, in order."""
    names = json.loads(place.journal.read_text())["new"]
    return sorted(names, key=lambda name: (MOVED_LAST.index(name) + 1 if name in MOVED_LAST else 0, name))
