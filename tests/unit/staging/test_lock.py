"""One run at a time on a target."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deltaweights.errors import TargetBusy
from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.clean import clean
from deltaweights.staging.location import locate_target
from deltaweights.staging.lock import NOTE, StagingLock
from tests.support.errors import refused
from tests.support.killed_merges import Pair, apply_command, caught_in_the_middle, finish, merge_small, small_pair
from tests.support.limits import PATIENCE
from tests.support.merging import files_of
from tests.support.reports import RecordingReport
from tests.support.staged import make_staging


@pytest.mark.trust
def test_row69_a_second_run_on_the_same_target_is_refused_while_the_first_lives(
    large_pair: Pair, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """While a run works on a target, another run and a clean-up end with 7 and one line, and the first finishes unharmed."""
    target = tmp_path / "merged"
    with caught_in_the_middle(apply_command(*large_pair, target), locate_target(target)) as process:
        second = finish(apply_command(*large_pair, target, "--quiet"))
        cleaning = finish([sys.executable, "-m", "deltaweights", "clean", str(target)])
        with refused(TargetBusy, problem=BUSY):
            apply_delta(*large_pair, target, max_shard_size="1MB", overwrite=True)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=PATIENCE) == 0
    for done in (second, cleaning):
        assert (done.returncode, done.stderr.count("\n")) == (7, 1)
        assert BUSY in done.stderr
    assert files_of(target) == uninterrupted


BUSY = "another run is writing to this folder"

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
    location = make_staging(locate_target(tmp_path / "merged"))
    command = [sys.executable, "-c", HOLD, str(location.root / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with refused(TargetBusy, problem=BUSY, where=location.root):
            merge_small(base, delta, location.target)
        with refused(TargetBusy, problem=BUSY):
            clean(location.target)
        holder.kill()
    assert (location.root / "lock").exists()
    assert merge_small(base, delta, location.target).status == "merged"
    assert not location.root.exists()


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
    notes = RecordingReport()
    target = Path(merge_small(base, delta, tmp_path / "merged", report=notes).target)
    assert notes.notes.count(NOTE) == 1
    assert files_of(target) == expected
    assert not locate_target(target).root.exists()


def test_the_lock_is_taken_anew_when_its_file_was_removed(tmp_path: Path) -> None:
    """A lock on a file that an ending run has unlinked in between counts for nothing: two runs never hold it together."""
    location = locate_target(tmp_path / "merged")
    with StagingLock(location):
        (location.root / "lock").unlink()
        with StagingLock(location), refused(TargetBusy, problem=BUSY):
            StagingLock(location)


def test_the_lock_file_is_locked_while_a_run_lives(tmp_path: Path) -> None:
    """The lock is one that any tool can ask for (flock), and it is free when the run has ended."""
    location = locate_target(tmp_path / "merged")
    with StagingLock(location), (location.root / "lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with StagingLock(location):
        pass
