"""Archives unpacked in staging, under its lock, so that the next run of the same job finds what is there.

Enters: a place. Leaves: folders in it, while the job lasts or after it was cut off. Never: a folder that two runs use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from deltaweights.checkpoint.zipped_folder.unpack import NotEnoughDisk
from deltaweights.errors import InputOutputError
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.open_staging import UNPACKED
from deltaweights.util.interruption import Interrupted
from deltaweights.util.open_folder import OpenFolder


class StagingUnpacker:
    """An ``Unpacker`` whose folders lie in staging; it holds staging's lock from the first on."""

    copies = 2
    """See ``Unpacker``: the result, about as large, comes to lie on the same disk."""

    def __init__(self, place: TargetLocation) -> None:
        self._place = place
        self._lock: StagingLock | None = None
        self._found = False

    @property
    def holds_the_lock(self) -> bool:
        """Whether something is unpacked."""
        return self._lock is not None

    def folder(self, role: str) -> OpenFolder:
        """See ``Unpacker``. Raises ``TargetBusy`` when another run has the lock, ``MalformedInput``, ``InputOutputError``."""
        if self._lock is None:
            self._found = self._place.unpacked.exists()
            self._lock = StagingLock(self._place)
        with self._lock.staging.folder(UNPACKED) as unpacked:
            return unpacked.make(role)

    @contextmanager
    def locked(self) -> Iterator[StagingLock]:
        """Hold staging's lock, taken now unless it was before. Raises ``TargetBusy`` when another run has it."""
        if self._lock is not None:
            yield self._lock
            return
        with StagingLock(self._place) as lock:
            yield lock

    def __enter__(self) -> StagingUnpacker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        # What was cut off goes on where it was, also after a dry run; after a refusal, gigabytes in a hidden folder are a trap.
        if kind is None or kind is NotEnoughDisk:
            keep = self._found
        else:
            keep = issubclass(kind, (Interrupted, KeyboardInterrupt, InputOutputError))
        if not keep:
            with contextlib.suppress(InputOutputError):
                self._lock.staging.root.remove(UNPACKED)
        self._lock.__exit__(kind, error, trace)
