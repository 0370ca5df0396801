"""Downloads verify what arrives, resume what was interrupted, and share files between processes."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils.sha import git_hash

from deltaweights.errors import InputOutputError
from deltaweights.hub.connections import CONNECTIONS
from deltaweights.hub.downloads import MAX_RESTARTS
from deltaweights.hub.piece_map import PieceMap
from deltaweights.hub.transfer import DamagedFile
from tests.support.errors import refused
from tests.support.hub_checkpoint import (
    BASE,
    FOREVER,
    INDEX,
    ONE,
    PIECE,
    TWO,
    assert_whole,
    key,
    sent,
    snapshot_file,
)
from tests.support.hub_client import Machine, wait_for
from tests.support.hub_server import Fault, HubServer
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.params import few


@pytest.mark.parametrize("name", [ONE, "config.json", "tokenizer.model"])
def test_a_flipped_byte(machine: Machine, hub: HubServer, folder: Path, name: str) -> None:
    """A file that arrives with a flipped byte is reported with both hashes, and downloaded again."""
    hub.faults.append(Fault("flip", name, at=900))
    commit = machine.fetch(BASE).commit
    assert_whole(machine, folder, commit)
    content = bytearray((folder / name).read_bytes())
    content[900] ^= 1
    found = git_hash(bytes(content)) if name == "config.json" else hashlib.sha256(content).hexdigest()
    where = snapshot_file(machine, commit, name)
    warning = f"the download has hash {found}, the Hub states {key(folder / name)}: downloading it again"
    assert machine.said.warnings == [f"{where}: {warning}"]
    size = (folder / name).stat().st_size
    assert 2 * size <= sent(hub, name) < 2 * size + 2000


@pytest.mark.parametrize("name", [ONE, "config.json"])
def test_flipped_twice(machine: Machine, hub: HubServer, folder: Path, name: str) -> None:
    """A file that arrives damaged twice ends the download; nothing of it is kept, unlike the other files."""
    hub.faults.append(Fault("flip", name, at=900, times=2))
    content = bytearray((folder / name).read_bytes())
    content[900] ^= 1
    found = git_hash(bytes(content)) if name == "config.json" else hashlib.sha256(content).hexdigest()
    where, stated = snapshot_file(machine, hub.push(BASE, folder), name), key(folder / name)
    with refused(DamagedFile, where=where, found=f"hash {found}", expected=stated):
        machine.fetch(BASE)
    assert not [blob for blob in machine.blobs(BASE) if blob.startswith(stated)]
    assert not where.exists()
    size = (folder / name).stat().st_size
    assert 2 * size <= sent(hub, name) < 2 * size + 2000
    assert_whole(machine, folder, machine.fetch(BASE).commit)


def test_a_stated_hash_that_is_none_of_the_file(machine: Machine, hub: HubServer, folder: Path) -> None:
    """A file whose hash differs from the one that the Hub states is never published."""
    hub.faults.append(Fault("hash", ONE))
    with pytest.raises(DamagedFile):
        machine.fetch(BASE)
    assert not snapshot_file(machine, hub.push(BASE, folder), ONE).exists()
    assert not [blob for blob in machine.blobs(BASE) if blob[:60] == key(folder / ONE)[:60]]


def test_no_ranges_and_always_dropped(machine: Machine, hub: HubServer, folder: Path) -> None:
    """A file that always breaks off, from a server without ranges, is abandoned after some restarts."""
    hub.faults += [Fault("no-range", ONE, times=FOREVER), Fault("drop", ONE, at=2_000_000, times=FOREVER)]
    with refused(InputOutputError, where=ONE, problem="the server does not serve ranges", remedy="try again later"):
        machine.fetch(BASE)
    begun = sum(request.file.endswith(ONE) and request.host == "files" for request in hub.requests)
    assert MAX_RESTARTS < begun <= 2 * (MAX_RESTARTS + 2)


def test_no_ranges_found_out_by_all_connections(
    machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several connections that find out at once that there are no ranges do not use up the restarts."""
    monkeypatch.setattr(PieceMap.next_request, "__defaults__", (PIECE,))
    blob = machine.folder / "model.safetensors"
    blob.write_bytes(np.random.default_rng(6).bytes((CONNECTIONS + MAX_RESTARTS) * PIECE))
    hub.push("acme/large", {"model.safetensors": blob})
    hub.faults += [Fault("no-range", repo="acme/large", times=FOREVER), Fault("late", on="files", seconds=0.2, times=8)]
    hub.faults.append(Fault("drop", repo="acme/large", at=10 * PIECE, times=MAX_RESTARTS))
    found = machine.fetch("acme/large")
    assert (Path(found.path) / "model.safetensors").read_bytes() == blob.read_bytes()


