"""Merges by processes that torchrun or accelerate started together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltaweights import ApplyResult
from deltaweights.staging.location import locate_target
from deltaweights.staging.lock import StagingLock
from tests.support.limits import PATIENCE
from tests.unit.cluster import SIZE, Pair, files_of


def launched(tiny: Pair, target: Path, *launcher: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a merge by processes that a launcher starts together."""
    arguments = [
        "--base",
        str(tiny[0]),
        "--delta",
        str(tiny[1]),
        "--target",
        str(target),
        "--max-shard-size",
        f"{SIZE}B",
    ]
    command = [sys.executable, "-m", *launcher, "-m", "deltaweights", "apply", *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")} | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [pytest.param(TORCHRUN, id="torchrun"), pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow)],
)
def test_launched_processes_share_the_shards(
    tiny: Pair, whole: tuple[Path, ApplyResult], tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    """Two processes of a launcher merge together what one does, and one of them says so, once."""
    done = launched(tiny, tmp_path / "out", *launcher)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(whole[0])
    assert done.stdout.count("content digest") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(tiny: Pair, tmp_path: Path) -> None:
    """When one process fails, its one line of error is shown, and all end at once, not when a timeout strikes."""
    with StagingLock(locate_target(tmp_path / "out")):
        began = time.monotonic()
        done = launched(tiny, tmp_path / "out", *TORCHRUN)
    assert done.returncode != 0
    assert "another run is writing to this folder" in done.stderr
    assert time.monotonic() - began < PATIENCE
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_launch_that_accelerate_does_not_see_is_refused(tiny: Pair, tmp_path: Path) -> None:
    """Where the launcher says two processes and accelerate sees another number, nothing is done: 2, in one line."""
    program = (
        "import accelerate\n"
        "class Alone:\n"
        "    num_processes, process_index, is_main_process = 1, 0, True\n"
        "    def __init__(self, **_): pass\n"
        "accelerate.PartialState = Alone\n"
        "from deltaweights.cli import main\n"
        "main()\n"
    )
    arguments = ["apply", "--base", str(tiny[0]), "--delta", str(tiny[1]), "--target", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    )
    assert done.returncode == 2, done.stderr
    assert "the launcher and accelerate disagree about the number of processes: found 1, expected 2" in done.stderr
    assert not (tmp_path / "out").exists()
