"""What a run may write to, and what ``--overwrite`` may replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.errors import TargetBusy
from deltaweights.manifest.verify import verify
from deltaweights.staging.location import locate_target
from tests.support.errors import refused
from tests.support.killed_merges import inodes_and_times, merge_small, names_in, small_pair
from tests.support.merging import files_of


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
    before, beside = inodes_and_times(target), names_in(tmp_path)
    with refused(TargetBusy, problem="already there, with other content", where=target):
        merge_small(base, delta, target)
    assert inodes_and_times(target) == before
    assert names_in(tmp_path) == beside
    assert verify(target).ok


def test_a_file_in_place_of_the_target_is_refused(tmp_path: Path) -> None:
    """A file under the target's name is never replaced, with --overwrite neither."""
    base, delta = small_pair(tmp_path)
    (tmp_path / "merged").write_text("mine")
    for overwrite in (False, True):
        with refused(TargetBusy, where=tmp_path / "merged"):
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


def test_overwrite_replaces_a_checkpoint(tmp_path: Path) -> None:
    """With overwrite a model gives way to the new one as a whole; nothing of the old one remains in it or beside it."""
    target = tmp_path / "merged"
    merge_small(*small_pair(tmp_path, 1), target, dtype="float32")
    (target / "model.sig").write_text("of the old model")
    base, delta = small_pair(tmp_path, 2)
    result = merge_small(base, delta, target, overwrite=True)
    assert result.status == "merged"
    assert files_of(target) == files_of(Path(merge_small(base, delta, tmp_path / "fresh").target))
    assert not locate_target(target).root.exists()


def test_overwrite_refuses_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    """With overwrite, a folder that shows no sign of a model is refused with 7 and keeps its files."""
    base, delta = small_pair(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with refused(TargetBusy, where=tmp_path / "home", found="thesis.tex"):
        merge_small(base, delta, tmp_path / "home", overwrite=True)
    assert files_of(tmp_path / "home") == {"thesis.tex": b"years"}
