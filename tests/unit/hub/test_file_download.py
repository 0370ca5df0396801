"""Files that arrive damaged, late or in order while they are merged."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils.sha import git_hash

from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.hub.files import Refetched
from deltaweights.hub.locate import HubOptions
from deltaweights.hub.transfer import DamagedFile
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.verify import verify
from deltaweights.staging.staged_shards import StagedShards
from tests.support.errors import refused
from tests.support.hub_client import Machine, wait_for
from tests.support.hub_pair import (
    BASE,
    DELTA,
    STREAM,
    Pair,
    arrived,
    local,
    make,
    results,
    serve,
    weights_of,
)
from tests.support.hub_server import Fault, HubServer
from tests.support.limits import PATIENCE
from tests.support.params import few

FOREVER = math.inf


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """Serve nothing yet."""
    with HubServer() as served:
        yield served


def shard_of(folder: Path, number: int = 0) -> str:
    return sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".safetensors"})[number]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999], ids=["first byte", "header", "weights", "end"])
def test_a_flipped_byte_while_merging(machine: Machine, hub: HubServer, pair: Pair, share: float) -> None:
    """A flipped byte anywhere in a download is detected; the merge restarts once, and is correct."""
    serve(hub, pair)
    expected = local(pair, machine.folder / "local")
    name = shard_of(pair[1])
    at = int(share * (pair[1] / name).stat().st_size)
    hub.faults.append(Fault("flip", name, repo=DELTA, at=at))
    found = apply_delta(BASE, DELTA, machine.folder / "out", report=machine.said)
    assert found.content_digest == expected.content_digest
    assert results(machine.folder / "out") == results(machine.folder / "local")
    assert any("the download has hash" in warning for warning in machine.said.warnings)
    assert verify(machine.folder / "out").ok


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the shards that are finished from now on."""
    names: list[str] = []
    real = StagedShards.keep

    def keep(self: StagedShards, fragment: Any) -> None:
        names.append(fragment.file)
        real(self, fragment)

    monkeypatch.setattr(StagedShards, "keep", keep)
    return names


def last_weights(folder: Path) -> tuple[str, int]:
    """Return a file and a place in it, in the last tensor of the plan, of which no sample is taken."""
    name = shard_of(folder, -1)
    return name, (folder / name).stat().st_size * 9 // 10


RATE, PIECE, RUN, SHARD = 20e6, 1 << 16, 1 << 19, "6MB"
"""Bytes per second, of a piece, of a request, and of a shard, at which merge and download overlap also where files are small."""


@pytest.fixture(scope="session", params=["torch", pytest.param("safetensors", marks=pytest.mark.slow)])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair of four tensors of 5 MB, so that most of them is no sample."""
    return make_wide(tmp_path_factory.mktemp("wide"), request.param)


@pytest.fixture(scope="session")
def wide_torch(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair as above, in torch's format."""
    return make_wide(tmp_path_factory.mktemp("wide_torch"), "torch")


def make_wide(folder: Path, container: str) -> Pair:
    torch.manual_seed(3)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(4)]
    base, delta = ({name: (torch.randn(2048, 1280) * size).half() for name in names} for size in (0.02, 4e-4))
    return make(folder, base, delta, container, 1)


@pytest.mark.slow
def test_always_damaged_while_merging(machine: Machine, wide: Pair, kept: list[str]) -> None:
    """A file that always arrives damaged ends the merge with 5; nothing is published, and no shard of it is reused."""
    machine.ask_for_little(PIECE, RUN)
    expected = local(wide, machine.folder / "local", max_shard_size=SHARD)
    kept.clear()
    name, at = last_weights(wide[1])
    with HubServer(rate=RATE) as hub:
        machine.turn_to(hub)
        commits = serve(hub, wide)
        hub.faults.append(Fault("flip", name, repo=DELTA, at=at, times=FOREVER))
        with pytest.raises(DamagedFile) as caught:
            apply_delta(BASE, DELTA, machine.folder / "out", max_shard_size=SHARD, report=machine.said)
    content = bytearray((wide[1] / name).read_bytes())
    stated = hashlib.sha256(content).hexdigest()
    content[at] ^= 1
    where = machine.repository(DELTA) / "snapshots" / commits["delta"] / name
    error, found = caught.value, f"hash {hashlib.sha256(content).hexdigest()}"
    assert (error.where, error.found, error.expected) == (where, found, stated)
    assert kept, "shards were made while the file was still arriving"
    assert not (machine.folder / "out").exists()
    assert not where.exists()
    with HubServer() as hub:
        machine.turn_to(hub)
        serve(hub, wide)
        kept.clear()
        again = apply_delta(BASE, DELTA, machine.folder / "out", max_shard_size=SHARD)
    assert again.content_digest == expected.content_digest
    assert len(kept) == again.shards


@pytest.mark.slow
def test_damaged_once_while_merging(machine: Machine, wide: Pair, kept: list[str]) -> None:
    """Shards made of damaged bytes are made again, and the result is correct."""
    machine.ask_for_little(PIECE, RUN)
    expected = local(wide, machine.folder / "local", max_shard_size=SHARD)
    kept.clear()
    name, at = last_weights(wide[1])
    with HubServer(rate=RATE) as hub:
        machine.turn_to(hub)
        serve(hub, wide)
        hub.faults.append(Fault("flip", name, repo=DELTA, at=at))
        found = apply_delta(BASE, DELTA, machine.folder / "out", max_shard_size=SHARD, report=machine.said)
    assert found.content_digest == expected.content_digest
    assert len(kept) > found.shards
    assert any(warning.endswith("starting again") for warning in machine.said.warnings)


