"""Rows 62 to 70, and 83, of the table: faults during a run, and what it leaves.

The faults are real: failing system calls (all of which ``scripts/fault-sweep`` injects), full and read-only file systems, power
cuts, signals, little memory.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.location import locate_target
from tests.faults.injection import KILL, OPENS, READS, WRITES, Call, command, is_lie, is_possible
from tests.faults.sweep import OF_SIGNALS, SCENARIOS, Run, Scenario, fault, make_inputs, sweep
from tests.support.killed_merges import Pair, apply_command, finish, finished_shards, names_in, small_pair
from tests.support.limits import PATIENCE
from tests.support.merging import files_of
from tests.support.params import few

TRACED = pytest.mark.skipif(not is_possible(), reason="strace is not there, or may not trace")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what the traced runs merge."""
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


# Faults of single calls.

NEW = SCENARIOS[0]

KINDS: dict[str, tuple[int, Callable[[Call, str], bool]]] = {
    "row62-no-space": (32, lambda _call, what: what == "error=ENOSPC"),
    "row64-read": (90, lambda call, what: what in {"error=EIO", "retval=0"} and call.name in READS),
    "row65-lie": (25, lambda _call, what: is_lie(what)),
    "row66-killed-at-rename": (1, lambda call, what: what == KILL and call.name.startswith("rename")),
    "row64-write": (8, lambda call, what: what == "error=EIO" and call.name in WRITES),
    "row64-fsync": (6, lambda call, what: what == "error=EIO" and call.name == "fsync"),
    "row64-rename": (1, lambda call, what: what == "error=EIO" and call.name.startswith("rename")),
    "row64-open": (20, lambda call, what: what in {"error=EIO", "error=EMFILE"} and call.name in OPENS),
    "row65-nothing-taken": (9, lambda call, what: what == "retval=0" and call.name in WRITES),
    "row65-interrupted": (12, lambda call, what: what == "error=EINTR" and call.name in WRITES),
    "row66-killed-at-write": (6, lambda call, what: what == KILL and call.name in WRITES),
    "row66-killed-at-fsync": (5, lambda call, what: what == KILL and call.name == "fsync"),
}
"""One in so many faults of a kind is injected here, all of them by ``scripts/fault-sweep``; of each row the first kind is quick."""


@pytest.mark.sampled(1)
@TRACED
@pytest.mark.trust
@pytest.mark.parametrize("kind", few(KINDS, 4))
def test_a_fault_of_one_call(kind: str, inputs: Path, tmp_path: Path) -> None:
    """Some calls of each kind fail, one per run: the target is absent or complete, and the same command finishes it."""
    every, wanted = KINDS[kind]
    found = sweep(NEW, inputs, tmp_path, every=every, wanted=wanted)
    assert len(found.points) > 1
    assert found.unclean == []


