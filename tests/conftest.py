"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from math import gcd
from pathlib import Path
from typing import Any

import pytest

from deltaweights.jobs.apply import apply_delta
from tests.support import hang
from tests.support.fork_server import heavy_server
from tests.support.fork_server import run as forked
from tests.support.killed_merges import Files, Pair, finish, make_large_pair
from tests.support.merging import files_of
from tests.support.pairs import make_pair

Run = Callable[..., subprocess.CompletedProcess[str]]

# A shell lets what it runs in the background ignore Ctrl-C, and children inherit it: the tests interrupt theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What is noted of verified files is not put into the home of whoever runs the tests, by any process that they start.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="deltaweights-state-")


@pytest.hookimpl(tryfirst=True)  # before -m picks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what the fast suite leaves out of tests with many alike cases; those it takes are spread over all parameters."""
    alike: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            alike.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in alike.values():
        (count,) = next(mark.args for mark in cases[0].iter_markers("sampled"))
        # Steps of the golden ratio: evenly spaced ones would take the same value of an inner parameter again and again.
        step = next(step for step in range(round(0.618 * len(cases)), 2 * len(cases) + 2) if gcd(step, len(cases)) == 1)
        taken = {number * step % len(cases) for number in range(count)}
        for number, item in enumerate(cases):
            if number not in taken:
                item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Leave what was imported out of all later garbage collections, which would go through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Remove what was noted; workers of xdist end without what ``atexit`` runs."""
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


DOCUMENT = (Path(__file__).parents[1] / "docs" / "bad-inputs.md").read_text()

ROWS = tuple(int(row) for row in re.findall(r"^\| (\d+) \|", DOCUMENT, re.MULTILINE))
"""Of the table in docs/bad-inputs.md."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many rows of the table of bad inputs were covered, when tests of it ran."""
    rows: dict[str, set[int]] = {}
    for outcome in ("passed", "failed", "skipped"):
        reports = terminalreporter.stats.get(outcome, [])
        found = (re.findall(r"row(\d+)", report.nodeid) for report in reports if "trust" in report.keywords)
        rows[outcome] = {int(row) for numbers in found for row in numbers}
    if any(rows.values()):
        covered = rows["passed"] - rows["failed"]
        missing = sorted(set(ROWS) - covered)
        names = f"; not covered here: {', '.join(map(str, missing))}" if missing else ""
        terminalreporter.write_line(f"table of bad inputs: {len(covered)} of {len(ROWS)} rows covered{names}")


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Say of a test that hangs also what the kernel knows of it."""
    return hang.set_timer(item, settings)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a LLaVA-Med-like base and delta, as sharded torch files, for tests that only read them."""
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def large_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair whose merge takes long enough to be interrupted, for tests that only read it."""
    return make_large_pair(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="session")
def uninterrupted(large_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return the files of an uninterrupted merge of the large pair."""
    target = tmp_path_factory.mktemp("uninterrupted") / "merged"
    apply_delta(*large_pair, target, max_shard_size="1MB")
    return files_of(target)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a tmpfs of so many megabytes at a folder of ``tmp_path``; skip where that is not allowed."""
    mounted: list[Path] = []

    def make(name: str, megabytes: int, option: str = "") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        options = f"size={megabytes}m{option}"
        done = finish(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)])
        if done.returncode and "remount" not in option:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(folder)
        return folder

    yield make
    for folder in set(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def run() -> Run:
    """Run ``deltaweights ARGUMENTS`` as a process of its own, as users do."""

    def run_command(
        *arguments: str | Path, cwd: Path | None = None, program: str = "deltaweights"
    ) -> subprocess.CompletedProcess[str]:
        entry = {"deltaweights": "main", "apply-delta": "apply_delta", "make-delta": "make_delta"}[program]
        how = ["-c", f"from deltaweights.cli import {entry}; {entry}()"]
        if program == "deltaweights":
            how = ["-m", "deltaweights"]
        server = heavy_server() if arguments[:1] in {("check",), ("try",)} else None
        return forked([sys.executable, *how, *arguments], cwd=cwd, env=os.environ | {"COLUMNS": "200"}, server=server)

    return run_command
