"""Whether the target is a finished result of ours, and of which plan."""

from __future__ import annotations

import os

from deltaweights.manifest.folder_check import FolderCheck
from deltaweights.manifest.parse import Manifest
from deltaweights.manifest.records import MANIFEST
from deltaweights.manifest.verify import open_result
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.target_contents import FileStamp, stamp_of


def published_result(location: TargetLocation) -> tuple[Manifest, FolderCheck] | None:
    """Return the target's manifest and its check, which has read no weights yet; None when it is no finished result of ours."""
    return None if location.journal.exists() else open_result(location.target)


class TargetState:
    """The state of the target, for one plan: looked at before the lock is held, and again under it."""

    def __init__(self, location: TargetLocation, plan: str) -> None:
        self._location, self._plan = location, plan
        self._other: FileStamp | None = None  # of another plan's manifest, so that it is parsed only once

    def published_result(self) -> tuple[Manifest, FolderCheck] | None:
        """Return the manifest and check of a finished result of this plan, or None."""
        try:
            stamp = stamp_of(os.lstat(self._location.target / MANIFEST))
        except OSError:
            return None
        if stamp == self._other:
            return None
        found = published_result(self._location)
        if found is None or found[0].plan == self._plan:
            return found
        self._other = stamp
        return None
