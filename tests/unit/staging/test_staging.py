"""Killed, interrupted, crowded and starved runs: the target is whole or absent, and the next run makes use of what is there.

The processes here are real: they are killed, stopped, limited and starved from outside.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, TargetBusy
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.manifest import INDEX, MANIFEST, SUMS
from deltaweights.manifest.verify import verify
from deltaweights.report import Report
from deltaweights.staging import publish as publishing
from deltaweights.staging.clean import clean
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.place import Place, locate
from deltaweights.staging.publish import publish
from deltaweights.util.open_folder import OpenFolder
from tests.support.fork_server import run as forked
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.pairs import base_tensors, delta_tensors, load, reference, same_bits, save
from tests.support.staged import beside, make_staging, moves, recovered, stage_result, within, write_journal

SHARDS = 40
"""Of the large pair, at one megabyte each."""

Pair = tuple[Path, Path]
Files = dict[str, bytes]


def apply_command(base: Path, delta: Path, target: Path | str, *more: str) -> list[str]:
    """Return the command line of a merge in shards of a megabyte."""
    places = ["--base", str(base), "--delta", str(delta), "--target", str(target)]
    return [sys.executable, "-m", "deltaweights", "apply", *places, "--max-shard-size", "1MB", *more]


def finish(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return forked(command, **options)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a pair of 80 MB whose merge takes 40 shards, so that there is time to do something to it."""
    folder = tmp_path_factory.mktemp("large")
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


@pytest.fixture(scope="module")
def uninterrupted(large: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a merge of the large pair that nothing happened to."""
    target = tmp_path_factory.mktemp("uninterrupted") / "merged"
    apply_delta(*large, target, max_shard_size="1MB")
    return files_of(target)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names_in(folder: Path) -> list[str]:
    """Return the names of what is in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())


