"""Removing abandoned staging.

Enters: a target. Leaves: what was done, in words. Never: staging of a run that is alive.
"""

from __future__ import annotations

import os

from deltaweights.staging.location import locate_target
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.publish import clear_staging, recover_publication


def clean(target: str | os.PathLike[str]) -> list[str]:
    """Remove the staging folder of ``target``.

    Raises ``TargetBusy`` when a run is using it, ``MalformedInput`` when it is not ours, ``InputOutputError``.
    """
    place = locate_target(target)
    if not os.path.lexists(place.root):
        return [f"nothing to clean for {place.target}"]
    with StagingLock(place) as lock:
        done = recover_publication(lock.staging)
        clear_staging(lock.staging)
    return [*([done] if done else []), f"removed {place.root}"]
