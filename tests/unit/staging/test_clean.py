"""``clean`` removes abandoned staging."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from deltaweights.staging.clean import clean
from deltaweights.staging.location import locate_target
from tests.support.killed_merges import (
    Pair,
    apply_command,
    finish,
    inodes_and_times,
    kill_in_the_middle,
    merge_small,
    names_in,
    small_pair,
)
from tests.support.merging import files_of
from tests.support.staged import interrupt_inside, make_staging, staged_swap, within


def test_clean_removes_what_a_killed_run_left(large_pair: Pair, tmp_path: Path) -> None:
    """``clean`` removes abandoned staging and nothing else, and says what it did."""
    target = tmp_path / "merged"
    kill_in_the_middle(apply_command(*large_pair, target), locate_target(target))
    done = finish([sys.executable, "-m", "deltaweights", "clean", str(target)])
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed {locate_target(target).root}" in done.stdout
    assert names_in(tmp_path) == []
    assert clean(target) == [f"nothing to clean for {target}"]


def test_clean_leaves_a_complete_target_alone(tmp_path: Path) -> None:
    """``clean`` on a published target changes nothing in it."""
    base, delta = small_pair(tmp_path)
    target = Path(merge_small(base, delta, tmp_path / "merged").target)
    marks = inodes_and_times(target)
    make_staging(locate_target(target))
    clean(target)
    assert inodes_and_times(target) == marks
    assert not locate_target(target).root.exists()


def test_clean_finishes_a_publication_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``clean`` after a death in the middle of moving files, or of a swap, leaves the complete new model."""
    base, delta = small_pair(tmp_path)
    expected = files_of(Path(merge_small(base, delta, tmp_path / "new").target))
    merge_small(*small_pair(tmp_path, 1), tmp_path / "old")
    new = Path(shutil.copytree(tmp_path / "new", tmp_path / "copy"))
    swapped, _, _ = staged_swap(tmp_path / "swapped", (tmp_path / "old", new), steps=1)
    assert clean(swapped.target)[0] == "finished a replacement that was cut off"
    assert files_of(swapped.target) == expected
    assert not swapped.root.exists()
    moved = within(tmp_path / "moved")
    interrupt_inside(moved, tmp_path / "new", 3)
    monkeypatch.chdir(moved.target)
    assert clean(moved.target)[0] == "finished a publication that was cut off"
    assert files_of(moved.target) == expected
    assert not moved.root.exists()
