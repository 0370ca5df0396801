"""Pieces on disk: resumed, never trusted, and written to no other file."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from deltaweights.errors import InputOutputError
from deltaweights.hub.piece_storage import MAKE_ROOM, DiskPieces
from tests.support.errors import refused
from tests.support.hub_checkpoint import BASE, NEEDED, ONE, PIECE, assert_whole, key
from tests.support.hub_client import Machine
from tests.support.hub_server import HubServer


def test_a_disk_that_fills_up(machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up ends the download; the next one resumes it."""
    real, written = os.pwrite, 0

    def pwrite(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 2 * PIECE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with refused(InputOutputError, problem="cannot write: No space left on device", remedy=MAKE_ROOM):
            machine.fetch(BASE)
    before = sum(hub.sent.values())
    assert_whole(machine, folder, machine.fetch(BASE).commit)
    assert sum(hub.sent.values()) - before < sum((folder / name).stat().st_size for name in NEEDED)


def test_a_disk_that_is_full_from_the_start(
    machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot even be begun is not held: the next download in this process fetches it."""

    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with refused(InputOutputError, problem="cannot write: No space left on device", remedy=MAKE_ROOM) as caught:
            machine.fetch(BASE)
    assert_whole(machine, folder, machine.fetch(BASE).commit)
    assert caught.value.problem  # still held, with the frames that it came through


@pytest.mark.parametrize("left", ["marks of another size", "no marks", "an empty file", "noise in the marks"])
def test_what_an_earlier_run_left_is_never_trusted(machine: Machine, hub: HubServer, folder: Path, left: str) -> None:
    """Whatever an earlier run left, the published file has its hash."""
    blobs = machine.repository(BASE) / "blobs"
    blobs.mkdir(parents=True)
    stated, size = key(folder / ONE), (folder / ONE).stat().st_size
    gathered, marks = (blobs / f"{stated}.deltaweights.{what}" for what in ("partial", "pieces"))
    gathered.write_bytes(b"" if left == "an empty file" else bytes(size))
    if left != "no marks":
        marks.write_bytes(b"f" * 32 + b"\1" * (2 if left == "marks of another size" else 4))
    if left == "noise in the marks":
        marks.write_bytes(bytes(range(256)))
    assert_whole(machine, folder, machine.fetch(BASE).commit)


def test_without_locks_nobody_shares_a_file(
    machine: Machine, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without file locks, each process gathers pieces under a name of its own."""

    def no_locks(fd: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "blobs").mkdir()
    path = tmp_path / "blobs" / "abc.deltaweights.partial"
    storage = DiskPieces(path, 10)
    assert storage.path != path
    assert storage.path.name.startswith("abc.deltaweights.")
    storage.resume()
    storage.put(memoryview(b"0123456789"), 0)
    storage.close()
    storage.put(memoryview(b"xxxxxxxxxx"), 0)
    assert storage.path.read_bytes() == b"0123456789", "what comes after closing is passed over"
    assert machine.fetch(BASE).fetched


def test_a_link_in_the_cache_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    """A link in the place of a file of pieces is not followed."""
    (tmp_path / "blobs").mkdir()
    victim, path = tmp_path / "victim", tmp_path / "blobs" / "abc.deltaweights.partial"
    victim.write_text("years")
    path.symlink_to(victim)
    assert DiskPieces(path, 10).path == path.with_name(f"abc.deltaweights.{os.geteuid()}.partial")
    assert victim.read_text() == "years"


def test_a_file_that_is_still_read_stays_readable(tmp_path: Path) -> None:
    """A file that is closed while in use stays readable, cannot be changed, and can be locked by another download."""
    (tmp_path / "blobs").mkdir()
    path = tmp_path / "blobs" / "abc.deltaweights.partial"
    storage = DiskPieces(path, 4)
    storage.resume()
    storage.put(memoryview(b"abcd"), 0)
    storage.close(in_use=True)
    other = DiskPieces(path, 4)
    out = bytearray(4)
    assert storage.get(memoryview(out), 0)
    assert bytes(out) == b"abcd"
    for change in (storage.clear, lambda: storage.publish(tmp_path / "blobs" / "abc", storage.fd)):
        with refused(InputOutputError, where=path, problem="the download was stopped"):
            change()
    assert path.read_bytes() == b"abcd"
    assert not (tmp_path / "blobs" / "abc").exists()
    storage.close()
    other.close()
