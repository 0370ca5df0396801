"""Merges that run as processes, which tests interrupt, kill and compare."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.location import TargetLocation
from tests.support.limits import PATIENCE
from tests.support.pairs import base_tensors, delta_tensors, save

SHARDS = 40
"""Of the large pair, at one megabyte each."""


Pair = tuple[Path, Path]


Files = dict[str, bytes]


def make_large_pair(folder: Path) -> Pair:
    """Make a pair of 80 MB whose merge takes 40 shards, so that there is time to do something to it."""
    generator = torch.Generator().manual_seed(1)
    shape = (500, 1000)
    base = {f"model.layers.{n}.weight": torch.randn(shape, generator=generator).half() for n in range(SHARDS)}
    step = torch.randn(shape, generator=generator) * 0.02
    delta = {name: (tensor.float() + step).half() - tensor for name, tensor in base.items()}
    return large_part(folder / "base", base), large_part(folder / "delta", delta)


def large_part(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint of ``SHARDS`` tensors of a megabyte."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(f'{{"part": "{folder.name}"}}')
    return folder


def apply_command(base: Path, delta: Path, target: Path | str, *more: str) -> list[str]:
    """Return the command line of a merge in shards of a megabyte."""
    places = ["--base", str(base), "--delta", str(delta), "--target", str(target)]
    return [sys.executable, "-m", "deltaweights", "apply", *places, "--max-shard-size", "1MB", *more]


def finish(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)  # type: ignore[call-overload,no-any-return]


def names_in(folder: Path) -> list[str]:
    """Return the names of what is in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())


def inodes_and_times(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what shows whether a file was written again: inode and time of the last change of its contents."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@contextlib.contextmanager
def caught_in_the_middle(
    command: list[str], location: TargetLocation, **options: object
) -> Iterator[subprocess.Popen[str]]:
    """Start a merge, and stop it (SIGSTOP) when some shards are finished and others are not."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + PATIENCE
        while not finished_shards(location):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert 0 < len(finished_shards(location)) < SHARDS
        yield process
    finally:
        process.kill()
        process.communicate()


def finished_shards(location: TargetLocation) -> set[str]:
    """Return the names of the shards that have a fragment."""
    return {path.stem for path in location.fragments.glob("*.json")} if location.fragments.exists() else set()


def kill_in_the_middle(command: list[str], location: TargetLocation) -> dict[str, tuple[int, int]]:
    """Kill a merge (SIGKILL) in the middle; return the marks of the shards that it had finished."""
    with caught_in_the_middle(command, location) as process:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    return {name: mark for name, mark in inodes_and_times(location.shards).items() if name in finished_shards(location)}


def small_pair(folder: Path, seed: int = 0) -> Pair:
    """Write a small pair with several shards' worth of tensors."""
    base = base_tensors(layers=1, vocabulary=20, hidden=16, seed=seed)
    return save(base, folder / f"base{seed}", "safetensors"), save(
        delta_tensors(base), folder / f"delta{seed}", "safetensors"
    )


merge_small = partial(apply_delta, max_shard_size=2500, workers=2)
