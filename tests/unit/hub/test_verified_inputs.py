"""What was streamed is never taken for verified: by a later run, by a result that stands there, or by hashes of another reading."""

from __future__ import annotations

import fcntl
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltaweights.errors import CheckFailed, InputOutputError, Mismatch, UsageError
from deltaweights.hub.hashed import Job
from deltaweights.hub.locate import HubOptions
from deltaweights.hub.rooms import DiskRoom
from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.staged_shards import StagedShards
from tests.support.hub_client import Machine, forget_connections
from tests.support.hub_server import Fault, HubServer
from tests.support.pairs import base_tensors, delta_tensors, load, reference, same_bits, save

BASE, DELTA = "acme/base", "acme/delta"
STREAM = HubOptions(stream=True)
WEIGHTS = base_tensors(layers=2, vocabulary=400, hidden=64)
CHANGES = delta_tensors(WEIGHTS)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """Serve a pair in safetensors of one shard, which record no checksums."""
    base, delta = (save(t, tmp_path / name, "safetensors", 1) for name, t in (("b", WEIGHTS), ("d", CHANGES)))
    with HubServer({BASE: base, DELTA: delta}) as served:
        yield served


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubServer) -> Iterator[Machine]:
    """Return a machine that knows the Hub."""
    yield Machine(monkeypatch, tmp_path, hub)
    forget_connections()


class Killed(BaseException):
    """What ends a run in these tests."""


def test_streamed_shards_are_no_use_to_a_run_that_stores(
    machine: Machine, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that were made of streamed, damaged bytes before a kill are made anew by a run that compares hashes."""
    hub.faults.append(Fault("flip", "*.safetensors", repo=BASE, at=60_000))
    kept, really_keep = [], StagedShards.keep

    def keep(folder: StagedShards, fragment: object) -> None:
        really_keep(folder, fragment)  # type: ignore[arg-type]
        kept.append(fragment)
        if len(kept) == 3:
            raise Killed

    monkeypatch.setattr(StagedShards, "keep", keep)
    with pytest.raises(Killed):
        apply_delta(BASE, DELTA, tmp_path / "out", hub=STREAM, max_shard_size=60_000, workers=2)
    monkeypatch.setattr(StagedShards, "keep", really_keep)
    result = apply_delta(
        BASE, DELTA, tmp_path / "out", max_shard_size=60_000, require_verified=True, report=machine.said
    )
    assert any("staging held another plan" in note for note in machine.said.notes)
    assert same_bits(load(Path(result.target)), reference(WEIGHTS, CHANGES))
    assert not result.streamed


def test_a_streamed_result_that_stands_there_is_not_verified(machine: Machine, tmp_path: Path) -> None:
    """``require_verified`` refuses (6) a complete result of streamed inputs, which ``overwrite`` makes anew; else it says so."""
    assert apply_delta(BASE, DELTA, tmp_path / "out", hub=STREAM).streamed
    again = apply_delta(BASE, DELTA, tmp_path / "out", hub=STREAM)
    assert (again.status, again.streamed) == ("already complete", True)
    with pytest.raises(CheckFailed, match="the result is there, and not cryptographically verified"):
        apply_delta(BASE, DELTA, tmp_path / "out", require_verified=True)
    made = apply_delta(BASE, DELTA, tmp_path / "out", require_verified=True, overwrite=True)
    assert (made.status, made.streamed) == ("merged", False)
    assert apply_delta(BASE, DELTA, tmp_path / "out", require_verified=True).status == "already complete"


def test_streamed_inputs_are_not_hashed(machine: Machine, hub: HubServer, tmp_path: Path) -> None:
    """Hashes of one reading say nothing of the next: ``hash_inputs`` of what is kept nowhere is refused (2)."""
    with pytest.raises(UsageError, match="--hash-inputs has nothing to hash"):
        apply_delta(BASE, DELTA, tmp_path / "out", hub=STREAM, hash_inputs=True, require_verified=True)
    assert not (tmp_path / "out").exists()


def test_a_flipped_name_is_fetched_again(
    machine: Machine, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip that makes a tensor's name another valid one, before hashes are known, ends with 4; the next run fetches it again."""
    at = (tmp_path / "b" / "model.safetensors").read_bytes().index(b"lm_head") + 1
    hub.faults.append(Fault("flip", "*.safetensors", repo=BASE, at=at, times=math.inf))
    really_hash = Job.hash_on

    def hash_later(job: Job, stop: threading.Event) -> str | None:
        if job.arrival.file.name.endswith(".safetensors"):
            stop.wait(0.01)
            return None
        return really_hash(job, stop)

    monkeypatch.setattr(Job, "hash_on", hash_later)
    with pytest.raises(Mismatch, match="in the delta, not in the base"):
        apply_delta(BASE, DELTA, tmp_path / "out")
    monkeypatch.setattr(Job, "hash_on", really_hash)
    hub.faults.clear()
    assert apply_delta(BASE, DELTA, tmp_path / "out").status == "merged"


def test_without_locks_nobody_shares_a_file(
    machine: Machine, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has no locks, pieces are gathered under a name of the process's own."""

    def no_locks(fd: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "blobs").mkdir()
    path = tmp_path / "blobs" / "abc.deltaweights.incomplete"
    room = DiskRoom(path, 10)
    assert room.path != path
    assert room.path.name.startswith("abc.deltaweights.")
    room.here()
    room.put(memoryview(b"0123456789"), 0)
    room.close()
    room.put(memoryview(b"xxxxxxxxxx"), 0)
    assert room.path.read_bytes() == b"0123456789", "what comes after closing is passed over"
    assert machine.fetch(BASE).fetched


def test_a_link_in_the_cache_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    """A link that was planted where pieces are gathered is passed over, and what it leads to stays as it is."""
    (tmp_path / "blobs").mkdir()
    victim, path = tmp_path / "victim", tmp_path / "blobs" / "abc.deltaweights.incomplete"
    victim.write_text("years")
    path.symlink_to(victim)
    assert DiskRoom(path, 10).path == path.with_name(f"abc.deltaweights.{os.geteuid()}.incomplete")
    assert victim.read_text() == "years"


def test_a_file_that_is_still_read_stays_readable(tmp_path: Path) -> None:
    """What is closed while it is used can be read and never changed again; its lock is free, and another download has it."""
    (tmp_path / "blobs").mkdir()
    path = tmp_path / "blobs" / "abc.deltaweights.incomplete"
    room = DiskRoom(path, 4)
    room.here()
    room.put(memoryview(b"abcd"), 0)
    room.close(used=True)
    other = DiskRoom(path, 4)
    out = bytearray(4)
    assert room.get(memoryview(out), 0)
    assert bytes(out) == b"abcd"
    for change in (room.clear, lambda: room.publish(tmp_path / "blobs" / "abc")):
        with pytest.raises(InputOutputError, match="the download was stopped"):
            change()
    assert path.read_bytes() == b"abcd"
    assert not (tmp_path / "blobs" / "abc").exists()
    room.close()
    other.close()
