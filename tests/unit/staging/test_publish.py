"""Publishing in one step or several, killed at each of them, and recovered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltaweights.errors import MalformedInput, TargetBusy
from deltaweights.manifest.records import INDEX, MANIFEST, SUMS
from deltaweights.manifest.verify import verify
from deltaweights.staging import publish as publishing
from deltaweights.staging.clean import clean
from deltaweights.staging.location import TargetLocation, locate_target
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.publish import publish
from tests.support.errors import refused
from tests.support.killed_merges import Files, Pair, finish, merge_small, names_in, small_pair
from tests.support.merging import files_of
from tests.support.staged import beside, interrupt_inside, make_staging, recovered, stage_result, staged_swap, within


def test_a_swap_that_had_not_begun_changes_nothing(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """With the journal written and nothing done, the old model stands, and the finished shards are kept."""
    location, old, new = staged_swap(tmp_path / "merged", results, steps=0)
    assert recovered(location) is None
    assert files_of(location.target) == old
    assert files_of(location.shards) == new


def test_a_swap_cut_off_between_its_two_steps_goes_on(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """Old model aside, new one not yet in place: recovery puts the new one in place."""
    location, _, new = staged_swap(tmp_path / "merged", results, steps=1)
    assert recovered(location) == "finished a replacement that was cut off"
    assert files_of(location.target) == new
    assert not location.root.exists()
    assert recovered(location) is None


def test_a_swap_cut_off_before_the_old_model_was_removed_is_finished(
    tmp_path: Path, results: tuple[Path, Path]
) -> None:
    """New model in place, old one still aside: recovery removes the old one."""
    location, _, new = staged_swap(tmp_path / "merged", results, steps=2)
    assert recovered(location) == "finished a replacement that was cut off"
    assert files_of(location.target) == new
    assert not location.root.exists()


def test_an_old_model_without_a_successor_comes_back(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """Old model aside and no new one anywhere: recovery puts the old one back."""
    location, old, _ = staged_swap(tmp_path / "merged", results, steps=1)
    shutil.rmtree(location.shards)
    assert recovered(location) == "put back what a replacement that was cut off had moved away"
    assert files_of(location.target) == old
    assert not location.root.exists()


def test_an_empty_folder_in_the_middle_of_a_swap_loses_no_model(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """When somebody makes an empty folder under the target's name after a cut-off swap, recovery still gives it a model."""
    location, _, new = staged_swap(tmp_path / "merged", results, steps=1)
    location.target.mkdir()
    recovered(location)
    assert files_of(location.target) == new


