"""Archives that ``inspect`` and ``diff`` unpack into a temporary folder."""

from __future__ import annotations

from pathlib import Path

from deltaweights.diff.compare import diff_checkpoints
from deltaweights.jobs.inspect import inspect_checkpoint
from tests.conftest import Run
from tests.support.identity import archive_of
from tests.support.pairs import save
from tests.support.whole_runs import BASE, DEFLATED, MEMBERS, FileWatcher, line_of, names_in, run_cut_off


def test_inspect_unpacks_where_temporary_files_are(
    deflated_pair: tuple[Path, Path], temporary_folder: Path, run: Run
) -> None:
    """``inspect`` unpacks a deflated archive into a temporary folder, and removes it; the report is that of the zipped folder."""
    report = FileWatcher(temporary_folder)
    found = inspect_checkpoint(deflated_pair[0], report=report)
    assert report.seen["unpacking"] == set()
    assert names_in(temporary_folder) == []
    folder = save(BASE, temporary_folder.parent / "base")
    assert (found.tensors, found.identity) == (inspect_checkpoint(folder).tensors, inspect_checkpoint(folder).identity)
    hashed = FileWatcher(temporary_folder)
    inspect_checkpoint(deflated_pair[0], hash_inputs=True, report=hashed)
    members = {name.split("/", 2)[2] for name in hashed.seen["hashing the inputs"]}
    assert members == MEMBERS
    shown = run("inspect", deflated_pair[0])
    assert (shown.returncode, shown.stderr) == (0, "")
    assert names_in(temporary_folder) == []


def test_row67_inspect_that_is_interrupted(deflated_pair: tuple[Path, Path], temporary_folder: Path) -> None:
    """``inspect`` leaves no temporary files when SIGINT ends it while it unpacks."""
    assert line_of(run_cut_off("unpacking", 10, "SIGINT", "inspect", deflated_pair[0]), 130) == "interrupted"
    assert names_in(temporary_folder) == []


def test_diff_unpacks_both(deflated_pair: tuple[Path, Path], temporary_folder: Path, run: Run) -> None:
    """``diff`` unpacks two deflated archives into separate temporary folders, and removes them."""
    same = save(BASE, temporary_folder.parent / "same", "safetensors", 1)
    report = FileWatcher(temporary_folder)
    assert diff_checkpoints(deflated_pair[0], archive_of(same, DEFLATED), report=report).identical
    comparing = {name.split("/")[1] for name in report.seen["comparing"]}
    assert len(comparing) == 2
    assert names_in(temporary_folder) == []
    done = run("diff", deflated_pair[0], deflated_pair[1], "-q")
    assert (done.returncode, done.stdout.splitlines()[0]) == (6, "different: 41 of 41 tensors")
    assert names_in(temporary_folder) == []
