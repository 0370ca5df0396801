"""When a target counts as complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltaweights.errors import TargetBusy
from deltaweights.jobs.apply import apply_delta
from deltaweights.staging.location import locate_target
from tests.support.errors import refused
from tests.support.killed_merges import Pair, apply_command, finish, inodes_and_times, merge_small, small_pair


def test_a_complete_target_is_left_as_it_is(tmp_path: Path) -> None:
    """The same call again says "already complete", with the same digests, and writes no file of the target."""
    base, delta = small_pair(tmp_path)
    first = merge_small(base, delta, tmp_path / "merged")
    marks = inodes_and_times(tmp_path / "merged")
    for options in ({}, {"overwrite": True}, {"workers": 5, "hash_inputs": True}):
        again = merge_small(base, delta, tmp_path / "merged", **options)
        assert (first.status, again.status) == ("merged", "already complete")
        assert again.content_digest == first.content_digest
        assert again.manifest_sha256 == first.manifest_sha256
        assert inodes_and_times(tmp_path / "merged") == marks
        assert not locate_target(tmp_path / "merged").root.exists()


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
        (target / "extra.py").write_text("?")
    marks = inodes_and_times(target)
    with refused(TargetBusy, where=target) as caught:
        merge_small(base, delta, target)
    assert "does not verify" in caught.value.problem
    assert inodes_and_times(target) == marks