@pytest.mark.parametrize("number", few([signal.SIGKILL, signal.SIGINT], 1), ids=["kill -9", "Ctrl-C"])
def test_interrupted_while_merging(machine: Machine, wide_torch: Pair, number: signal.Signals) -> None:
    """A killed merge from the Hub is finished by the same command, which reuses shards and downloads."""
    machine.ask_for_little(PIECE, RUN)
    expected = local(wide_torch, machine.folder / "local", max_shard_size=SHARD)
    target = machine.folder / "out"
    command: list[str | Path] = [
        "apply",
        "--base",
        BASE,
        "--delta",
        DELTA,
        "--target",
        target,
        "--max-shard-size",
        SHARD,
        "--json",
    ]
    fragments = machine.folder / ".out.deltaweights/fragments"
    with HubServer(rate=RATE) as hub:
        machine.turn_to(hub)
        serve(hub, wide_torch)
        with machine.start(*command, "-q") as process:
            wait_for(lambda: len(list(fragments.glob("*.json"))) >= 1, process)
            process.send_signal(number)
            _, err = process.communicate(timeout=PATIENCE)
        first = arrived(hub)
    if number == signal.SIGINT:
        assert process.returncode == 130
        fetched = "[0-9.]+ MB of [0-9.]+ MB fetched and kept"
        kept = f"{fetched}; [0-9]+ of [0-9]+ shards? (is|are) finished and kept; run the same command again to continue"
        assert re.fullmatch(f"deltaweights: error: interrupted; {kept}\n", err)
    assert first < weights_of(wide_torch)
    with HubServer() as hub:
        machine.turn_to(hub)
        serve(hub, wide_torch)
        done = machine.run(*command)
        assert done.returncode == 0, done.stderr
        assert arrived(hub) < weights_of(wide_torch) - first + 6 * (1 << 20)
    assert " finished already" in done.stderr
    assert json.loads(done.stdout)["content_digest"] == expected.content_digest
    assert results(target) == results(machine.folder / "local")


def test_no_ranges(machine: Machine, hub: HubServer, large: Pair) -> None:
    """A server that ignores Range can be merged from, but not with --stream (5)."""
    serve(hub, large)
    expected = local(large, machine.folder / "local")
    hub.faults.append(Fault("no-range", times=FOREVER))
    found = apply_delta(BASE, DELTA, machine.folder / "out")
    assert found.content_digest == expected.content_digest
    shutil.rmtree(machine.cache)
    with refused(InputOutputError, problem="the server does not serve ranges", remedy="run without --stream"):
        apply_delta(BASE, DELTA, machine.folder / "streamed", hub=STREAM)
    assert not (machine.folder / "streamed").exists()


@pytest.mark.parametrize("options", [HubOptions(), STREAM], ids=["fetched", "streamed"])
def test_all_sorts_of_faults(machine: Machine, hub: HubServer, large: Pair, options: HubOptions) -> None:
    """Drops, resets, 503, 429, expired addresses and short bodies during a merge do not change the result."""
    serve(hub, large)
    expected = local(large, machine.folder / "local")
    for number in (0, 1):
        name = shard_of(large[0], number)
        for kind, at in (("drop", 500_000), ("reset", 1_200_000), ("short", 2_000_000), ("drop", 2_500_000)):
            hub.faults.append(Fault(kind, name, at=at, times=2))  # type: ignore[arg-type]
        hub.faults.append(Fault("status", name, on="files"))
        hub.faults.append(Fault("status", name, status=429, headers={"Retry-After": "0"}))
        hub.faults.append(Fault("expire", name, times=2))
    found = apply_delta(BASE, DELTA, machine.folder / "out", hub=options)
    assert found.content_digest == expected.content_digest


def test_streamed_bytes_that_are_others(machine: Machine, hub: HubServer, large_torch: Pair) -> None:
    """A damaged byte in a streamed torch file is detected by the file's own CRC-32 (3)."""
    serve(hub, large_torch)
    name, at = last_weights(large_torch[1])
    hub.faults.append(Fault("flip", name, repo=DELTA, at=at, times=FOREVER))
    with pytest.raises(MalformedInput, match="CRC-32"):
        apply_delta(BASE, DELTA, machine.folder / "out", hub=STREAM)
    assert not (machine.folder / "out").exists()


def test_a_small_file_that_is_another_while_streaming(machine: Machine, hub: HubServer, pair: Pair) -> None:
    """A small file is verified even when streaming."""
    serve(hub, pair)
    hub.faults.append(Fault("flip", "config.json", at=3, times=FOREVER))
    with refused(DamagedFile, problem="arrived damaged", expected=git_hash((pair[0] / "config.json").read_bytes())):
        apply_delta(BASE, DELTA, machine.folder / "out", hub=STREAM)


def test_a_malformed_file_is_malformed(machine: Machine, hub: HubServer, pair: Pair) -> None:
    """A malformed file that has the stated hash is reported as malformed (3), not as damaged."""
    folder = machine.folder / "broken"
    shutil.copytree(pair[1], folder)
    weights = folder / shard_of(folder)
    weights.write_bytes(b"\xff" * 1000)
    serve(hub, (pair[0], folder))
    with pytest.raises(MalformedInput):
        apply_delta(BASE, DELTA, machine.folder / "out")
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in machine.blobs(DELTA)


def test_other_commands_say_what_was_damaged(machine: Machine, hub: HubServer, large_torch: Pair) -> None:
    """A comparison does not restart: it reports the damaged file, and the next run is correct."""
    serve(hub, large_torch)
    name, at = last_weights(large_torch[0])
    hub.faults.append(Fault("flip", name, repo=BASE, at=at))
    with pytest.raises((Refetched, MalformedInput)) as caught:
        diff_checkpoints(BASE, large_torch[0])
    assert isinstance(caught.value, Refetched)
    assert diff_checkpoints(BASE, large_torch[0]).identical
