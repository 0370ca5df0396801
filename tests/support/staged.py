"""Staging folders made by hand, as a run would have made them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.records import MANIFEST, FileRecord, Fragment
from deltaweights.staging.contents import contents_of
from deltaweights.staging.folder import head_of_plan
from deltaweights.staging.journal import marks_of
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.opened import OpenStaging
from deltaweights.staging.place import Place
from deltaweights.staging.publish import LAST, recover
from deltaweights.staging.seal import new_seal
from deltaweights.util.open_folder import OpenFolder


def beside(target: Path) -> Place:
    """Return the place of a target whose staging is beside it."""
    return Place(target, target.parent / f".{target.name}.deltaweights", inside=False)


def within(target: Path) -> Place:
    """Return the place of a target whose staging is inside it."""
    return Place(target, target / ".deltaweights", inside=True)


def make_staging(place: Place) -> Place:
    """Make an empty staging folder that is ours, and return its place."""
    place.root.mkdir(0o700, parents=True, exist_ok=True)
    (place.root / "staging.json").write_bytes(new_seal(place, place.root.stat().st_ino))
    return place


def under_lock(place: Place, do: Callable[[OpenStaging], object]) -> object:
    """Do something with staging under its lock."""
    with StagingLock(place) as lock:
        return do(lock.staging)


def recovered(place: Place) -> object:
    """Recover what was cut off at a place; return what was said."""
    return under_lock(place, recover)


def stage_result(place: Place, result: Path) -> str:
    """Move the folder ``result`` of a merge into new staging as the folder of shards; return its plan's identity."""
    make_staging(place)
    shutil.move(result, place.shards)
    manifest = parse_manifest((place.shards / MANIFEST).read_bytes())
    place.plan.write_text(f'{head_of_plan(manifest.plan).decode()}"arrivals":{{}}}}')
    place.fragments.mkdir()
    for name in set(manifest.places.values()):
        record = FileRecord(manifest.files[name].size, manifest.files[name].sha256)
        fragment = Fragment(manifest.plan, name, record, ())
        (place.fragments / f"{name}.json").write_bytes("".join(fragment.pieces()).encode())
    return manifest.plan


def write_journal(place: Place, plan: str, **changes: object) -> None:
    """Write the journal of a publication that is about to begin."""
    document: dict[str, object] = {"version": 2, "plan": plan}
    for key, folder in (("new", place.shards), ("old", place.target)):
        document[key] = {}
        if folder.exists():
            with OpenFolder.at(folder) as opened:
                document[key] = marks_of(contents_of(opened, place))
    place.journal.write_text(json.dumps(document | changes))


def moves(place: Place) -> list[str]:
    """Return the names that a publication inside the target moves, in order."""
    names = json.loads(place.journal.read_text())["new"]
    return sorted(names, key=lambda name: (LAST.index(name) + 1 if name in LAST else 0, name))
