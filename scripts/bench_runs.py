"""Runs commands side by side, and tells how long they took.

Enters: contestants. Leaves: seconds, peak memory, and ratios within a round. Never: a verdict from a single run: the contestants
take turns, each starts after a ``sync``, and the ratio is taken round by round, since a shared machine drifts.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One run of one contestant: seconds of wall clock, peak memory in MB, and what it says of itself."""

    seconds: float
    peak_mb: float
    own: dict[str, float]


@dataclass(frozen=True)
class Contestant:
    """A command, what it reads, the folder that it writes, which is removed before each run, and whom to compare it with."""

    command: list[str]
    inputs: tuple[Path, ...]
    output: Path | None
    against: str = "apply"


def measure(contestant: Contestant, *, cold: bool) -> Run:
    """Run once from a clean output, after a ``sync``, with all inputs in the page cache, or with ``cold`` none of them."""
    if contestant.output is not None:
        shutil.rmtree(contestant.output, ignore_errors=True)
    os.sync()
    for path in contestant.inputs:
        for file in path.iterdir():  # a machine that is short of memory drops them between two runs
            (_drop if cold else _read)(file)
    began = time.monotonic()
    process = subprocess.Popen(contestant.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None  # noqa: S101  (PIPE was asked for)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if contestant.output is not None:
        shutil.rmtree(contestant.output, ignore_errors=True)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"bench: {' '.join(contestant.command[:4])} ... ended with {process.returncode}")
    own = json.loads(output).get("seconds", {}) if output.startswith(b"{") else {}
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, kilobytes on Linux
    return Run(seconds, usage.ru_maxrss * unit / 1e6, own)


def _read(file: Path) -> None:
    buffer = bytearray(1 << 24)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


def _drop(file: Path) -> None:
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(command: str, *arguments: object) -> list[str]:
    """Return a command line of ours that prints JSON."""
    return [sys.executable, "-m", "deltaweights", command, *map(str, arguments), "--json"]


def rounds(chosen: dict[str, Contestant], count: int, *, cold: bool) -> dict[str, list[Run]]:
    """Run all ``count`` times, in turns, forwards and backwards, after a round that does not count."""
    runs: dict[str, list[Run]] = {name: [] for name in chosen}
    for number in range(-1, count):
        for name in list(chosen) if number % 2 else reversed(list(chosen)):
            run = measure(chosen[name], cold=cold)
            if number >= 0:
                runs[name].append(run)
                print(f"round {number + 1}: {name:20} {run.seconds:7.2f} s {run.peak_mb:7.0f} MB", file=sys.stderr)
    return runs


def table(runs: dict[str, list[Run]], chosen: dict[str, Contestant], size: int) -> Iterator[str]:
    """Yield the lines of the table: medians, and the median of each round's ratio to the contestant to compare with."""
    count = len(next(iter(runs.values())))
    yield f"{size / 1e9:.2f} GB, {count} rounds; ratio: seconds by those of the contestant named, round by round, median"
    yield f"{'':16} {'median s':>8} {'min':>7} {'max':>7} {'GB/s':>6} {'peak MB':>8}  ratio"
    for name, of in runs.items():
        seconds = [run.seconds for run in of]
        middle = statistics.median(seconds)
        peak = max(run.peak_mb for run in of)
        against = chosen[name].against
        ratio = ""
        if against in runs and against != name:
            each = (one.seconds / other.seconds for one, other in zip(of, runs[against], strict=True))
            ratio = f"{statistics.median(each):5.2f} {against}"
        yield (
            f"{name:16} {middle:8.2f} {min(seconds):7.2f} {max(seconds):7.2f} {size / middle / 1e9:6.2f} {peak:8.0f}  {ratio}"
        )
    for name in ("apply", "make"):
        if runs.get(name):
            yield f"{name} by stage, median s: {_stages(runs[name])}"


def _stages(runs: list[Run]) -> str:
    stages = {stage: statistics.median(run.own[stage] for run in runs) for stage in runs[0].own}
    stages["start"] = statistics.median(run.seconds - run.own["total"] for run in runs)
    order = ("start", "prepare", "load arithmetic", "stream", "flush", "publish")
    return ", ".join(f"{stage} {stages[stage]:.2f}" for stage in order) + " (flush is part of stream)"