def test_foreign_files_in_the_middle_of_a_swap_lose_no_model(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """When somebody puts files under the target's name after a cut-off swap, they are refused, and both models are kept."""
    location, old, new = staged_swap(tmp_path / "merged", results, steps=1)
    location.target.mkdir()
    (location.target / "thesis.tex").write_text("years")
    with refused(TargetBusy, problem="something else appeared there during the run", where=location.target):
        clean(location.target)
    assert (files_of(location.root / "replaced"), files_of(location.shards)) == (old, new)
    assert names_in(location.target) == ["thesis.tex"]


def test_a_run_after_a_cut_off_swap_puts_it_right(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """The same command after a death between the two steps of a swap ends with the new model in place and nothing else."""
    location, _, new = staged_swap(tmp_path / "merged", results, steps=1)
    again = merge_small(tmp_path / "base2", tmp_path / "delta2", location.target, overwrite=True)
    assert again.status == "already complete"
    assert files_of(location.target) == new
    assert verify(location.target).ok
    assert not location.root.exists()


@pytest.mark.parametrize("folder", ["shards", "replaced"])
def test_a_swap_whose_folders_are_others_is_refused(tmp_path: Path, results: tuple[Path, Path], folder: str) -> None:
    """A folder that was put in the place of one that a journal names is neither removed nor published."""
    location, _, _ = staged_swap(tmp_path / "merged", results, steps=2 if folder == "replaced" else 1)
    shutil.rmtree(location.root / folder)
    (location.root / folder).mkdir()
    (location.root / folder / "thesis.tex").write_text("years")
    if folder == "shards":
        shutil.rmtree(location.root / "replaced")
    with pytest.raises((MalformedInput, TargetBusy)) as caught:
        clean(location.target)
    assert caught.value.found in {"thesis.tex", ", ".join(names_in(location.root))}
    assert names_in(location.root / folder) == ["thesis.tex"]


PUBLISHER = """
import json, os, signal, sys
from pathlib import Path
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.publish import publish
from deltaweights.util.open_folder import OpenFolder

def publish_and_die(target, root, inside, step, left, plan):
    if step == "two steps":  # as on a file system that cannot exchange
        OpenFolder.exchange = lambda *_: False

    def hook(event, arguments):
        nonlocal left
        if event in {"os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with StagingLock(TargetLocation(Path(target), Path(root), inside)) as lock:
        sys.addaudithook(hook)
        publish(lock.staging, plan, overwrite=True)

for line in sys.stdin:
    child = os.fork()
    if not child:
        publish_and_die(*json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Publishes in child processes, each of which is killed right before its N-th change of a name on the disk."""

Publisher = Callable[..., int]


@pytest.fixture(scope="module")
def publisher() -> Iterator[Publisher]:
    """Start a publisher; return a function that takes the arguments of one publication, and returns its exit code."""
    command = [sys.executable, "-c", PUBLISHER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def publish_and_die(location: TargetLocation, step: str, left: int, plan: str) -> int:
            arguments = [str(location.target), str(location.root), location.inside, step, left, plan]
            print(json.dumps(arguments), file=ask, flush=True)
            return int(answers.readline())

        yield publish_and_die
        ask.close()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("where", "step", "old"),
    [
        ("beside", "one step", False),
        ("beside", "one step", True),
        ("beside", "two steps", True),
        ("inside", "one step", False),
        ("inside", "one step", True),
    ],
)
def test_publishing_survives_a_kill_at_every_step(
    tmp_path: Path, results: tuple[Path, Path], publisher: Publisher, where: str, step: str, *, old: bool
) -> None:
    """Killed before any rename or removal, publishing leaves the old model or the new one, and recovery never a mixture."""
    models = {"old": files_of(results[0]), "new": files_of(results[1])}
    for left in range(100):
        target = tmp_path / str(left) / "merged"
        location = within(target) if where == "inside" else beside(target)
        target.parent.mkdir()
        if old:
            shutil.copytree(results[0], target)
        elif where == "inside":
            target.mkdir()
        plan = stage_result(location, shutil.copytree(results[1], tmp_path / "copy"))
        code = publisher(location, step, left, plan)
        assert code in {0, -signal.SIGKILL}
        if where == "beside" and target.exists():
            assert files_of(target) in models.values()
        elif where == "inside" and (target / SUMS).exists():
            assert files_inside(target) in models.values(), "a mixture that looks complete"
        recovered(location)
        found = files_inside(target) if target.exists() else None
        if location.shards.exists():  # killed before anything was done
            assert found == (models["old"] if old else {} if where == "inside" else None)
        else:
            assert found == models["new"], f"killed at {left}"
        if code == 0:
            break
    assert left >= 2
    assert code == 0
    assert not location.root.exists()


def files_inside(target: Path) -> Files:
    """Return the files of a folder, without staging inside it."""
    return {path.name: path.read_bytes() for path in target.iterdir() if path.name != ".deltaweights"}


DIE_AFTER_THE_EXCHANGE = """
import os, signal, sys
from deltaweights.jobs.apply import apply_delta
from deltaweights.util.open_folder import OpenFolder

def hook(event, arguments):
    if event == "os.remove":  # what publishing does next: the old model, now in staging, is removed
        os.kill(os.getpid(), signal.SIGKILL)

whole = OpenFolder.exchange

def exchange(*arguments):
    assert whole(*arguments)
    sys.addaudithook(hook)
    return True

OpenFolder.exchange = exchange
apply_delta(*sys.argv[1:4], max_shard_size=2500, overwrite=True)
"""


@pytest.fixture
def exchanged(tmp_path: Path) -> tuple[TargetLocation, Pair, dict[str, bytes]]:
    """Kill an overwriting run right after the exchange; return its location, its pair, and the files it should give."""
    old, new = small_pair(tmp_path, 1), small_pair(tmp_path, 2)
    location = locate_target(tmp_path / "merged")
    merge_small(*old, location.target)
    expected = files_of(Path(merge_small(*new, tmp_path / "expected").target))
    command = [sys.executable, "-c", DIE_AFTER_THE_EXCHANGE, str(new[0]), str(new[1]), str(location.target)]
    assert finish(command).returncode == -signal.SIGKILL
    assert files_of(location.target) == expected
    assert set(names_in(location.shards)) == set(expected), "the old model is where the new one was built"
    return location, new, expected


def test_the_old_model_in_staging_is_never_taken_for_finished_shards(
    exchanged: tuple[TargetLocation, Pair, dict[str, bytes]],
) -> None:
    """When the target is deleted after a death right after the exchange, the next run makes the new model from its inputs."""
    location, new, expected = exchanged
    shutil.rmtree(location.target)
    assert merge_small(*new, location.target).status == "merged"
    assert files_of(location.target) == expected
    assert not location.root.exists()


def test_the_next_run_removes_the_old_model_from_staging(
    exchanged: tuple[TargetLocation, Pair, dict[str, bytes]],
) -> None:
    """After a death right after the exchange, the same command finds the target complete and removes what is left beside it."""
    location, new, expected = exchanged
    assert merge_small(*new, location.target, overwrite=True).status == "already complete"
    assert files_of(location.target) == expected
    assert not location.root.exists()


def test_inside_the_index_manifest_and_sums_come_last(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """When files are moved one by one, those by which a loader or a check takes a folder for whole are moved last."""
    location = within(tmp_path / "merged")
    expected = files_of(results[1])
    plan = stage_result(location, results[1])
    moved: list[str] = []
    recording = False

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if recording and event == "os.link":
            moved.append(str(arguments[1]))

    sys.addaudithook(hook)  # it can never be removed, only silenced
    with StagingLock(location) as lock:
        recording = True
        publish(lock.staging, plan, overwrite=False)
        recording = False
    assert sorted(moved) == sorted(expected)
    assert moved[-3:] == [INDEX, MANIFEST, SUMS]
    assert publishing.MOVED_LAST == (INDEX, "pytorch_model.bin.index.json", MANIFEST, SUMS)
    assert files_of(location.target) == expected


@pytest.mark.parametrize("moved", [0, 1, 3, 9])
def test_an_interrupted_publication_inside_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """With the journal written and some files moved, or all, the same command ends with the complete result and no staging."""
    base, delta = small_pair(tmp_path)
    target = tmp_path / "merged"
    target.mkdir()
    monkeypatch.chdir(target)
    expected = files_of(Path(merge_small(base, delta, tmp_path / "expected").target))
    location = within(target)
    interrupt_inside(location, tmp_path / "expected", moved)
    again = merge_small(base, delta, target)
    assert again.status == "already complete"
    assert files_of(target) == expected
    assert verify(target).ok


def test_a_death_while_staging_inside_is_removed_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all files in place, the journal gone and staging not yet, the result verifies and the same command succeeds."""
    base, delta = small_pair(tmp_path)
    target = tmp_path / "merged"
    merge_small(base, delta, target)
    (make_staging(within(target)).root / "lock").touch()
    monkeypatch.chdir(target)
    assert verify(target).ok
    assert merge_small(base, delta, target).status == "already complete"
    assert not within(target).root.exists()


@pytest.mark.trust
@pytest.mark.parametrize(("umask", "of_files", "of_folder"), [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_row71_the_umask_is_honoured(tmp_path: Path, umask: int, of_files: int, of_folder: int) -> None:
    """Folder and files of the target have the permissions that the umask leaves, not those of a temporary file."""
    base, delta = small_pair(tmp_path)
    before = os.umask(umask)
    try:
        merge_small(base, delta, tmp_path / "merged")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "merged").stat().st_mode) == of_folder
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "merged").iterdir()} == {of_files}
