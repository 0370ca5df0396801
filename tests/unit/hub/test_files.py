"""Streamed files are never taken for verified; a file that arrived damaged is downloaded again."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltaweights.errors import CheckFailed, Mismatch, UsageError
from deltaweights.hub.file_download import FileDownload
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.staged_shards import StagedShards
from tests.support.hub_client import Machine
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


class Killed(BaseException):
    """What ends a run in these tests."""


def test_streamed_shards_are_no_use_to_a_run_that_stores(
    machine: Machine, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that verifies its inputs does not reuse shards of a streamed run."""
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
    """``require_verified`` refuses (6) a complete result of streamed inputs, unless ``overwrite`` replaces it."""
    assert apply_delta(BASE, DELTA, tmp_path / "out", hub=STREAM).streamed
    again = apply_delta(BASE, DELTA, tmp_path / "out", hub=STREAM)
    assert (again.status, again.streamed) == ("already complete", True)
    with pytest.raises(CheckFailed, match="not cryptographically verified"):
        apply_delta(BASE, DELTA, tmp_path / "out", require_verified=True)
    made = apply_delta(BASE, DELTA, tmp_path / "out", require_verified=True, overwrite=True)
    assert (made.status, made.streamed) == ("merged", False)
    assert apply_delta(BASE, DELTA, tmp_path / "out", require_verified=True).status == "already complete"


def test_streamed_inputs_are_not_hashed(machine: Machine, hub: HubServer, tmp_path: Path) -> None:
    """``hash_inputs`` with streamed inputs is refused (2): the next reading could differ."""
    with pytest.raises(UsageError, match="--hash-inputs has nothing to hash"):
        apply_delta(BASE, DELTA, tmp_path / "out", hub=STREAM, hash_inputs=True, require_verified=True)
    assert not (tmp_path / "out").exists()


def test_a_flipped_name_is_fetched_again(
    machine: Machine, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip that turns a tensor's name into another valid one ends with 4; the next run downloads it again."""
    at = (tmp_path / "b" / "model.safetensors").read_bytes().index(b"model.norm") + 1
    hub.faults.append(Fault("flip", "*.safetensors", repo=BASE, at=at, times=math.inf))
    really_hash = FileDownload.hash_on

    def hash_later(job: FileDownload, stop: threading.Event) -> str | None:
        if job.pieces.file.name.endswith(".safetensors"):
            stop.wait(0.01)
            return None
        return really_hash(job, stop)

    monkeypatch.setattr(FileDownload, "hash_on", hash_later)
    with pytest.raises(Mismatch, match="in the delta, not in the base"):
        apply_delta(BASE, DELTA, tmp_path / "out")
    monkeypatch.setattr(FileDownload, "hash_on", really_hash)
    hub.faults.clear()
    assert apply_delta(BASE, DELTA, tmp_path / "out").status == "merged"
