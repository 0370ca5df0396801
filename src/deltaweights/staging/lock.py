"""One run at a time in a staging directory, as far as the file system supports it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from deltaweights.checkpoint.small_files import read_small
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.staging.location import TargetLocation, locate_target
from deltaweights.staging.open_staging import OpenStaging
from deltaweights.staging.ownership import OWNERSHIP
from deltaweights.util.interruption import check

PATIENCE = 5.0  # seconds that a part waits for one that ends, and holds the lock alone to see whether it is the last

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
"""Errors of ``flock`` on file systems without locks."""

MAX_HOLDER = 500  # bytes of a holder's name
LOCK, HOLDER = "lock", "owner"  # the locked file, and the one that names the lock's holder where there are no locks
NOTE = "this file system has no locks: make sure that no other run writes to this folder"


class StagingLock:
    """Holds the staging directory for this process; the system releases it when the process ends, however it ends.

    A ``shared`` lock is held by any number of parts of one job, and excludes an exclusive one. Where the file system has no locks,
    a file that names its holder takes the place of an exclusive one; it stays behind when the process is killed.
    """

    def __init__(
        self,
        location: TargetLocation,
        *,
        shared: bool = False,
        patience: float = 0,
        locate: Callable[[Path], TargetLocation] = locate_target,
    ) -> None:
        """Take it. Raises ``TargetBusy`` after ``patience`` seconds, ``MalformedInput`` if not ours, ``InputOutputError``."""
        self._location, self._shared, self._locate = location, shared, locate
        self._has_holder_file = False
        self._fd = -1
        self.note: str | None = None
        until = time.monotonic() + patience
        self._refuse_other_location()  # before anything is created, too: it would get in the way of that other run
        while not self._acquired(until):
            check()
        try:
            self.staging.verify_ownership()
            self._refuse_other_location()
        except MalformedInput:  # what is not ours stays as it is
            self._close()
            raise
        except BaseException:
            self.release()
            raise

    def _acquired(self, until: float) -> bool:
        """Open staging and try to lock it; return False when that has to be tried again."""
        self.staging = OpenStaging(self._location)
        acquired = False
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(LOCK, flags, 0o600, dir_fd=self.staging.root.fd)
            acquired = self._try_lock(until) and self._is_current()
        except FileNotFoundError:
            pass  # a run that ended removed the directory in between
        except OSError as error:
            raise InputOutputError.from_os(error, self._location.root / LOCK, "lock") from error
        finally:
            if not acquired:
                self._close()
        return acquired

    def _refuse_other_location(self) -> None:
        found = self._locate(self._location.target)
        if found != self._location and found.root.exists():
            problem = "another run has begun to build this folder elsewhere"
            remedy = "wait for it to end, and run again"
            raise TargetBusy(problem, where=self._location.target, remedy=remedy, code=ErrorCode.TARGET_IN_USE)

    def _try_lock(self, until: float) -> bool:
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.05)
                check()
                return False
            problem, remedy = "another run is writing to this folder", "wait for it to end"
            code = ErrorCode.TARGET_IN_USE
            raise TargetBusy(problem, where=self._location.root, remedy=remedy, code=code) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._take_holder_file()
            self.note = NOTE
        return True

    def _take_holder_file(self) -> None:
        root = self.staging.root
        if self._holder_is_dead():
            root.remove(HOLDER)
        if not self._shared:
            try:
                fd = os.open(HOLDER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=root.fd)
            except FileExistsError:
                pass
            else:
                self._has_holder_file = True
                with open(fd, "w", encoding="utf-8") as file:
                    file.write(_process_name(os.getpid()))
                return
        elif not self.staging.has(HOLDER):
            return
        found = self._holder() or "its owner"
        remedy = f"wait for it to end; if that process is gone, remove {root.path / HOLDER}"
        raise TargetBusy(
            "another run is writing to this folder",
            where=root.path,
            found=found,
            remedy=remedy,
            code=ErrorCode.TARGET_IN_USE,
        )

    def _holder(self) -> str:
        try:
            return self.staging.root.read(HOLDER, MAX_HOLDER).decode("utf-8", "replace")
        except (InputOutputError, MalformedInput):
            return ""

    def _holder_is_dead(self) -> bool:
        """Return whether the holder was a process of this machine that has certainly ended."""
        name = self._holder()
        number = name.removeprefix("process ").partition(" ")[0]
        if not number.isdecimal() or name != _process_name(int(number)):
            return False
        try:
            os.kill(int(number), 0)
        except (OSError, OverflowError) as error:
            return isinstance(error, ProcessLookupError)
        return False

    def _is_current(self) -> bool:
        # The run that had the lock before may have removed the file that we opened, or the whole directory. The file is opened
        # again, because a network file system may answer ``stat`` from an older cache.
        if not self.staging.is_current():
            return False
        try:
            named = self.staging.root.open(LOCK)
        except FileNotFoundError:
            return False
        try:
            return os.path.sameopenfile(self._fd, named)
        finally:
            os.close(named)

    def __enter__(self) -> StagingLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Unlock staging, and remove it unless it holds finished shards or a publication that was started."""
        discard = False
        # An error here changes nothing about the result; the next run, or `clean`, will come across what is left.
        with contextlib.suppress(InputOutputError, MalformedInput, OSError):
            # Exclusive first: a running part may finish a shard while one that ends is looking.
            discard = self._is_exclusive() and self._is_current() and not self.staging.worth_keeping()
            if discard:
                self._discard()
        self._close(remove=discard)

    def _close(self, *, remove: bool = False) -> None:
        """Unlock and close staging; ``remove`` the directory, which holds at most what another run has just created."""
        if self._has_holder_file:
            self._has_holder_file = False
            with contextlib.suppress(OSError):
                os.unlink(HOLDER, dir_fd=self.staging.root.fd)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        if remove:
            with contextlib.suppress(OSError):
                os.rmdir(self._location.root.name, dir_fd=self.staging.parent.fd)
        self.staging.close()

    def _is_exclusive(self) -> bool:
        """Return whether no other part holds the lock; from then on none can take it."""
        if not self._shared:
            return True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _discard(self) -> None:
        """Remove everything, the ownership record and the lock last: while the lock file exists, no other run starts here."""
        root = self.staging.root
        for name in sorted(set(root.names()) - {LOCK, HOLDER}, key=lambda name: name == OWNERSHIP):
            root.remove(name)
        os.unlink(LOCK, dir_fd=root.fd)


def _process_name(process: int) -> str:
    """Return how a process signs as a holder: with its machine, that machine's boot, and its container."""
    boot, container = "?", "?"
    with contextlib.suppress(OSError, InputOutputError, MalformedInput):
        boot = read_small(Path("/proc/sys/kernel/random/boot_id"), MAX_HOLDER).decode().strip()
        container = str(Path("/proc/self/ns/pid").readlink())
    return f"process {process} of {socket.gethostname()}, started {boot} {container}"
