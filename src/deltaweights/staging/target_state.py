"""What stands in the target: whether it is a finished result, and of which plan.

Enters: a place. Leaves: the manifest of what stands there, and its check, to be gone on with. Never: one manifest parsed twice, or
a byte of weights.
"""

from __future__ import annotations

import os

from deltaweights.manifest.folder_check import FolderCheck
from deltaweights.manifest.parse import Manifest
from deltaweights.manifest.records import MANIFEST
from deltaweights.manifest.verify import open_result
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.target_contents import FileStamp, stamp_of


def published_result(place: TargetLocation) -> tuple[Manifest, FolderCheck] | None:
    """Return the manifest of what stands in the target, and its check; None when it is no finished result of ours."""
    return None if place.journal.exists() else open_result(place.target)


class TargetState:
    """What stands in the target, looked at before the lock is held and again under it."""

    def __init__(self, place: TargetLocation, plan: str) -> None:
        self._place, self._plan = place, plan
        self._other: FileStamp | None = None  # of a manifest of another plan: it need not be parsed twice

    def published_result(self) -> tuple[Manifest, FolderCheck] | None:
        """Return what ``published`` does, None when it is the result of another plan, too."""
        mark = self._mark()
        if mark is None or mark == self._other:
            return None
        found = published_result(self._place)
        if found is None or found[0].plan == self._plan:
            return found
        self._other = mark
        return None

    def _mark(self) -> FileStamp | None:
        try:
            return stamp_of(os.lstat(self._place.target / MANIFEST))
        except OSError:
            return None
