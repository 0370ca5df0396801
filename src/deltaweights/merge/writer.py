"""One output shard, written at any offset, digested in order, and flushed to the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import time

from deltaweights.errors import InputOutputError
from deltaweights.manifest.records import FileRecord
from deltaweights.merge.plan import Shard
from deltaweights.util.disk import flush
from deltaweights.util.open_folder import OpenFolder

KEPT = "finished shards are kept: free some space or repair the disk, then run the same command again"
WRITEBACK_EVERY = 64 * 1024 * 1024  # bytes after which the system is asked to start writing to the disk

FALLOC_FL_KEEP_SIZE = 1
"""From linux/falloc.h: reserve blocks but leave the file's size alone, so that the size still tells how much was written."""

_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)


def _preallocate(fd: int, size: int) -> None:
    """Reserve space, to fail early and write in half the time (ext4, measured). ``os.posix_fallocate`` may write every block."""
    if _fallocate is not None and _fallocate(fd, FALLOC_FL_KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        code = ctypes.get_errno()
        if code not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EINTR}:
            raise OSError(code, os.strerror(code))


class ShardWriter:
    """Writes ``shard`` into ``folder``. ``write`` may be called from any thread in any order, ``digest`` in file order only."""

    def __init__(self, folder: OpenFolder, shard: Shard) -> None:
        self._folder, self._name = folder, shard.file
        self._path = folder.path / shard.file
        self._size = shard.size
        self._sha256 = hashlib.sha256()
        self._fd = -1
        self._finished = False
        self._digested = self._written_back = 0
        self.flush_seconds = 0.0  # of the final flush to the disk
        try:
            self._fd = folder.create(shard.file)
        except OSError as error:
            raise InputOutputError.from_os(error, self._path, "create", KEPT) from error
        try:
            _preallocate(self._fd, shard.size)
            self.append(shard.frame.bytes_before(0, ()))
        except OSError as error:
            self.discard_unfinished()
            raise InputOutputError.from_os(error, self._path, f"reserve {shard.size} bytes", KEPT) from error
        except InputOutputError:
            self.discard_unfinished()
            raise

    def write(self, data: memoryview, offset: int) -> None:
        """Write ``data`` at byte ``offset``. Raises ``InputOutputError`` when that fails."""
        done = 0
        while done < len(data):  # a short write is no error: the rest may fit, or fail with the reason
            try:
                written = os.pwrite(self._fd, data[done:], offset + done)
            except OSError as error:
                raise InputOutputError.from_os(error, self._path, f"write at byte {offset + done}", KEPT) from error
            if written <= 0:  # a sound disk never does this; retrying might never end
                raise InputOutputError(f"the disk took nothing at byte {offset + done}", where=self._path, remedy=KEPT)
            done += written

    def append(self, data: bytes) -> None:
        """Write ``data`` behind the digested bytes, and digest it. Raises ``InputOutputError`` when that fails."""
        view = memoryview(data)
        self.write(view, self._digested)
        self.digest(view)

    def digest(self, data: memoryview) -> None:
        """Add ``data``, the next bytes of the file, to its sha256."""
        self._sha256.update(data)
        self._digested += len(data)

    def start_writeback(self) -> None:
        """From time to time, have the system start writing what was digested; takes milliseconds, so not in an in-order section."""
        if self._digested - self._written_back < WRITEBACK_EVERY or not hasattr(os, "posix_fadvise"):
            return
        self._written_back = self._digested
        # On Linux this starts writing dirty pages and drops clean ones (mm/fadvise.c), so that the disk is busy all along, the
        # final flush has little left to do, and the page cache stays free for other jobs. From byte 0 on: what the last call
        # started to write is clean by now, and its memory can be reused for the next blocks.
        with contextlib.suppress(OSError):  # only advice
            os.posix_fadvise(self._fd, 0, self._written_back, os.POSIX_FADV_DONTNEED)

    def finish(self) -> FileRecord:
        """Flush the file to the disk and close it; return its record."""
        try:
            size = os.fstat(self._fd).st_size
            if size != self._size:
                problem = "wrong size after writing"
                raise InputOutputError(problem, where=self._path, found=size, expected=self._size, remedy=KEPT)
            began = time.monotonic()
            flush(self._fd)
            self._close()
            self.flush_seconds = time.monotonic() - began
        except OSError as error:
            raise InputOutputError.from_os(error, self._path, "flush to the disk", KEPT) from error
        self._finished = True
        return FileRecord(self._size, self._sha256.hexdigest())

    def discard_unfinished(self) -> None:
        """Close and remove the file if it is unfinished."""
        if not self._finished:
            with contextlib.suppress(OSError):
                self._close()
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._folder.fd)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
