"""Removing abandoned staging directories."""

from __future__ import annotations

import os

from deltaweights.staging.location import locate_target
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.publish import clear_staging, recover_publication


def clean(target: str | os.PathLike[str]) -> list[str]:
    """Remove the target's staging; return what was done. Raises ``TargetBusy``, ``MalformedInput``, ``InputOutputError``."""
    location = locate_target(target)
    if not os.path.lexists(location.root):
        return [f"nothing to clean for {location.target}"]
    with StagingLock(location) as lock:
        recovered = recover_publication(lock.staging)
        clear_staging(lock.staging)
    removed = f"removed {location.root}"
    return [recovered, removed] if recovered else [removed]
