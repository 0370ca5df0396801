"""The benchmark measures what it says: at toy size, every contestant runs, and the figures are those of real runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import PATIENCE

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"


def bench(folder: Path, *arguments: str) -> str:
    """Run the benchmark at toy size; return what it prints."""
    command = [sys.executable, str(SCRIPT), "--toy", "--layers", "2", "--rounds", "1", "--folder", str(folder)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_our_commands_are_measured(tmp_path: Path) -> None:
    """Each contestant of ours, and what it is compared with, runs as often as asked for, with seconds, memory and stages."""
    names = ["apply", "make", "copy+sha256", "copy", "verify", "verify --expect", "hashlib", "diff", "cmp"]
    runs = json.loads(bench(tmp_path, "--json", "--only", *names))
    assert list(runs) == names
    for name, (run,) in runs.items():
        assert 0 < run["seconds"] < 60, name
        assert 1 < run["peak_mb"] < 400, name
    for name in ("apply", "make"):
        stages = runs[name][0]["own"]
        assert 0 < stages["stream"] <= stages["total"] <= runs[name][0]["seconds"]


@pytest.mark.slow
def test_the_table_compares_with_whom_it_names(tmp_path: Path) -> None:
    """A line for each contestant, its ratio to another, and our stages; cold runs too, where the system can drop files."""
    cold = ["--cold"] if hasattr(os, "posix_fadvise") else []
    lines = bench(tmp_path, "--only", "apply", "copy+sha256", "verify", "hashlib", *cold).splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["apply", "copy+sha256", "verify", "hashlib"]
    assert lines[3].endswith(" apply")
    assert lines[4].endswith(" hashlib")
    assert lines[6].startswith("apply by stage, median s: start ")


@pytest.mark.slow
def test_downloads_and_merges_from_a_hub_are_measured(tmp_path: Path) -> None:
    """With ``--hub`` the pair is fetched, by ours and by ``hf``, and fetched and merged, from a Hub of this machine."""
    runs = json.loads(bench(tmp_path, "--json", "--hub"))
    assert list(runs) == ["download", "hf download", "apply from the Hub", "hf download, apply", "apply --stream"]
    assert all(0 < run["seconds"] < 60 for (run,) in runs.values())
    assert not list(tmp_path.rglob("cache"))


@pytest.mark.slow
def test_the_original_algorithm_runs(tmp_path: Path) -> None:
    """The original algorithm, by transformers, can be measured beside ours, on LLaMA's structure."""
    runs = json.loads(bench(tmp_path, "--json", "--only", "apply", "original"))
    assert runs["original"][0]["peak_mb"] > runs["apply"][0]["peak_mb"]


@pytest.mark.slow
def test_growth_is_measured(tmp_path: Path) -> None:
    """The table of growth has a line for each size, number of workers and kind of tensors."""
    lines = bench(tmp_path, "--growth").splitlines()
    assert len(lines) == 8
    assert any(line.startswith("4 GB, 10,000 tensors") for line in lines)
