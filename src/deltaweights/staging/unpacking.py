"""Unpacking archives into staging, under its lock, so that the next run of the same job finds what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from deltaweights.checkpoint.zipped_folder.unpack import NotEnoughDisk
from deltaweights.errors import InputOutputError
from deltaweights.staging.location import UNPACKED, TargetLocation
from deltaweights.staging.lock import StagingLock
from deltaweights.util.interruption import Interrupted
from deltaweights.util.open_folder import OpenFolder


class StagingUnpacker:
    """An ``Unpacker`` whose folders are in staging; it takes staging's lock with the first folder, and holds it."""

    copies = 2
    """As in ``Unpacker``: the result, about as large, will be on the same disk."""

    def __init__(self, location: TargetLocation) -> None:
        self._location = location
        self._lock: StagingLock | None = None
        self._found = False

    @property
    def holds_the_lock(self) -> bool:
        """Whether something was unpacked."""
        return self._lock is not None

    def folder(self, role: str) -> OpenFolder:
        """Open the folder for one input. Raises ``TargetBusy`` when another run has the lock, ``MalformedInput``."""
        if self._lock is None:
            self._found = self._location.unpacked.exists()
            self._lock = StagingLock(self._location)
        with self._lock.staging.folder(UNPACKED) as unpacked:
            return unpacked.make(role)

    @contextmanager
    def locked(self) -> Iterator[StagingLock]:
        """Hold staging's lock, taking it unless it is held already. Raises ``TargetBusy`` when another run has it."""
        if self._lock is not None:
            yield self._lock
            return
        with StagingLock(self._location) as lock:
            yield lock

    def __enter__(self) -> StagingUnpacker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lock is None:
            return
        # An interrupted job continues from here, also after a dry run; after a refusal, nobody would look for gigabytes in a
        # hidden folder.
        if kind is None or kind is NotEnoughDisk:
            keep = self._found
        else:
            keep = issubclass(kind, (Interrupted, KeyboardInterrupt, InputOutputError))
        if not keep:
            with contextlib.suppress(InputOutputError):
                self._lock.staging.root.remove(UNPACKED)
        self._lock.release()
