"""One run at a time in a staging folder.

Enters: a place. Leaves: the right to change what is in it, until the process ends or lets go. Never: two that have it alone, as far
as the file system tells them apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.staging.location import TargetLocation, locate_target
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.ownership import OWNERSHIP
from deltaweights.util.interruption import check

PATIENCE = 5.0
"""Seconds that a part waits for one that ends: it holds the lock alone for a moment, to see whether it is the last."""

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
"""What ``flock`` says where there are none."""

MOST_OF_A_NAME = 500
"""Bytes that say who an owner is."""

LOCK, OWNER = "lock", "owner"
"""The names of the files in staging."""

NOTE = "this file system has no locks: make sure that no other run writes to this folder"


class StagingLock:
    """Holds the staging folder for this process; the system lets go when the process ends, however it ends.

    A ``shared`` one is held by parts of one job, as many as there are, and by nobody who holds it alone. Where the file system has
    no locks, a file that names its ``owner`` stands for one that is held alone; that one stays when the process is killed.
    """

    def __init__(self, place: TargetLocation, *, shared: bool = False, patience: float = 0) -> None:
        """Take the lock; ``staging`` is what it holds.

        Raises ``TargetBusy`` when another run has it for ``patience`` seconds, or stages elsewhere; ``MalformedInput`` when staging
        is not ours; ``InputOutputError``.
        """
        self._place, self._shared = place, shared
        self._owns = False
        self._fd = -1
        self.note: str | None = None
        until = time.monotonic() + patience
        self._refuse_other_place()  # also before anything is made: it would stand in the way of that other run
        while not self._acquired(until):
            check()
        try:
            self.staging.seal()
            self._refuse_other_place()
        except BaseException as error:
            if isinstance(error, MalformedInput):  # what is not ours stays as it is
                self._let_go()
            else:
                self.__exit__(None, None, None)
            raise

    def _acquired(self, until: float) -> bool:
        """Open staging and try to lock it; return False when it has to be tried again."""
        self.staging = OpenStaging(self._place)
        path = self._place.root / LOCK
        try:
            self._fd = os.open(
                LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.staging.root.fd
            )
            if self._try(until) and self._is_current():
                return True
        except FileNotFoundError:
            pass  # a run that ended removed the folder in between
        except OSError as error:
            self._let_go()
            raise InputOutputError.from_os(error, path, "lock") from error
        except BaseException:
            self._let_go()
            raise
        self._let_go()
        return False

    def _refuse_other_place(self) -> None:
        found = locate_target(self._place.target)
        if found != self._place and found.root.exists():
            problem = "another run has begun to build this folder elsewhere"
            raise TargetBusy(problem, where=self._place.target, remedy="wait for it to end, and run again")

    def _try(self, until: float) -> bool:
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.05)
                check()
                return False
            remedy = "wait for it to end"
            raise TargetBusy("another run is writing to this folder", where=self._place.root, remedy=remedy) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._claim()
            self.note = NOTE
        return True

    def _claim(self) -> None:
        """Take the file that stands for a lock. Raises ``TargetBusy`` when it is there, and its owner may live."""
        root = self.staging.root
        if self._is_dead():
            root.remove(OWNER)
        if not self._shared:
            try:
                fd = os.open(OWNER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=root.fd)
            except FileExistsError:
                pass
            else:
                self._owns = True
                with open(fd, "w", encoding="utf-8") as file:
                    file.write(_named(os.getpid()))
                return
        elif not self.staging.has(OWNER):
            return
        found = "its owner"
        with contextlib.suppress(InputOutputError, MalformedInput):
            found = root.read(OWNER, MOST_OF_A_NAME).decode("utf-8", "replace") or found
        remedy = f"wait for it to end; if that process is gone, remove {root.path / OWNER}"
        raise TargetBusy("another run is writing to this folder", where=root.path, found=found, remedy=remedy)

    def _is_dead(self) -> bool:
        """Tell whether the owner is certainly no more: a process of this machine that is not there."""
        try:
            name = self.staging.root.read(OWNER, MOST_OF_A_NAME).decode("utf-8", "replace")
        except (InputOutputError, MalformedInput):
            return False
        number = name.removeprefix("process ").partition(" ")[0]
        if not number.isdecimal() or name != _named(int(number)):
            return False
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return False

    def _is_current(self) -> bool:
        # The run that had the lock before us may have removed the file that we opened, or the whole folder. Opened, not looked
        # at: an attribute that a network file system remembers may be older than that.
        if not self.staging.is_current():
            return False
        try:
            named = self.staging.root.open(LOCK)
        except FileNotFoundError:
            return False
        try:
            ours, theirs = os.fstat(self._fd), os.fstat(named)
        finally:
            os.close(named)
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)

    def __enter__(self) -> StagingLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What a run leaves must be worth finding: a finished shard, or a publication that was begun.
        # Errors here change nothing about the result; the next run, or `clean`, comes across what is left.
        discard = False
        with contextlib.suppress(InputOutputError, MalformedInput, OSError):
            # Alone first: a part that runs may finish a shard while one that ends looks.
            discard = self._is_alone() and self._is_current() and not self.staging.worth_keeping()
            if discard:
                self._discard()
        self._let_go(remove=discard)

    def _let_go(self, *, remove: bool = False) -> None:
        """Unlock, and close staging; ``remove`` it, which is empty then but for what another run may have begun."""
        if self._owns:
            self._owns = False
            with contextlib.suppress(OSError):
                os.unlink(OWNER, dir_fd=self.staging.root.fd)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        if remove:
            with contextlib.suppress(OSError):
                os.rmdir(self._place.root.name, dir_fd=self.staging.holder.fd)
        self.staging.close()

    def _is_alone(self) -> bool:
        """Tell whether no other part holds the lock; from then on none can take it."""
        if not self._shared:
            return True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _discard(self) -> None:
        """Remove everything, the seal and the lock last: as long as the lock is there, no other run begins to work here."""
        root = self.staging.root
        for name in sorted(set(root.names()) - {LOCK, OWNER}, key=OWNERSHIP.__eq__):
            root.remove(name)
        os.unlink(LOCK, dir_fd=root.fd)


def _named(process: int) -> str:
    """Return how a process signs as an owner: with what tells its machine, since when it runs, and its container."""
    machine = ["?", "?"]
    with contextlib.suppress(OSError, InputOutputError, MalformedInput):
        machine[0] = read_small(Path("/proc/sys/kernel/random/boot_id"), MOST_OF_A_NAME).decode().strip()
        machine[1] = str(Path("/proc/self/ns/pid").readlink())
    return f"process {process} of {socket.gethostname()}, started {' '.join(machine)}"
