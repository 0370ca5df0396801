"""``--read-back`` compares what is on the disk with what was written, before anything is published."""

from __future__ import annotations

import os
from pathlib import Path

from deltaweights.cluster.finish import finish_parts
from deltaweights.errors import InputOutputError
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.verify import verify
from deltaweights.report import Report
from deltaweights.staging.location import locate_target
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.merging import files_of

Pair = tuple[Path, Path]


class Spoil(Report):
    """Flips a bit of the first shard when all are written, as a disk that lies would."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def end(self) -> None:
        """Do it once, at the end of the stream."""
        shards = sorted(locate_target(self._target).shards.iterdir())
        if shards and not (self._target.parent / "spoiled").exists():
            (self._target.parent / "spoiled").touch()
            data = bytearray(shards[0].read_bytes())
            data[-1] ^= 1
            before = shards[0].stat()
            shards[0].write_bytes(data)
            os.utime(
                shards[0], ns=(before.st_atime_ns, before.st_mtime_ns)
            )  # damage on a disk does not change the time


def test_what_the_disk_changed_is_not_published(pair: Pair, tmp_path: Path) -> None:
    """A shard that changed on the disk ends the run with 5 before it is published; the next run makes it again."""
    expected = tmp_path / "expected"
    apply_delta(*pair, expected, max_shard_size="20KB")
    target = tmp_path / "merged"
    with refused(InputOutputError, problem="the disk gives back other bytes than were written"):
        apply_delta(*pair, target, max_shard_size="20KB", read_back=True, report=Spoil(target))
    assert not target.exists()
    apply_delta(*pair, target, max_shard_size="20KB", read_back=True)
    assert files_of(target) == files_of(expected)


def test_without_it_the_same_damage_is_published(pair: Pair, tmp_path: Path) -> None:
    """Without --read-back the damaged folder is published."""
    target = tmp_path / "merged"
    apply_delta(*pair, target, report=Spoil(target))
    assert not verify(target).ok


def test_the_command_reads_back(pair: Pair, run: Run, tmp_path: Path) -> None:
    """The option changes no byte of the result, and its time is reported separately."""
    base, delta = pair
    common = ["apply", "--base", base, "--delta", delta, "--json", "--quiet"]
    plain = run(*common, "--target", tmp_path / "plain")
    read = run(*common, "--target", tmp_path / "read", "--read-back")
    assert (plain.returncode, read.returncode) == (0, 0), read.stderr
    assert '"read back"' in read.stdout
    assert '"read back"' not in plain.stdout
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "read")


def test_a_part_leaves_it_to_the_end(pair: Pair, run: Run, tmp_path: Path) -> None:
    """A part refuses the option with 2, and names the command that takes it."""
    base, delta = pair
    done = run("apply", "--base", base, "--delta", delta, "--target", tmp_path / "m", "--part", "1/2", "--read-back")
    assert done.returncode == 2
    assert "deltaweights finish" in done.stderr


def test_finish_reads_back_and_removes_the_record(pair: Pair, run: Run, tmp_path: Path) -> None:
    """``finish --read-back`` finds a shard that changed in staging, and the part makes it again."""
    base, delta = pair
    target = tmp_path / "merged"
    part = ["apply", "--base", base, "--delta", delta, "--target", target, "--part", "1/1", "--quiet"]
    assert run(*part).returncode == 0
    shard = sorted(locate_target(target).shards.iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with refused(InputOutputError, problem="the disk gives back other bytes than were written", where=shard):
        finish_parts(target, read_back=True)
    assert run(*part).returncode == 0
    assert finish_parts(target, read_back=True) is not None
