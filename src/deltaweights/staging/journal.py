"""The record of a publication in several steps. Its stamps tell the files of both models from others put there since."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from deltaweights.errors import MalformedInput
from deltaweights.manifest.records import check_file_name
from deltaweights.staging.location import JOURNAL, PLAN, TargetLocation
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.staged_shards import plan_header
from deltaweights.staging.target_contents import FileStamp, contents_of, is_hub_metadata, is_result_file, stamp_of
from deltaweights.util.limits import JOURNAL as JOURNAL_LIMIT
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.text import Json, readable_json, strict_json

VERSION = 2
Stamps = Mapping[str, FileStamp]  # stamps of files by their names


@dataclass(frozen=True)
class Journal:
    """The publication of the result of ``plan``: the files of the ``new`` model, and of the ``old`` one in the target."""

    plan: str
    new: Stamps
    old: Stamps

    def write(self, staging: OpenStaging) -> None:
        """Write the journal into staging. Raises ``InputOutputError``."""
        document = {"version": VERSION, "plan": self.plan, "new": dict(self.new), "old": dict(self.old)}
        staging.root.replace(JOURNAL, readable_json(document))

    def is_new(self, folder: OpenFolder, location: TargetLocation) -> bool:
        """Return whether ``folder`` is the complete new model."""
        contents = contents_of(folder, location)
        return not _folders(contents) and stamps_of(contents) == self.new

    def is_old(self, folder: OpenFolder, location: TargetLocation) -> bool:
        """Return whether ``folder`` is the old model, or what an interrupted removal left of it."""
        contents = contents_of(folder, location)
        metadata = all(is_hub_metadata(folder, name) for name in _folders(contents))
        return metadata and stamps_of(contents).items() <= self.old.items()


def _folders(contents: Mapping[str, os.stat_result]) -> list[str]:
    return [name for name, found in contents.items() if stat.S_ISDIR(found.st_mode)]


def stamps_of(contents: Mapping[str, os.stat_result]) -> dict[str, FileStamp]:
    """Return the stamps of the files among ``contents``, without folders."""
    return {name: stamp_of(found) for name, found in contents.items() if not stat.S_ISDIR(found.st_mode)}


def read_journal(staging: OpenStaging) -> Journal | None:
    """Return the journal, or None. Raises ``MalformedInput`` when it is of another plan, or names files that no result has."""
    if not staging.has(JOURNAL):
        return None
    try:
        journal = _parse(staging.root.read(JOURNAL, JOURNAL_LIMIT.size))
        fault = None if staging.root.begins(PLAN, plan_header(journal.plan)) else "one of another plan"
    except (MalformedInput, ValueError, TypeError, LookupError, AttributeError) as error:
        fault = str(error)
    if fault is not None:
        where, remedy = staging.root.path / JOURNAL, "see what it is, and remove the folder that it is in"
        raise MalformedInput("not a journal of ours", where=where, found=fault, remedy=remedy)
    return journal


def _parse(data: bytes) -> Journal:
    """Parse a journal; raise ``ValueError``, ``TypeError``, ``LookupError`` or ``AttributeError`` when it is none."""
    document = strict_json(data, JOURNAL_LIMIT)
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']}, this program reads version {VERSION}")
    return Journal(str(document["plan"]), _parse_stamps(document["new"]), _parse_stamps(document["old"]))


def _parse_stamps(document: Json) -> dict[str, FileStamp]:
    return {_result_file(name): (int(inode), int(size), int(time)) for name, (inode, size, time) in document.items()}


def _result_file(name: object) -> str:
    file = check_file_name(name)
    if not is_result_file(file):
        raise ValueError(f"{name!r:.80} is no file of a result")
    return file