@pytest.fixture
def large(tmp_path: Path) -> dict[str, Path]:
    """Make the files of a repository that takes a while."""
    content, files = np.random.default_rng(7).bytes(8 * PIECE), {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        files[name] = tmp_path / name
        files[name].write_bytes(content[number:])
    files[INDEX] = tmp_path / INDEX
    files[INDEX].write_text(json.dumps({"metadata": {}, "weight_map": {"a": ONE, "b": TWO}}))
    return files


SLOW = 6e6
"""Bytes per second."""


def weights_sent(hub: HubServer) -> int:
    return sent(hub, ONE) + sent(hub, TWO)


GO_ON = "run the same command again to continue"
KEPT = re.compile(
    rf"deltaweights: error: (interrupted|terminated); ([\d.]+) [kM]B of ([\d.]+) MB fetched and kept; {GO_ON}\n"
)


def interrupted(machine: Machine, hub: HubServer, after: int, number: signal.Signals) -> tuple[int, float, str]:
    """Begin a download and send it a signal when so many bytes were sent; return how it ended, after how long, and its words."""
    with machine.start("download", BASE, "-q") as process:
        wait_for(lambda: weights_sent(hub) > after, process)
        process.send_signal(number)
        began = time.monotonic()
        _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, time.monotonic() - began, err


@pytest.mark.parametrize(
    "number", few([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], 1), ids=["kill -9", "Ctrl-C", "kill"]
)
def test_what_is_interrupted_goes_on(machine: Machine, large: dict[str, Path], number: signal.Signals) -> None:
    """An interrupted download ends at once, and is resumed and verified by the next run."""
    with HubServer({BASE: large}, rate=SLOW) as hub:
        machine.turn_to(hub)
        code, seconds, err = interrupted(machine, hub, 8 * PIECE, number)
    if number == signal.SIGKILL:
        assert code == -number
    else:
        words = "interrupted" if number == signal.SIGINT else "terminated"
        said = KEPT.fullmatch(err)
        assert code == 128 + number
        assert said is not None, err
        assert said[1] == words
        total = sum(path.stat().st_size for path in large.values()) / 1e6
        assert float(said[2]) * 1e6 >= 7 * PIECE
        assert float(said[3]) == pytest.approx(total, rel=0.01)
        assert seconds < AT_ONCE
    assert not {key(large[name]) for name in (ONE, TWO)} & set(machine.blobs(BASE))
    with HubServer({BASE: large}) as hub:
        machine.turn_to(hub)
        done = machine.run("download", BASE, "-q")
        assert (done.returncode, done.stderr) == (0, "")
        commit = hub.push(BASE, large)
        assert weights_sent(hub) < (16 - 8 + 4) * PIECE
    for name, path in large.items():
        assert snapshot_file(machine, commit, name).read_bytes() == path.read_bytes()
    assert sorted(machine.blobs(BASE)) == sorted(map(key, large.values()))


def test_ctrl_c_while_nothing_comes(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the process at once even while all connections are stalled."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", str(3 * AT_ONCE))
    hub.faults += [Fault("stall", name, at=1_000_000, seconds=3 * AT_ONCE) for name in (ONE, TWO)]
    code, seconds, err = interrupted(machine, hub, 1_990_000, signal.SIGINT)
    said = KEPT.fullmatch(err)
    assert code == 130
    assert said is not None, err
    assert seconds < AT_ONCE


def test_ctrl_c_while_the_hub_is_silent(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the wait for the first response, and the wait after a 429."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", str(3 * AT_ONCE))
    for fault in (
        Fault("late", on="api", seconds=3 * AT_ONCE),
        Fault("status", on="api", status=429, headers={"Retry-After": str(3 * AT_ONCE)}),
    ):
        hub.faults[:] = [fault]
        with machine.start("download", BASE, "-q") as process:
            wait_for(lambda: fault.served > 0)  # noqa: B023  (called at once)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (130, f"deltaweights: error: interrupted; {GO_ON}\n")
        assert time.monotonic() - began < AT_ONCE


def test_two_processes_at_once(machine: Machine, large: dict[str, Path]) -> None:
    """Two simultaneous downloads of a repository fetch each byte about once, and both succeed."""
    with HubServer({BASE: large}, rate=2 * SLOW) as hub:
        machine.turn_to(hub)
        with machine.start("download", BASE) as one, machine.start("download", BASE) as other:
            errs = [process.communicate(timeout=PATIENCE)[1] for process in (one, other)]
        assert (one.returncode, other.returncode) == (0, 0), errs
        total = sum(path.stat().st_size for path in large.values())
        assert weights_sent(hub) < 1.1 * total
    assert sum("another process is fetching" in err for err in errs) == 1
    assert sorted(machine.blobs(BASE)) == sorted(map(key, large.values()))


def until(words: str, lines: Iterable[str]) -> str:
    """Return what is said up to the first line with these words."""
    said = ""
    for line in lines:
        said += line
        if words in line:
            break
    return said


@pytest.mark.slow
def test_what_another_process_gave_up_is_taken_over(machine: Machine, large: dict[str, Path]) -> None:
    """When the process that downloads a file is killed, one that waits for it resumes the download."""
    with HubServer({BASE: large}, rate=SLOW) as hub:
        machine.turn_to(hub)
        with machine.start("download", BASE) as one:
            wait_for(lambda: weights_sent(hub) > 12 * PIECE, one)
            one.send_signal(signal.SIGSTOP)  # it keeps the files, however long the other takes to begin
            with machine.start("download", BASE) as other:
                assert other.stderr is not None
                said = iter(other.stderr.readline, "")
                err = until("another process is fetching", said)
                one.kill()
                one.communicate()
                err += other.communicate(timeout=PATIENCE)[1]
        assert other.returncode == 0, err
        assert "another process is fetching" in err
        assert weights_sent(hub) < (12 + 12) * PIECE  # 16, and up to 4 on their way to who was stopped
    assert sorted(machine.blobs(BASE)) == sorted(map(key, large.values()))
