"""Removing abandoned staging.

Enters: a target. Leaves: what was done, in words. Never: staging of a run that is alive.
"""

from __future__ import annotations

import os

from deltaweights.staging.lock import StagingLock
from deltaweights.staging.place import locate
from deltaweights.staging.publish import forget, recover


def clean(target: str | os.PathLike[str]) -> list[str]:
    """Remove the staging folder of ``target``.

    Raises ``TargetBusy`` when a run is using it, ``MalformedInput`` when it is not ours, ``InputOutputError``.
    """
    place = locate(target)
    if not os.path.lexists(place.root):
        return [f"nothing to clean for {place.target}"]
    with StagingLock(place) as lock:
        done = recover(lock.staging)
        forget(lock.staging)
    return [*([done] if done else []), f"removed {place.root}"]
