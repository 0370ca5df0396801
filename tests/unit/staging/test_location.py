"""Where staging is: beside the target, or inside it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltaweights.errors import InputOutputError
from deltaweights.manifest.verify import verify
from deltaweights.staging.location import locate_target
from tests.support.errors import refused
from tests.support.killed_merges import (
    Pair,
    apply_command,
    caught_in_the_middle,
    finish,
    merge_small,
    names_in,
    small_pair,
)
from tests.support.merging import files_of
from tests.support.staged import within


def test_a_mount_point_is_staged_inside(tmp_path: Path, mount: Callable[..., Path]) -> None:
    """A target that is a mount point gets the same files as any other, and no staging remains in it or beside it."""
    base, delta = small_pair(tmp_path)
    expected = files_of(Path(merge_small(base, delta, tmp_path / "expected").target))
    target = mount("merged", 64)
    device = target.stat().st_dev
    assert locate_target(target) == within(target)
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
    assert locate_target(closed_parent / "merged").inside
    assert merge_small(base, delta, closed_parent / "merged").status == "merged"
    assert verify(closed_parent / "merged").ok
    with refused(InputOutputError):
        merge_small(base, delta, closed_parent / "new")
    assert names_in(closed_parent) == ["merged"]


def test_staging_inside_is_found_from_anywhere(
    large_pair: Pair, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """A run that was started in the target and killed is finished by a run that is started elsewhere."""
    target = tmp_path / "merged"
    target.mkdir()
    with caught_in_the_middle(apply_command(*large_pair, "."), within(target), cwd=target) as process:
        process.kill()
    again = finish(apply_command(*large_pair, target), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert " finished already" in again.stderr
    assert files_of(target) == uninterrupted
