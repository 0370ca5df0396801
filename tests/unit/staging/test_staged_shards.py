"""Which finished shards of a killed or interrupted run are reused.

The runs are real processes, and are killed from outside.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.location import TargetLocation, locate_target
from deltaweights.util.text import finished_of
from tests.support.killed_merges import (
    SHARDS,
    Pair,
    apply_command,
    caught_in_the_middle,
    finish,
    finished_shards,
    inodes_and_times,
    kill_in_the_middle,
    large_part,
    merge_small,
    names_in,
)
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.merging import files_of
from tests.support.pairs import load, reference, same_bits
from tests.support.reports import RecordingReport


@pytest.mark.trust
def test_row66_a_killed_run_is_finished_by_the_same_command(
    large_pair: Pair, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """After kill -9 nothing has the target's name; the same command reuses the finished shards and gives the same bytes."""
    target = tmp_path / "merged"
    command = apply_command(*large_pair, target)
    finished = kill_in_the_middle(command, locate_target(target))
    assert not target.exists()
    again = finish(command)
    assert again.returncode == 0, again.stderr
    assert f"{finished_of(len(finished), SHARDS, 'shard')} already" in again.stderr
    assert files_of(target) == uninterrupted
    assert finished.items() <= inodes_and_times(target).items()
    assert names_in(tmp_path) == ["merged"]


def test_another_base_of_the_same_shape_reuses_nothing(large_pair: Pair, tmp_path: Path) -> None:
    """Staging of a killed run with one base is not taken for that of another base with the same names and shapes."""
    target = tmp_path / "merged"
    finished = kill_in_the_middle(apply_command(*large_pair, target), locate_target(target))
    other = large_part(tmp_path / "other", {name: tensor.flip(0) for name, tensor in load(large_pair[0]).items()})
    notes = RecordingReport()
    apply_delta(other, large_pair[1], target, max_shard_size="1MB", allow_unproved_base=True, report=notes)
    assert "staging held another plan (other inputs or options): it was discarded" in notes.notes
    assert not any("finished already" in note for note in notes.notes)
    assert same_bits(load(target), reference(load(other), load(large_pair[1])))
    assert not set(finished.values()) & set(inodes_and_times(target).values())


@pytest.mark.trust
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_row67_an_interrupted_run_ends_at_once_and_tidily(
    large_pair: Pair, uninterrupted: dict[str, bytes], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """On SIGTERM and SIGINT a run ends at once with one line; finished shards stay, unfinished ones do not."""
    target = tmp_path / "merged"
    command = apply_command(*large_pair, target, "--quiet")
    with caught_in_the_middle(command, locate_target(target)) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        stdout, stderr = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - began < AT_ONCE
    assert (process.returncode, stdout) == (code, "")
    assert stderr.startswith("deltaweights: error: ")
    assert stderr.count("\n") == 1
    assert not target.exists()
    staged = inodes_and_times(locate_target(target).shards)
    assert set(staged) == finished_shards(locate_target(target))
    assert 0 < len(staged) < SHARDS
    assert finish(command).returncode == 0
    assert files_of(target) == uninterrupted
    assert staged.items() <= inodes_and_times(target).items()


def test_staging_of_another_plan_is_discarded(
    staged: tuple[TargetLocation, Pair, dict[str, bytes]], tmp_path: Path
) -> None:
    """What is left of a run with other options is removed: its shards, its fragments, and whatever lay between them."""
    location, pair, _ = staged
    (location.shards / "stray").write_text("?")
    notes = RecordingReport()
    merge_small(*pair, location.target, dtype="float32", report=notes)
    assert "staging held another plan (other inputs or options): it was discarded" in notes.notes
    expected = merge_small(*pair, tmp_path / "of float32", dtype="float32")
    assert files_of(location.target) == files_of(Path(expected.target))
    assert not location.root.exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("harm", ["cut", "link", "fragment of another file", "fragment that is no JSON", "no fragment"])
def test_only_whole_shards_with_their_own_fragment_are_reused(
    staged: tuple[TargetLocation, Pair, dict[str, bytes]], tmp_path: Path, harm: str
) -> None:
    """A staged shard that was cut, swapped for a link, or lacks a fragment of its own is made again, and no other is."""
    location, pair, expected = staged
    marks = inodes_and_times(location.shards)
    name, other = sorted(marks)[:2]
    shard, fragment = location.shards / name, location.fragments / f"{name}.json"
    (location.shards / "stray").write_text("?")
    if harm == "cut":
        os.truncate(shard, shard.stat().st_size - 1)
    elif harm == "link":
        shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(tmp_path / "elsewhere")
    elif harm == "fragment of another file":
        fragment.write_bytes((location.fragments / f"{other}.json").read_bytes())
    elif harm == "fragment that is no JSON":
        fragment.write_text("{")
    else:
        fragment.unlink()
    merge_small(*pair, location.target)
    assert files_of(location.target) == expected
    assert not (location.target / name).is_symlink()
    found = inodes_and_times(location.target)
    assert [shard for shard, mark in marks.items() if found[shard] != mark] == [name]
