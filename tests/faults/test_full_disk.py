"""Runs that are starved of disk space."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaweights.errors import InputOutputError
from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.location import locate_target
from tests.support.errors import refused
from tests.support.killed_merges import (
    Pair,
    apply_command,
    caught_in_the_middle,
    finish,
    finished_shards,
    inodes_and_times,
)
from tests.support.limits import PATIENCE
from tests.support.merging import files_of


@pytest.mark.trust
def test_row62_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    large_pair: Pair, uninterrupted: dict[str, bytes], tmp_path: Path, mount: Callable[..., Path]
) -> None:
    """A disk that fills up ends the run with 5 and one line, nothing has the target's name, and after making room it goes on."""
    disk = mount("disk", 100)
    target = disk / "merged"
    command = apply_command(*large_pair, target, "--quiet")
    with caught_in_the_middle(command, locate_target(target)) as process:
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
        name: mark
        for name, mark in inodes_and_times(locate_target(target).shards).items()
        if name in finished_shards(locate_target(target))
    }
    assert finished
    again = finish(command)
    assert (again.returncode, again.stderr.count("\n")) == (5, 1)
    mount("disk", 220, ",remount")
    again = finish(command)
    assert again.returncode == 0, again.stderr
    assert files_of(target) == uninterrupted
    assert finished.items() <= inodes_and_times(target).items()


@pytest.mark.trust
def test_row62_too_small_a_disk_is_refused_at_once(
    large_pair: Pair, tmp_path: Path, mount: Callable[..., Path]
) -> None:
    """A disk that has no room for the result is refused before a shard is written, and nothing stays behind."""
    disk = mount("disk", 30)
    with refused(InputOutputError, problem="not enough free disk"):
        apply_delta(*large_pair, disk / "merged")
    assert not (disk / "merged").exists()
    assert not locate_target(disk / "merged").root.exists()


@pytest.mark.trust
def test_row63_a_limit_on_file_size_is_an_error_of_input_output(large_pair: Pair, tmp_path: Path) -> None:
    """Under a file-size limit (ulimit -f) the run ends with 5 and one line, and leaves nothing, having finished nothing."""
    target = tmp_path / "merged"
    limited = ["sh", "-c", 'ulimit -f 800 && exec "$@"', "sh"]  # 800 blocks of 512 or 1024 bytes: less than a shard
    done = finish([*limited, *apply_command(*large_pair, target, "--quiet")])
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("\n") == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert not target.exists()
    assert not locate_target(target).root.exists()