@TRACED
@pytest.mark.slow
@pytest.mark.trust
@pytest.mark.parametrize("every", [89, pytest.param(24, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"row66-{scenario.name.replace(' ', '-')}")
def test_a_sample_of_the_sweep(scenario: Scenario, every: int, inputs: Path, tmp_path: Path) -> None:
    """One in so many of all faults of all calls is injected, in each scenario."""
    found = sweep(scenario, inputs, tmp_path, every=every)
    assert len(found.points) > 3
    assert found.unclean == []


@pytest.mark.slow
@TRACED
@pytest.mark.trust
def test_row83_a_signal_at_some_calls(inputs: Path, tmp_path: Path) -> None:
    """A signal at some calls of a merge gives 130 or 143, one line, and a target that is absent or complete."""
    found = sweep(NEW, inputs, tmp_path, every=223, signals=True)
    assert len(found.points) > 6
    assert found.unclean == []


@TRACED
@pytest.mark.slow
@pytest.mark.trust
@pytest.mark.parametrize("scenario", OF_SIGNALS, ids=lambda scenario: f"row83-{scenario.name.replace(' ', '-')}")
@pytest.mark.parametrize("every", [211, pytest.param(51, marks=pytest.mark.exhaustive)])
def test_a_sample_of_the_signals(scenario: Scenario, every: int, inputs: Path, tmp_path: Path) -> None:
    """One in so many of both signals at all calls is sent, in each scenario."""
    found = sweep(scenario, inputs, tmp_path, every=every, signals=True)
    assert found.points
    assert found.unclean == []


@pytest.mark.slow
@TRACED
def test_what_is_unclean_is_told(inputs: Path, tmp_path: Path) -> None:
    """A run that succeeds with another result, and one that leaves something behind, are reported."""
    call = Call("mkdirat", "{place}/.out.deltaweights", 1, 0, True, ".out.deltaweights")
    (tmp_path / "whole").mkdir()
    run = Run(NEW, inputs, tmp_path / "whole")
    assert finish(command(run.arguments)).returncode == 0
    expected = files_of(run.target)
    for number, (files, wrong) in enumerate(
        [(expected, None), (expected | {"x": b""}, "the next run gave other bytes")]
    ):
        assert fault(Run(NEW, inputs, tmp_path / str(number)), call, "error=EIO", files, {}) == wrong
    unmet = replace(call, nth=99)
    assert fault(Run(NEW, inputs, tmp_path / "unmet"), unmet, "error=EIO", expected, {}) == "it was not met"
    left = replace(NEW, prepare=lambda _inputs, place: (place / "left").touch())
    assert fault(Run(left, inputs, tmp_path / "left"), call, "error=EIO", expected, {}) == "left behind: ['left']"


@pytest.mark.trust
def test_row65_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a short write the rest is written, and the result is the same."""
    base, delta = small_pair(tmp_path)
    expected = files_of(Path(apply_delta(base, delta, tmp_path / "expected").target))
    whole, calls = os.pwrite, list[int]()

    def short(fd: int, data: memoryview, offset: int) -> int:
        calls.append(len(data))
        return whole(fd, bytes(data[: max(1, len(data) // 3)]), offset)

    monkeypatch.setattr(os, "pwrite", short)
    apply_delta(base, delta, tmp_path / "out", workers=1)
    assert len(calls) > 100
    assert files_of(tmp_path / "out") == expected


# Signals at any time.


@pytest.mark.sampled(1)
@pytest.mark.trust
@pytest.mark.parametrize("seed", few(range(10), 3), ids=lambda seed: f"row67-{seed}")
def test_a_signal_at_a_random_time(
    large_pair: Pair, uninterrupted: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    """SIGINT and SIGTERM at any time give one line and the signal's code, or a complete result; the next run finishes it."""
    number, code = [(signal.SIGINT, 130), (signal.SIGTERM, 143)][seed % 2]
    target = tmp_path / "out"
    command = apply_command(*large_pair, target, "--quiet")
    began = time.monotonic()
    assert finish(command).returncode == 0
    shutil.rmtree(target)
    usual = time.monotonic() - began
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(Random(seed).uniform(0.25, 1) * usual)  # noqa: S311  (from where Python has started)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in {code, 0, -number}, err
    assert "Traceback" not in err
    if process.returncode == code:
        assert err.startswith("deltaweights: error: ")
        assert err.count("\n") == 1
    assert not target.exists() or files_of(target) == uninterrupted
    if locate_target(target).shards.exists():
        assert {path.name for path in locate_target(target).shards.glob("*.safetensors")} == finished_shards(
            locate_target(target)
        )
    assert finish(command).returncode == 0
    assert files_of(target) == uninterrupted
    assert names_in(tmp_path) == ["out"]


# File systems that refuse to write.


def refused(done: subprocess.CompletedProcess[str], number: int) -> None:
    """Assert that a run ended with 5 and one line with the system's message."""
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("deltaweights: error: ")
    assert done.stderr.count("\n") == 1
    assert os.strerror(number) in done.stderr


@pytest.mark.trust
def test_row63_no_inodes(tmp_path: Path, mount: Callable[..., Path]) -> None:
    """A file system without free inodes ends the run with 5; once there are some, the same command finishes it."""
    base, delta = small_pair(tmp_path)
    disk = mount("disk", 64, ",nr_inodes=6")
    command = apply_command(base, delta, disk / "out", "--quiet")
    refused(finish(command), errno.ENOSPC)
    assert not (disk / "out").exists()
    mount("disk", 64, ",nr_inodes=100,remount")
    done = finish(command)
    assert done.returncode == 0, done.stderr
    assert names_in(disk) == ["out"]


@pytest.mark.trust
def test_row63_a_folder_that_is_read_only(tmp_path: Path, mount: Callable[..., Path]) -> None:
    """A folder on a file system that is mounted read-only ends the run with 5; an old model in it stays as it is."""
    base, delta = small_pair(tmp_path)
    disk = mount("disk", 64)
    assert finish(apply_command(base, delta, disk / "old", "--quiet")).returncode == 0
    before = files_of(disk / "old")
    mount("disk", 64, ",remount,ro")
    refused(finish(apply_command(base, delta, disk / "out", "--quiet")), errno.EROFS)
    refused(
        finish(apply_command(base, delta, disk / "old", "--quiet", "--overwrite", "--dtype", "float32")), errno.EROFS
    )
    assert files_of(disk / "old") == before
    assert names_in(disk) == ["old"]


# Power.


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Mount images of ext4; skip where that is not allowed."""
    mounted: list[Path] = []

    def make(image: Path) -> Path:
        folder = tmp_path / f"mounted-{image.name}"
        folder.mkdir()
        done = finish(["mount", "-o", "loop", str(image), str(folder)])
        if done.returncode:
            pytest.skip(f"cannot mount an image here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.trust
def test_row68_power_is_cut(tmp_path: Path, ext4: Callable[[Path], Path]) -> None:
    """A copy of the live disk, 0 s and 6 s after exit 0, has the complete result."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here")
    base, delta = small_pair(tmp_path)
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(48 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    disk = ext4(image)
    done = finish(apply_command(base, delta, disk / "out", "--quiet"))
    shutil.copyfile(image, tmp_path / "at-0-s")
    assert done.returncode == 0, done.stderr
    expected = files_of(disk / "out")
    time.sleep(6)
    shutil.copyfile(image, tmp_path / "at-6-s")
    for name in ("at-0-s", "at-6-s"):
        after = ext4(tmp_path / name)
        verified = finish([sys.executable, "-m", "deltaweights", "verify", str(after / "out")])
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert files_of(after / "out") == expected
        again = finish(apply_command(base, delta, after / "out", "--quiet"))
        assert again.returncode == 0, again.stderr
        assert files_of(after / "out") == expected
        assert {*names_in(after)} - {"lost+found"} == {"out"}


# Memory.


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], Path]]:
    """Make a cgroup with so many bytes of memory; skip where that is not allowed."""
    made: list[Path] = []

    def make(limit: int) -> Path:
        version_1 = Path("/sys/fs/cgroup/memory")
        root, file = (
            (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
        )
        group = root / f"deltaweights-test-{os.getpid()}"
        try:
            group.mkdir()
            made.append(group)
            (group / file).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"cannot make a cgroup here: {error}")
        return group / "cgroup.procs"

    yield make
    for group in made:
        group.rmdir()


@pytest.mark.trust
def test_row70_little_memory(
    large_pair: Pair, uninterrupted: dict[str, bytes], tmp_path: Path, little_memory: Callable[[int], Path]
) -> None:
    """A merge of 240 MB of files completes with 64 MB of memory, including the page cache."""
    processes = little_memory(64 * 2**20)
    within = ["sh", "-c", f'echo $$ > {processes} && exec "$@"', "sh"]
    done = finish([*within, *apply_command(*large_pair, tmp_path / "out", "--quiet")])
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == uninterrupted
