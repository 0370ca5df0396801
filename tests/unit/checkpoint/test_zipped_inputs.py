"""Zipped inputs in whole commands: read in place, or unpacked in staging and reused after a killed run.

Processes send themselves real signals at a chosen piece of an archive or block of the stream.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deltaweights.checkpoint.zipped_folder.unpack import NotEnoughDisk
from deltaweights.errors import MalformedInput, Mismatch, TargetBusy
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.report import Report
from deltaweights.staging.location import TargetLocation, locate_target
from deltaweights.util.text import finished_of
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.identity import archive_of
from tests.support.limits import PATIENCE
from tests.support.pairs import save
from tests.support.prepared import prepare_merge
from tests.support.whole_runs import (
    BASE,
    DEFLATED,
    DELTA,
    MEMBERS,
    SHARD,
    STORED,
    FileWatcher,
    apply_arguments,
    cut_off_command,
    files_in,
    line_of,
    merge,
    names_in,
    run_cut_off,
    stamps_below,
    tree_of,
)


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_what_is_unpacked(merged_pair: Path, tmp_path: Path, method: int) -> None:
    """A stored archive is not unpacked; the files of a deflated one are in staging while they are read, and removed afterwards."""
    base = archive_of(save(BASE, tmp_path / "base"), method)
    place = locate_target(tmp_path / "out")
    report = FileWatcher(place.root)
    merge(base, merged_pair / "delta", place.target, report=report)
    unpacked = {f"unpacked/base/{name}" for name in MEMBERS}
    assert {name for name in report.seen["merging"] if name.startswith("unpacked")} == (
        unpacked if method == DEFLATED else set()
    )
    assert ("unpacking" in report.seen) == (method == DEFLATED)
    assert not place.root.exists()
    assert files_in(place.target) == files_in(merged_pair / "out")


class StampWatcher(Report):
    """Records the stamps of all unpacked files when the merge begins."""

    def __init__(self, place: TargetLocation) -> None:
        self.stamps: dict[str, tuple[int, int]] = {}
        self.notes: list[str] = []
        self._place = place

    def begin(self, doing: str, total: int) -> None:
        """Record the stamps at the start of the merge."""
        if doing == "merging":
            self.stamps = stamps_below(self._place.unpacked)

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)


def finish_again(merged_pair: Path, deflated_pair: tuple[Path, Path], place: TargetLocation) -> StampWatcher:
    """Rerun a killed merge; check that it gives the same files, rewrites no unpacked file, and leaves no staging."""
    left = {name: mark for name, mark in stamps_below(place.unpacked).items() if not name.endswith(".part")}
    report = StampWatcher(place)
    merge(*deflated_pair, place.target, report=report)
    assert left.items() <= report.stamps.items(), "an unpacked file was written again"
    assert files_in(place.target) == files_in(merged_pair / "out")
    assert not place.root.exists()
    assert names_in(place.target.parent) == ["base.zip", "delta.zip", place.target.name]
    return report


@pytest.mark.sampled(2)
@pytest.mark.parametrize("left", [0, 5, 13, 26, 40])
def test_row66_killed_while_unpacking(
    merged_pair: Path, deflated_pair: tuple[Path, Path], tmp_path: Path, left: int
) -> None:
    """After SIGKILL at any piece of either archive, the same command finishes without unpacking whole files again."""
    place = locate_target(tmp_path / "out")
    done = run_cut_off("unpacking", left, "SIGKILL", *apply_arguments(deflated_pair, place.target))
    assert done.returncode == -signal.SIGKILL
    assert place.unpacked.exists()
    assert not place.target.exists()
    assert (place.unpacked / "delta").exists() == (left > 30), "the base is unpacked first"
    finish_again(merged_pair, deflated_pair, place)


@pytest.mark.parametrize("left", [0, 17, 38])
def test_row66_killed_while_merging(
    merged_pair: Path, deflated_pair: tuple[Path, Path], tmp_path: Path, left: int
) -> None:
    """After SIGKILL at any block of the stream, the same command reuses the unpacked files and the finished shards."""
    place = locate_target(tmp_path / "out")
    done = run_cut_off("merging", left, "SIGKILL", *apply_arguments(deflated_pair, place.target), "--workers", "1")
    assert done.returncode == -signal.SIGKILL
    assert len(stamps_below(place.unpacked)) == 10
    finished, shards = len(list(place.fragments.iterdir())), len(list((merged_pair / "out").glob("*.safetensors")))
    assert 0 < finished < shards if left else finished == 0
    report = finish_again(merged_pair, deflated_pair, place)
    said = [note for note in report.notes if "finished already" in note]
    assert said == ([f"{finished_of(finished, shards, 'shard')} already"] if finished else [])


@pytest.mark.parametrize(("where", "left"), [("unpacking", 40), ("merging", 15)])
def test_row67_interrupted(
    merged_pair: Path, deflated_pair: tuple[Path, Path], tmp_path: Path, where: str, left: int
) -> None:
    """On SIGINT a run exits with 130; whole unpacked files are kept, unfinished ones removed."""
    place = locate_target(tmp_path / "out")
    done = run_cut_off(where, left, "SIGINT", *apply_arguments(deflated_pair, place.target), "-q")
    assert line_of(done, 130).startswith("interrupted")
    staged = stamps_below(place.unpacked)
    assert not any(name.endswith(".part") for name in staged)
    assert len(staged) == 10 if where == "merging" else 5 <= len(staged) < 10
    finish_again(merged_pair, deflated_pair, place)


@contextlib.contextmanager
def stopped(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process that stops itself, and wait until it has done so."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_while_one_unpacks(
    merged_pair: Path, deflated_pair: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    """While a run unpacks, other runs for the same target, and ``clean``, exit with 7; the first run finishes."""
    place = locate_target(tmp_path / "out")
    with stopped(cut_off_command("unpacking", 20, "SIGSTOP", *apply_arguments(deflated_pair, place.target))) as process:
        before = stamps_below(place.root)
        folders = (
            "apply",
            "--base",
            merged_pair / "base",
            "--delta",
            merged_pair / "delta",
            "--target",
            place.target,
            "-q",
        )
        for arguments in ((*apply_arguments(deflated_pair, place.target), "-q"), folders, ("clean", place.target)):
            assert line_of(run(*arguments), 7).startswith(f"{place.root}: ")
        with pytest.raises(TargetBusy):
            merge(*deflated_pair, place.target)
        assert before == stamps_below(place.root)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=PATIENCE) == 0
    assert files_in(place.target) == files_in(merged_pair / "out")


def wrong_delta(tmp_path: Path) -> Path:
    """Make a deflated archive of a delta that does not fit the base."""
    wrong = DELTA | {"model.layers.9.mlp.up_proj.weight": torch.zeros(3, 3).half()}
    return archive_of(save(wrong, tmp_path / "wrong", "safetensors"), DEFLATED)


def test_row58_a_refusal_leaves_no_staging(deflated_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """When the archives do not fit each other, everything that was unpacked is removed."""
    wrong = wrong_delta(tmp_path)
    before = tree_of(tmp_path)
    report = FileWatcher(locate_target(tmp_path / "out").root)
    with pytest.raises(Mismatch, match=r"layers\.9\.mlp\.up_proj\.weight"):
        merge(deflated_pair[0], wrong, tmp_path / "out", report=report)
    assert "unpacking" in report.seen
    assert before == tree_of(tmp_path)
    assert not locate_target(tmp_path / "out").root.exists()


def test_row58_a_refusal_clears_what_a_killed_run_left(deflated_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """What a killed run unpacked is also removed when the next run is refused."""
    place = locate_target(tmp_path / "out")
    run_cut_off("unpacking", 40, "SIGKILL", *apply_arguments(deflated_pair, place.target))
    wrong = wrong_delta(tmp_path)
    assert place.unpacked.exists()
    with pytest.raises(Mismatch):
        merge(deflated_pair[0], wrong, place.target)
    assert not place.root.exists()


def test_row49_a_damaged_archive_leaves_no_staging(deflated_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """An archive whose weights have another CRC-32 is refused while it is unpacked, and nothing of it is left."""
    with zipfile.ZipFile(deflated_pair[1]) as archive:
        member = archive.getinfo("delta/model-00002-of-00002.safetensors")
    recorded = member.CRC.to_bytes(4, "little")
    data = deflated_pair[1].read_bytes()
    assert data.count(recorded) == 2, "in the local header and in the central directory"
    deflated_pair[1].write_bytes(data.replace(recorded, (member.CRC ^ 1).to_bytes(4, "little")))
    where, expected = f"{deflated_pair[1]}/{member.filename}", f"{member.CRC ^ 1:08x}, as the file records"
    with refused(MalformedInput, where=where, found=f"CRC-32 {member.CRC:08x}", expected=expected):
        merge(*deflated_pair, tmp_path / "out")
    assert names_in(tmp_path) == ["base.zip", "delta.zip"]


@pytest.mark.parametrize("role", ["base", "delta"])
def test_row49_damage_in_a_stored_archive(merged_pair: Path, tmp_path: Path, run: Run, role: str) -> None:
    """Safetensors read in place are compared with the archive's CRC-32: damage exits with 3; else the check is recorded."""
    archive = archive_of(shutil.copytree(merged_pair / role, tmp_path / role), STORED)
    inputs = {"base": merged_pair / "base", "delta": merged_pair / "delta", role: archive}
    merge(inputs["base"], inputs["delta"], tmp_path / "out")
    (recorded,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"][role]["files"].values()
    assert recorded["checks"] == ["header", "crc32"]
    shutil.rmtree(tmp_path / "out")
    with zipfile.ZipFile(archive) as opened:
        member = opened.getinfo(f"{role}/model.safetensors")
    data = bytearray(archive.read_bytes())
    data[data.index(b"__metadata__") + member.file_size // 2] ^= 1
    archive.write_bytes(data)
    done = run(
        "apply", *(part for r, path in inputs.items() for part in (f"--{r}", path)), "--target", tmp_path / "out", "-q"
    )
    message = line_of(done, 3)
    assert message.startswith(f"{archive}/{member.filename}: ")
    assert f"expected {member.CRC:08x}, as the file records" in message
    assert names_in(tmp_path) == [role, f"{role}.zip"]


def free_disk(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """Report so many free bytes one call after the other, the last number for all further calls."""
    told, usage = iter(free), type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, next(told, free[-1])))


def weights_of(archive: Path) -> int:
    """Return the bytes of the weights files in an archive."""
    with zipfile.ZipFile(archive) as opened:
        return sum(i.file_size for i in opened.infolist() if i.filename.endswith((".bin", ".safetensors")))


def test_row62_no_room_for_the_result(
    deflated_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little disk for the unpacked files and the result together is refused before a byte is written."""
    size = weights_of(deflated_pair[0])
    for free in ((2 * size,), (10**9, 100)):  # too little for the base, and then for the delta
        free_disk(monkeypatch, *free)
        with refused(NotEnoughDisk):
            merge(*deflated_pair, tmp_path / "out")
        assert names_in(tmp_path) == ["base.zip", "delta.zip"]
    free_disk(monkeypatch, size + 10_000)
    inspect_checkpoint(deflated_pair[0])  # which makes nothing


def test_row62_no_room_keeps_what_a_killed_run_left(
    merged_pair: Path, deflated_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier run unpacked is kept when the disk has no room for more, and reused by the next run."""
    place = locate_target(tmp_path / "out")
    run_cut_off("unpacking", 40, "SIGKILL", *apply_arguments(deflated_pair, place.target))
    before = {name for name in stamps_below(place.unpacked) if not name.endswith(".part")}
    assert before
    free_disk(monkeypatch, 100)
    with refused(NotEnoughDisk):
        merge(*deflated_pair, place.target)
    assert before == stamps_below(place.unpacked).keys()
    monkeypatch.undo()
    merge(*deflated_pair, place.target)
    assert files_in(place.target) == files_in(merged_pair / "out")


def test_staging_inside_the_target(
    merged_pair: Path, deflated_pair: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    """With the target as the working folder, archives are unpacked inside it, and removed when the result is complete."""
    target = tmp_path / "out"
    target.mkdir()
    done = run(*apply_arguments(deflated_pair, "."), cwd=target)
    assert done.returncode == 0, done.stderr
    assert files_in(target) == files_in(merged_pair / "out")
    assert not any(name.startswith(".") for name in names_in(target))
    assert names_in(tmp_path) == ["base.zip", "delta.zip", "out"]


def test_row66_killed_with_staging_inside_the_target(
    merged_pair: Path, deflated_pair: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    """After SIGKILL there, the target holds nothing but staging; the same command finishes, also from another folder."""
    target = tmp_path / "out"
    target.mkdir()
    done = run_cut_off("unpacking", 20, "SIGKILL", *apply_arguments(deflated_pair, "."), cwd=target)
    assert done.returncode == -signal.SIGKILL
    assert names_in(target) == [".deltaweights"]
    again = run(*apply_arguments(deflated_pair, target))
    assert again.returncode == 0, again.stderr
    assert files_in(target) == files_in(merged_pair / "out")
    assert names_in(target) == sorted({*files_in(merged_pair / "out"), "manifest.json", "SHA256SUMS"})


def test_row69_an_archive_inside_the_target(deflated_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """An archive in the target folder is an input inside the output, and refused before it is unpacked."""
    before = tree_of(tmp_path)
    with refused(TargetBusy, where=tmp_path):
        merge(*deflated_pair, tmp_path)
    assert before == tree_of(tmp_path)


def test_a_dry_run_leaves_nothing(
    deflated_pair: tuple[Path, Path],
    run: Run,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dry run of deflated archives shows the plan of the folders that they hold, and leaves no files."""
    temporary = tmp_path_factory.mktemp("temporary")  # nobody else's files come and go there
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = tree_of(tmp_path)
    done = run(*apply_arguments(deflated_pair, tmp_path / "out"), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert before == tree_of(tmp_path)
    assert names_in(tmp_path) == ["base.zip", "delta.zip"]
    assert names_in(temporary) == []
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    with prepare_merge(base, delta, tmp_path / "out", max_shard_size=SHARD) as job:
        assert json.loads(done.stdout)["plan"] == job.plan.identity


def test_a_dry_run_keeps_what_a_killed_run_unpacked(deflated_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A dry run after a killed run removes nothing that the next run would reuse."""
    place = locate_target(tmp_path / "out")
    run_cut_off("merging", 17, "SIGKILL", *apply_arguments(deflated_pair, place.target))
    before = stamps_below(place.unpacked)
    assert len(before) == 10
    with prepare_merge(*deflated_pair, place.target, max_shard_size=SHARD):
        pass
    assert before == stamps_below(place.unpacked)


def test_a_target_that_is_taken_is_refused_before_unpacking(deflated_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A target with other content is refused before anything is unpacked."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    report = FileWatcher(tmp_path)
    with refused(TargetBusy, where=tmp_path / "out"):
        merge(*deflated_pair, tmp_path / "out", report=report)
    assert "unpacking" not in report.seen