def marks_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what shows whether a file was written again: inode and time of the last change of its contents."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@contextlib.contextmanager
def caught_in_the_middle(command: list[str], place: Place, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Start a merge, and stop it (SIGSTOP) when some shards are finished and others are not."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + PATIENCE
        while not finished_shards(place):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert 0 < len(finished_shards(place)) < SHARDS
        yield process
    finally:
        process.kill()
        process.communicate()


def finished_shards(place: Place) -> set[str]:
    """Return the names of the shards that have a fragment."""
    return {path.stem for path in place.fragments.glob("*.json")} if place.fragments.exists() else set()


def kill_in_the_middle(command: list[str], place: Place) -> dict[str, tuple[int, int]]:
    """Kill a merge (SIGKILL) in the middle; return the marks of the shards that it had finished."""
    with caught_in_the_middle(command, place) as process:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    return {name: mark for name, mark in marks_of(place.shards).items() if name in finished_shards(place)}


def small_pair(folder: Path, seed: int = 0) -> Pair:
    """Write a small pair with several shards' worth of tensors."""
    base = base_tensors(layers=1, vocabulary=20, hidden=16, seed=seed)
    return save(base, folder / f"base{seed}", "safetensors"), save(
        delta_tensors(base), folder / f"delta{seed}", "safetensors"
    )


merge_small = partial(apply_delta, max_shard_size=2500, workers=2)


class Notes(Report):
    """A report that keeps its remarks."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.texts.append(text)


# Killed and interrupted.


@pytest.mark.trust
def test_row66_a_killed_run_is_finished_by_the_same_command(
    large: Pair, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """After kill -9 nothing has the target's name; the same command reuses the finished shards and gives the same bytes."""
    target = tmp_path / "merged"
    command = apply_command(*large, target)
    finished = kill_in_the_middle(command, locate(target))
    assert not target.exists()
    again = finish(command)
    assert again.returncode == 0, again.stderr
    assert f"{len(finished)} of {SHARDS} shards are finished already" in again.stderr
    assert files_of(target) == uninterrupted
    assert finished.items() <= marks_of(target).items()
    assert names_in(tmp_path) == ["merged"]


def test_another_base_of_the_same_shape_reuses_nothing(large: Pair, tmp_path: Path) -> None:
    """Staging of a killed run with one base is not taken for that of another base with the same names and shapes."""
    target = tmp_path / "merged"
    finished = kill_in_the_middle(apply_command(*large, target), locate(target))
    other = large_part(tmp_path / "other", {name: tensor.flip(0) for name, tensor in load(large[0]).items()})
    notes = Notes()
    apply_delta(other, large[1], target, max_shard_size="1MB", report=notes)
    assert "staging held another plan (other inputs or options): it was discarded" in notes.texts
    assert not any("finished already" in note for note in notes.texts)
    assert same_bits(load(target), reference(load(other), load(large[1])))
    assert not set(finished.values()) & set(marks_of(target).values())


@pytest.mark.trust
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_row67_an_interrupted_run_ends_at_once_and_tidily(
    large: Pair, uninterrupted: dict[str, bytes], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """On SIGTERM and SIGINT a run ends at once with one line; finished shards stay, unfinished ones do not."""
    target = tmp_path / "merged"
    command = apply_command(*large, target, "--quiet")
    with caught_in_the_middle(command, locate(target)) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        stdout, stderr = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - began < AT_ONCE
    assert (process.returncode, stdout) == (code, "")
    assert stderr.startswith("deltaweights: error: ")
    assert stderr.count("\n") == 1
    assert not target.exists()
    staged = marks_of(locate(target).shards)
    assert set(staged) == finished_shards(locate(target))
    assert 0 < len(staged) < SHARDS
    assert finish(command).returncode == 0
    assert files_of(target) == uninterrupted
    assert staged.items() <= marks_of(target).items()


# Two runs, and targets that are there.


@pytest.mark.trust
def test_row69_a_second_run_on_the_same_target_is_refused_while_the_first_lives(
    large: Pair, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """While a run works on a target, another run and a clean-up end with 7 and one line, and the first finishes unharmed."""
    target = tmp_path / "merged"
    with caught_in_the_middle(apply_command(*large, target), locate(target)) as process:
        second = finish(apply_command(*large, target, "--quiet"))
        cleaning = finish([sys.executable, "-m", "deltaweights", "clean", str(target)])
        with pytest.raises(TargetBusy) as caught:
            apply_delta(*large, target, max_shard_size="1MB", overwrite=True)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=PATIENCE) == 0
    for refused in (second, cleaning):
        assert refused.returncode == caught.value.exit_code == 7
        assert refused.stderr.count("\n") == 1
        assert "another run is writing to this folder" in refused.stderr
    assert files_of(target) == uninterrupted


HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_lasts_as_long_as_the_process_that_holds_it(tmp_path: Path) -> None:
    """A lock that another process holds is respected; once that process is killed, its lock file is no obstacle."""
    base, delta = small_pair(tmp_path)
    place = make_staging(locate(tmp_path / "merged"))
    command = [sys.executable, "-c", HOLD, str(place.root / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TargetBusy, match="another run is writing to this folder"):
            merge_small(base, delta, place.target)
        with pytest.raises(TargetBusy):
            clean(place.target)
        holder.kill()
    assert (place.root / "lock").exists()
    assert merge_small(base, delta, place.target).status == "merged"
    assert not place.root.exists()


@pytest.mark.trust
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_row69_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where nothing can be locked, as on some network file systems, that is said once, and the result is the same."""
    base, delta = small_pair(tmp_path)
    expected = files_of(Path(merge_small(base, delta, tmp_path / "expected").target))

    def flock(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    notes = Notes()
    target = Path(merge_small(base, delta, tmp_path / "merged", report=notes).target)
    said = "this file system has no locks: make sure that no other run writes to this folder"
    assert notes.texts.count(said) == 1
    assert files_of(target) == expected
    assert not locate(target).root.exists()


def test_the_lock_is_taken_anew_when_its_file_was_removed(tmp_path: Path) -> None:
    """A lock on a file that an ending run has unlinked in between counts for nothing: two runs never hold it together."""
    place = locate(tmp_path / "merged")
    with StagingLock(place):
        (place.root / "lock").unlink()
        with StagingLock(place), pytest.raises(TargetBusy):
            StagingLock(place)


def test_a_complete_target_is_left_as_it_is(tmp_path: Path) -> None:
    """The same call again says "already complete", with the same digests, and writes no file of the target."""
    base, delta = small_pair(tmp_path)
    first = merge_small(base, delta, tmp_path / "merged")
    marks = marks_of(tmp_path / "merged")
    for options in ({}, {"overwrite": True}, {"workers": 5, "hash_inputs": True}):
        again = merge_small(base, delta, tmp_path / "merged", **options)
        assert (first.status, again.status) == ("merged", "already complete")
        assert again.content_digest == first.content_digest
        assert again.manifest_sha256 == first.manifest_sha256
        assert marks_of(tmp_path / "merged") == marks
        assert not locate(tmp_path / "merged").root.exists()


def test_the_command_says_already_complete(pair: Pair, tmp_path: Path) -> None:
    """On the command line a complete target is success."""
    apply_delta(*pair, tmp_path / "merged", max_shard_size="1MB")
    again = finish(apply_command(*pair, tmp_path / "merged", "--json"))
    assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "already complete")


@pytest.mark.parametrize("damage", ["flip", "remove", "add"])
def test_a_damaged_result_is_not_taken_for_complete(tmp_path: Path, damage: str) -> None:
    """A target of the same plan with a changed, missing or extra file ends with 7, and is not touched."""
    base, delta = small_pair(tmp_path)
    target = Path(merge_small(base, delta, tmp_path / "merged").target)
    shard = sorted(target.glob("*.safetensors"))[1]
    if damage == "flip":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "remove":
        shard.unlink()
    else:
        (target / "extra.txt").write_text("?")
    marks = marks_of(target)
    with pytest.raises(TargetBusy, match="does not verify") as caught:
        merge_small(base, delta, target)
    assert caught.value.exit_code == 7
    assert marks_of(target) == marks


@pytest.mark.parametrize("inside", [False, True])
def test_other_content_is_refused_and_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, inside: bool
) -> None:
    """A target with other content, a model of another plan too, ends with 7; nothing is added to it, nor left beside it."""
    base, delta = small_pair(tmp_path)
    target = tmp_path / "merged"
    merge_small(base, delta, target, dtype="bfloat16")
    if inside:
        monkeypatch.chdir(target)
    before, beside = marks_of(target), names_in(tmp_path)
    with pytest.raises(TargetBusy, match="already there, with other content") as caught:
        merge_small(base, delta, target)
    assert caught.value.exit_code == 7
    assert marks_of(target) == before
    assert names_in(tmp_path) == beside
    assert verify(target).ok


def test_a_file_in_place_of_the_target_is_refused(tmp_path: Path) -> None:
    """A file under the target's name is never replaced, with --overwrite neither."""
    base, delta = small_pair(tmp_path)
    (tmp_path / "merged").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(TargetBusy):
            merge_small(base, delta, tmp_path / "merged", overwrite=overwrite)
    assert (tmp_path / "merged").read_text() == "mine"


def test_an_empty_folder_is_a_fine_target(tmp_path: Path) -> None:
    """A folder that exists and is empty is accepted, through a link too."""
    base, delta = small_pair(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    result = merge_small(base, delta, tmp_path / "link")
    assert result.target == str(tmp_path / "empty")
    assert (tmp_path / "link").is_symlink()
    assert verify(tmp_path / "empty").ok


# --overwrite.


def test_overwrite_replaces_a_checkpoint(tmp_path: Path) -> None:
    """With overwrite a model gives way to the new one as a whole; nothing of the old one remains in it or beside it."""
    target = tmp_path / "merged"
    merge_small(*small_pair(tmp_path, 1), target, dtype="float32")
    (target / "model.sig").write_text("of the old model")
    base, delta = small_pair(tmp_path, 2)
    result = merge_small(base, delta, target, overwrite=True)
    assert result.status == "merged"
    assert files_of(target) == files_of(Path(merge_small(base, delta, tmp_path / "fresh").target))
    assert not locate(target).root.exists()


def test_overwrite_refuses_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    """With overwrite, a folder that shows no sign of a model is refused with 7 and keeps its files."""
    base, delta = small_pair(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(TargetBusy, match="not a checkpoint") as caught:
        merge_small(base, delta, tmp_path / "home", overwrite=True)
    assert caught.value.exit_code == 7
    assert files_of(tmp_path / "home") == {"thesis.tex": b"years"}


def test_exchange_really_swaps(tmp_path: Path) -> None:
    """Two folders change names in one step: each inode is found under the other's name."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    inodes = one.stat().st_ino, other.stat().st_ino
    with OpenFolder.at(tmp_path) as both:
        assert both.exchange("one", both, "other"), "this file system cannot exchange"
    assert (other.stat().st_ino, one.stat().st_ino) == inodes
    assert (one / "name").read_text() == "other"


def test_exchange_with_nothing_is_an_error(tmp_path: Path) -> None:
    """An exchange that the system refuses for a reason other than not knowing how is an error of input/output."""
    (tmp_path / "one").mkdir()
    with OpenFolder.at(tmp_path) as folder, pytest.raises(InputOutputError, match=os.strerror(errno.ENOENT)):
        folder.exchange("one", folder, "missing")


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, Path]:
    """Make two results of different pairs; return the folders of the old one and the new one."""
    merge_small(*small_pair(tmp_path, 1), tmp_path / "old", dtype="float32")
    merge_small(*small_pair(tmp_path, 2), tmp_path / "new")
    return tmp_path / "old", tmp_path / "new"


def staged_swap(target: Path, results: tuple[Path, Path], *, steps: int) -> tuple[Place, Files, Files]:
    """Build what a swap of two steps leaves that dies after so many of them; return its place, and the files of old and new."""
    old, new = files_of(results[0]), files_of(results[1])
    place = beside(target)
    shutil.move(results[0], target)
    plan = stage_result(place, results[1])
    write_journal(place, plan)
    if steps > 0:
        target.rename(place.root / "replaced")
    if steps > 1:
        place.shards.rename(target)
    return place, old, new


def test_a_swap_that_had_not_begun_changes_nothing(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """With the journal written and nothing done, the old model stands, and the finished shards are kept."""
    place, old, new = staged_swap(tmp_path / "merged", results, steps=0)
    assert recovered(place) is None
    assert files_of(place.target) == old
    assert files_of(place.shards) == new


def test_a_swap_cut_off_between_its_two_steps_goes_on(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """Old model aside, new one not yet in place: recovery puts the new one in place."""
    place, _, new = staged_swap(tmp_path / "merged", results, steps=1)
    assert recovered(place) == "finished a replacement that was cut off"
    assert files_of(place.target) == new
    assert not place.root.exists()
    assert recovered(place) is None


def test_a_swap_cut_off_before_the_old_model_was_removed_is_finished(
    tmp_path: Path, results: tuple[Path, Path]
) -> None:
    """New model in place, old one still aside: recovery removes the old one."""
    place, _, new = staged_swap(tmp_path / "merged", results, steps=2)
    assert recovered(place) == "finished a replacement that was cut off"
    assert files_of(place.target) == new
    assert not place.root.exists()


def test_an_old_model_without_a_successor_comes_back(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """Old model aside and no new one anywhere: recovery puts the old one back."""
    place, old, _ = staged_swap(tmp_path / "merged", results, steps=1)
    shutil.rmtree(place.shards)
    assert recovered(place) == "put back what a replacement that was cut off had moved away"
    assert files_of(place.target) == old
    assert not place.root.exists()


def test_an_empty_folder_in_the_middle_of_a_swap_loses_no_model(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """When somebody makes an empty folder under the target's name after a cut-off swap, recovery still gives it a model."""
    place, _, new = staged_swap(tmp_path / "merged", results, steps=1)
    place.target.mkdir()
    recovered(place)
    assert files_of(place.target) == new


def test_foreign_files_in_the_middle_of_a_swap_lose_no_model(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """When somebody puts files under the target's name after a cut-off swap, they are refused, and both models are kept."""
    place, old, new = staged_swap(tmp_path / "merged", results, steps=1)
    place.target.mkdir()
    (place.target / "thesis.tex").write_text("years")
    with pytest.raises(TargetBusy, match="something else appeared") as caught:
        clean(place.target)
    assert caught.value.exit_code == 7
    assert (files_of(place.root / "replaced"), files_of(place.shards)) == (old, new)
    assert names_in(place.target) == ["thesis.tex"]


def test_a_run_after_a_cut_off_swap_puts_it_right(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """The same command after a death between the two steps of a swap ends with the new model in place and nothing else."""
    place, _, new = staged_swap(tmp_path / "merged", results, steps=1)
    again = merge_small(tmp_path / "base2", tmp_path / "delta2", place.target, overwrite=True)
    assert again.status == "already complete"
    assert files_of(place.target) == new
    assert verify(place.target).ok
    assert not place.root.exists()


@pytest.mark.parametrize("folder", ["shards", "replaced"])
def test_a_swap_whose_folders_are_others_is_refused(tmp_path: Path, results: tuple[Path, Path], folder: str) -> None:
    """A folder that was put in the place of one that a journal names is neither removed nor published."""
    place, _, _ = staged_swap(tmp_path / "merged", results, steps=2 if folder == "replaced" else 1)
    shutil.rmtree(place.root / folder)
    (place.root / folder).mkdir()
    (place.root / folder / "thesis.tex").write_text("years")
    if folder == "shards":
        shutil.rmtree(place.root / "replaced")
    with pytest.raises(
        (MalformedInput, TargetBusy), match=r"not those that it names|not a checkpoint: found thesis\.tex"
    ):
        clean(place.target)
    assert names_in(place.root / folder) == ["thesis.tex"]


KILL = """
import os, signal, sys
from pathlib import Path
from deltaweights.staging.lock import StagingLock
from deltaweights.staging.place import Place
from deltaweights.staging.publish import publish
from deltaweights.util.open_folder import OpenFolder

target, inside, step, left = Path(sys.argv[1]), sys.argv[2] == "inside", sys.argv[3], int(sys.argv[4])
root = target / ".deltaweights" if inside else target.parent / f".{target.name}.deltaweights"
if step == "two steps":  # as on a file system that cannot exchange, of which there is none at hand
    OpenFolder.exchange = lambda *_: False

def hook(event, arguments):
    global left
    if event in {"os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

place = Place(target, root, inside)
with StagingLock(place) as lock:
    sys.addaudithook(hook)
    publish(lock.staging, sys.argv[5], overwrite=True)
"""
"""Publishes, and is killed right before the N-th change of a name on the disk."""


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
    tmp_path: Path, results: tuple[Path, Path], where: str, step: str, *, old: bool
) -> None:
    """Killed before any rename or removal, publishing leaves the old model or the new one, and recovery never a mixture."""
    models = {"old": files_of(results[0]), "new": files_of(results[1])}
    for left in range(100):
        target = tmp_path / str(left) / "merged"
        place = within(target) if where == "inside" else beside(target)
        target.parent.mkdir()
        if old:
            shutil.copytree(results[0], target)
        elif where == "inside":
            target.mkdir()
        plan = stage_result(place, shutil.copytree(results[1], tmp_path / "copy"))
        done = finish([sys.executable, "-c", KILL, str(target), where, step, str(left), plan])
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        if where == "beside" and target.exists():
            assert files_of(target) in models.values()
        elif where == "inside" and (target / SUMS).exists():
            assert files_inside(target) in models.values(), "a mixture that looks whole"
        recovered(place)
        found = files_inside(target) if target.exists() else None
        if place.shards.exists():  # killed before anything was done
            assert found == (models["old"] if old else {} if where == "inside" else None)
        else:
            assert found == models["new"], f"killed at {left}"
        if done.returncode == 0:
            break
    assert left >= 2
    assert done.returncode == 0
    assert not place.root.exists()


def files_inside(target: Path) -> Files:
    """Return the files of a folder, staging inside it left out."""
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
def exchanged(tmp_path: Path) -> tuple[Place, Pair, dict[str, bytes]]:
    """Kill an overwriting run right after the exchange; return its place, its pair, and the files it should give."""
    old, new = small_pair(tmp_path, 1), small_pair(tmp_path, 2)
    place = locate(tmp_path / "merged")
    merge_small(*old, place.target)
    expected = files_of(Path(merge_small(*new, tmp_path / "expected").target))
    command = [sys.executable, "-c", DIE_AFTER_THE_EXCHANGE, str(new[0]), str(new[1]), str(place.target)]
    assert finish(command).returncode == -signal.SIGKILL
    assert files_of(place.target) == expected
    assert set(names_in(place.shards)) == set(expected), "the old model is where the new one was built"
    return place, new, expected


def test_the_old_model_in_staging_is_never_taken_for_finished_shards(
    exchanged: tuple[Place, Pair, dict[str, bytes]],
) -> None:
    """When the target is deleted after a death right after the exchange, the next run makes the new model from its inputs."""
    place, new, expected = exchanged
    shutil.rmtree(place.target)
    assert merge_small(*new, place.target).status == "merged"
    assert files_of(place.target) == expected
    assert not place.root.exists()


def test_the_next_run_removes_the_old_model_from_staging(exchanged: tuple[Place, Pair, dict[str, bytes]]) -> None:
    """After a death right after the exchange, the same command finds the target complete and removes what is left beside it."""
    place, new, expected = exchanged
    assert merge_small(*new, place.target, overwrite=True).status == "already complete"
    assert files_of(place.target) == expected
    assert not place.root.exists()


# Staging inside the target.


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


def test_a_mount_point_is_staged_inside(tmp_path: Path, mount: Callable[..., Path]) -> None:
    """A target that is a mount point gets the same files as any other, and no staging remains in it or beside it."""
    base, delta = small_pair(tmp_path)
    expected = files_of(Path(merge_small(base, delta, tmp_path / "expected").target))
    target = mount("merged", 64)
    device = target.stat().st_dev
    assert locate(target) == within(target)
    assert merge_small(base, delta, target).status == "merged"
    assert files_of(target) == expected
    assert target.stat().st_dev == device
    assert merge_small(base, delta, target).status == "already complete"
    assert merge_small(base, delta, target, dtype="float32", overwrite=True).status == "merged"
    assert verify(target).ok
    assert not (tmp_path / ".merged.deltaweights").exists()


def test_the_working_folder_is_staged_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target "." is filled without being replaced: whoever stands in it sees the files."""
    base, delta = small_pair(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inode = Path().stat().st_ino
    assert merge_small(base, delta, ".").status == "merged"
    assert Path().stat().st_ino == inode
    assert verify(".").ok
    assert merge_small(base, delta, ".").status == "already complete"


@pytest.fixture
def closed_parent(tmp_path: Path) -> Iterator[Path]:
    """Make an open folder in a parent that nobody can write, root included (chattr +i); skip where that is not allowed."""
    parent = tmp_path / "closed"
    (parent / "merged").mkdir(parents=True)
    if os.geteuid():
        parent.chmod(0o555)
    elif subprocess.run(["chattr", "+i", str(parent)], capture_output=True, check=False).returncode:
        pytest.skip("root writes everywhere, and this file system has no chattr +i")
    yield parent
    if os.geteuid():
        parent.chmod(0o755)
    else:
        subprocess.run(["chattr", "-i", str(parent)], check=True)


def test_a_target_in_a_closed_parent_is_staged_inside(tmp_path: Path, closed_parent: Path) -> None:
    """A folder whose parent cannot be written is filled from inside; one that is not there yet is an error of input/output."""
    base, delta = small_pair(tmp_path)
    assert locate(closed_parent / "merged").inside
    assert merge_small(base, delta, closed_parent / "merged").status == "merged"
    assert verify(closed_parent / "merged").ok
    with pytest.raises(InputOutputError) as caught:
        merge_small(base, delta, closed_parent / "new")
    assert caught.value.exit_code == 5
    assert names_in(closed_parent) == ["merged"]


def test_inside_the_index_manifest_and_sums_come_last(tmp_path: Path, results: tuple[Path, Path]) -> None:
    """When files are moved one by one, those by which a loader or a check takes a folder for whole are moved last."""
    place = within(tmp_path / "merged")
    expected = files_of(results[1])
    plan = stage_result(place, results[1])
    moved: list[str] = []
    recording = False

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if recording and event == "os.link":
            moved.append(str(arguments[1]))

    sys.addaudithook(hook)  # it can never be removed, only silenced
    with StagingLock(place) as lock:
        recording = True
        publish(lock.staging, plan, overwrite=False)
        recording = False
    assert sorted(moved) == sorted(expected)
    assert moved[-3:] == [INDEX, MANIFEST, SUMS]
    assert publishing.LAST == (INDEX, "pytorch_model.bin.index.json", MANIFEST, SUMS)
    assert files_of(place.target) == expected


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
    place = within(target)
    interrupt_inside(place, tmp_path / "expected", moved)
    again = merge_small(base, delta, target)
    assert again.status == "already complete"
    assert files_of(target) == expected
    assert verify(target).ok


def interrupt_inside(place: Place, source: Path, moved: int) -> None:
    """Build what a publication inside the target leaves that dies after so many moves."""
    write_journal(place, stage_result(place, source))
    for name in moves(place)[:moved]:
        (place.shards / name).rename(place.target / name)


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


def test_staging_inside_is_found_from_anywhere(large: Pair, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    """A run that was started in the target and killed is finished by a run that is started elsewhere."""
    target = tmp_path / "merged"
    target.mkdir()
    with caught_in_the_middle(apply_command(*large, "."), within(target), cwd=target) as process:
        process.kill()
    again = finish(apply_command(*large, target), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "shards are finished already" in again.stderr
    assert files_of(target) == uninterrupted


# Starved.


@pytest.mark.trust
def test_row62_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    large: Pair, uninterrupted: dict[str, bytes], tmp_path: Path, mount: Callable[..., Path]
) -> None:
    """A disk that fills up ends the run with 5 and one line, nothing has the target's name, and after making room it goes on."""
    disk = mount("disk", 100)
    target = disk / "merged"
    command = apply_command(*large, target, "--quiet")
    with caught_in_the_middle(command, locate(target)) as process:
        free = os.statvfs(disk)
        with (disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize)
        process.send_signal(signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (5, ""), stderr
    assert stderr.count("\n") == 1
    assert os.strerror(errno.ENOSPC) in stderr
    assert not target.exists()
    finished = {
        name: mark for name, mark in marks_of(locate(target).shards).items() if name in finished_shards(locate(target))
    }
    assert finished
    refused = finish(command)
    assert (refused.returncode, refused.stderr.count("\n")) == (5, 1)
    mount("disk", 220, ",remount")
    again = finish(command)
    assert again.returncode == 0, again.stderr
    assert files_of(target) == uninterrupted
    assert finished.items() <= marks_of(target).items()


@pytest.mark.trust
def test_row62_too_small_a_disk_is_refused_at_once(large: Pair, tmp_path: Path, mount: Callable[..., Path]) -> None:
    """A disk that has no room for the result is refused before a shard is written, and nothing stays behind."""
    disk = mount("disk", 30)
    with pytest.raises(InputOutputError, match="not enough free disk") as caught:
        apply_delta(*large, disk / "merged")
    assert caught.value.exit_code == 5
    assert not (disk / "merged").exists()
    assert not locate(disk / "merged").root.exists()


@pytest.mark.trust
def test_row63_a_limit_on_file_size_is_an_error_of_input_output(large: Pair, tmp_path: Path) -> None:
    """Under a file-size limit (ulimit -f) the run ends with 5 and one line, and leaves nothing, having finished nothing."""
    target = tmp_path / "merged"
    limited = ["sh", "-c", 'ulimit -f 800 && exec "$@"', "sh"]  # 800 blocks of 512 or 1024 bytes: less than a shard
    done = finish([*limited, *apply_command(*large, target, "--quiet")])
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("\n") == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert not target.exists()
    assert not locate(target).root.exists()


# The rest.


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


@pytest.fixture
def staged(tmp_path: Path) -> tuple[Place, Pair, dict[str, bytes]]:
    """Leave all shards of a pair in staging, since the run was strict; return the place, the pair, the files it should give."""
    tensors = base_tensors(layers=1, vocabulary=20, hidden=16)
    delta = delta_tensors(tensors)
    delta["model.norm.weight"][0] = torch.nan
    pair = save(tensors, tmp_path / "base"), save(delta, tmp_path / "delta")
    place = locate(tmp_path / "merged")
    with pytest.raises(CheckFailed):
        merge_small(*pair, place.target, strict=True)
    assert len(finished_shards(place)) >= 4
    return place, pair, files_of(Path(merge_small(*pair, tmp_path / "expected").target))


def test_staging_of_another_plan_is_discarded(staged: tuple[Place, Pair, dict[str, bytes]], tmp_path: Path) -> None:
    """What is left of a run with other options is removed: its shards, its fragments, and whatever lay between them."""
    place, pair, _ = staged
    (place.shards / "stray").write_text("?")
    notes = Notes()
    merge_small(*pair, place.target, dtype="float32", report=notes)
    assert "staging held another plan (other inputs or options): it was discarded" in notes.texts
    expected = merge_small(*pair, tmp_path / "of float32", dtype="float32")
    assert files_of(place.target) == files_of(Path(expected.target))
    assert not place.root.exists()


@pytest.mark.parametrize("harm", ["cut", "link", "fragment of another file", "fragment that is no JSON", "no fragment"])
def test_only_whole_shards_with_their_own_fragment_are_reused(
    staged: tuple[Place, Pair, dict[str, bytes]], tmp_path: Path, harm: str
) -> None:
    """A staged shard that was cut, swapped for a link, or lacks a fragment of its own is made again, and no other is."""
    place, pair, expected = staged
    marks = marks_of(place.shards)
    name, other = sorted(marks)[:2]
    shard, fragment = place.shards / name, place.fragments / f"{name}.json"
    (place.shards / "stray").write_text("?")
    if harm == "cut":
        os.truncate(shard, shard.stat().st_size - 1)
    elif harm == "link":
        shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(tmp_path / "elsewhere")
    elif harm == "fragment of another file":
        fragment.write_bytes((place.fragments / f"{other}.json").read_bytes())
    elif harm == "fragment that is no JSON":
        fragment.write_text("{")
    else:
        fragment.unlink()
    merge_small(*pair, place.target)
    assert files_of(place.target) == expected
    assert not (place.target / name).is_symlink()
    found = marks_of(place.target)
    assert [shard for shard, mark in marks.items() if found[shard] != mark] == [name]


# clean


def test_clean_removes_what_a_killed_run_left(large: Pair, tmp_path: Path) -> None:
    """``clean`` removes abandoned staging and nothing else, and says what it did."""
    target = tmp_path / "merged"
    kill_in_the_middle(apply_command(*large, target), locate(target))
    done = finish([sys.executable, "-m", "deltaweights", "clean", str(target)])
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed {locate(target).root}" in done.stdout
    assert names_in(tmp_path) == []
    assert clean(target) == [f"nothing to clean for {target}"]


def test_clean_leaves_a_complete_target_alone(tmp_path: Path) -> None:
    """``clean`` on a published target changes nothing in it."""
    base, delta = small_pair(tmp_path)
    target = Path(merge_small(base, delta, tmp_path / "merged").target)
    marks = marks_of(target)
    make_staging(locate(target))
    clean(target)
    assert marks_of(target) == marks
    assert not locate(target).root.exists()


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


def test_the_lock_file_is_locked_while_a_run_lives(tmp_path: Path) -> None:
    """The lock is one that any tool can ask for (flock), and it is free when the run has ended."""
    place = locate(tmp_path / "merged")
    with StagingLock(place), (place.root / "lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with StagingLock(place):
        pass
