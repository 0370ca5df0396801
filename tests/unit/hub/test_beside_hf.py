"""The real ``hf`` in the same cache while a download of ours is live, and after one was killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.hub_checkpoint import BASE, NEEDED, ONE, PIECE, key, sent
from tests.support.hub_client import Machine, wait_for
from tests.support.hub_server import Fault, HubServer
from tests.support.limits import PATIENCE


@contextmanager
def half_done(machine: Machine, hub: HubServer, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a download; at the yield some of a file is on the disk, and the rest does not come until the faults are cleared."""
    hub.faults.append(Fault("stall", ONE, at=2 * PIECE + 5, on="files", seconds=600, times=1000))
    with machine.start("download", BASE, "--max-workers", "1") as process:
        marks = machine.repository(BASE) / "blobs" / f"{key(folder / ONE)}.deltaweights.pieces"
        wait_for(lambda: marks.is_file() and marks.read_bytes().count(b"\1") > 0, process)
        yield process


def assert_all_there(machine: Machine, folder: Path) -> None:
    """Assert that the snapshot is whole, and that nothing of a download is left."""
    (snapshot,) = (machine.repository(BASE) / "snapshots").iterdir()
    for name in NEEDED:
        assert (snapshot / name).read_bytes() == (folder / name).read_bytes()
    assert not [name for name in machine.blobs(BASE) if "deltaweights" in name]


def test_prune_while_a_download_is_live(machine: Machine, hub: HubServer, folder: Path) -> None:
    """``hf cache prune`` takes nothing that the download has: it ends well, and what had arrived is not fetched again."""
    with half_done(machine, hub, folder) as process:
        before = set(machine.blobs(BASE))
        done = machine.hf("cache", "prune", "--yes")
        assert done.returncode == 0, done.stderr
        assert before <= set(machine.blobs(BASE))
        assert process.poll() is None, "it ended before it could be disturbed"
        hub.faults.clear()
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out + err
    assert_all_there(machine, folder)
    assert machine.fetch(BASE, offline=True).fetched == 0


def test_prune_after_a_kill(machine: Machine, hub: HubServer, folder: Path) -> None:
    """After kill -9 and a prune, the same download goes on with the pieces that it had."""
    with half_done(machine, hub, folder) as process:
        process.kill()
        process.wait()
    done = machine.hf("cache", "prune", "--yes")
    assert done.returncode == 0, done.stderr
    hub.faults.clear()
    again = machine.fetch(BASE)
    assert again.fetched <= again.bytes - PIECE
    assert_all_there(machine, folder)


def test_hf_after_a_kill(machine: Machine, hub: HubServer, folder: Path) -> None:
    """After kill -9, ``hf download`` fetches all by its own rules; our next run uses that, and removes what the kill left."""
    with half_done(machine, hub, folder) as process:
        process.kill()
        process.wait()
    hub.faults.clear()
    done = machine.hf("download", BASE)
    assert done.returncode == 0, done.stderr
    assert [name for name in machine.blobs(BASE) if "deltaweights" in name], "the kill left nothing"
    before = sent(hub, ONE)
    assert machine.fetch(BASE).fetched == 0
    assert sent(hub, ONE) == before
    assert_all_there(machine, folder)
