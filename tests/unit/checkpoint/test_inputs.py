"""Inputs as people hold them, through whole commands: every container gives the same files, and nothing unpacked is left.

Processes are cut off from within, at a chosen piece of an archive or block of the stream, by the signals that really end them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import InputOutputError, MalformedInput, Mismatch, TargetBusy, UsageError
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.verify import verify
from deltaweights.merge.base_proof import LIKELY_CAUSES, OTHER_CAUSE
from deltaweights.report import Report
from deltaweights.staging.location import TargetLocation, locate_target
from tests.conftest import Run
from tests.support.fork_server import run as forked
from tests.support.limits import PATIENCE
from tests.support.meta import save_meta
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save
from tests.support.prepared import prepare_merge
from tests.unit.checkpoint.test_folder import POINTER
from tests.unit.recipes.test_identity import Notes, archive_of, cached, counted_reads

Done = subprocess.CompletedProcess[str]
Files = dict[str, bytes]

BASE = base_tensors(layers=4)
DELTA = delta_tensors(BASE)
BARE = {name: tensor for name, tensor in DELTA.items() if "mm_projector" not in name}
"""The delta without its projector, for which Meta's format has no name."""

PROJECTOR = {name: tensor for name, tensor in DELTA.items() if "mm_projector" in name}

SHARD = 30_000
"""Bytes per shard, so that there are several, and an index."""

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def weights_in(folder: Path) -> Files:
    """Return the shards and the index of a result."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("model*"))}


def files_in(folder: Path) -> Files:
    """Return all files of a result but those that name the inputs' files."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return {name: data for name, data in files.items() if name not in {"manifest.json", "SHA256SUMS"}}


def names_in(folder: Path) -> list[str]:
    """Return what lies in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def tree_of(folder: Path) -> Files:
    """Return every file below a folder, and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def line_of(done: Done, code: int) -> str:
    """Return the one line of error."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line.removeprefix("deltaweights: error: ")


merge = partial(apply_delta, max_shard_size=SHARD)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the pair in safetensors, ``base``, ``delta`` and ``bare``, and what it gives: ``out`` and ``out-bare``; only read."""
    folder = tmp_path_factory.mktemp("plain")
    save(BASE, folder / "base", "safetensors", 1)
    save(DELTA, folder / "delta", "safetensors", 1)
    save(BARE, folder / "bare", "safetensors", 1)
    merge(folder / "base", folder / "delta", folder / "out")
    merge(folder / "base", folder / "bare", folder / "out-bare")
    assert same_bits(load(folder / "out"), reference(BASE, DELTA))
    assert len(weights_in(folder / "out")) > 4
    return folder


class Watch(Report):
    """Notes which files lie below a folder whenever work begins."""

    def __init__(self, folder: Path) -> None:
        self.seen: dict[str, set[str]] = {}
        self.notes: list[str] = []
        self._folder = folder

    def begin(self, doing: str, total: int) -> None:
        """Look, before a byte of the work is done; the last look at work of one kind counts."""
        self.seen[doing] = {str(path.relative_to(self._folder)) for path in self._folder.rglob("*") if path.is_file()}

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.notes.append(text)


# Every container.

Hold = Callable[[Tensors, Path], Path]


def alone(tensors: Tensors, folder: Path, name: str) -> Path:
    """Save one torch file of this name, and nothing beside it."""
    folder.mkdir()
    torch.save(tensors, folder / name)
    return folder / name


def legacy(tensors: Tensors, folder: Path) -> Path:
    """Save a checkpoint in the format that torch wrote before it took to zip."""
    save(tensors, folder, "torch", 1)
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


FOLDERS: dict[str, Hold] = {
    "torch-1": lambda tensors, folder: save(tensors, folder, "torch", 1),
    "torch-2": lambda tensors, folder: save(tensors, folder, "torch", 2),
    "torch-33": lambda tensors, folder: save(tensors, folder, "torch", 33),
    "safetensors-3": lambda tensors, folder: save(tensors, folder, "safetensors", 3),
    "legacy-torch": legacy,
    "hub-cache": lambda tensors, folder: cached(save(tensors, folder), {}),
    "stored-zip": lambda tensors, folder: archive_of(save(tensors, folder), STORED),
    "stored-zip-of-safetensors": lambda tensors, folder: archive_of(save(tensors, folder, "safetensors"), STORED),
    "stored-zip-of-legacy": lambda tensors, folder: archive_of(legacy(tensors, folder), STORED),
    "deflated-zip": lambda tensors, folder: archive_of(save(tensors, folder), DEFLATED),
    "deflated-zip-of-legacy": lambda tensors, folder: archive_of(legacy(tensors, folder), DEFLATED),
}
"""Those that hold configuration and tokenizer, too."""

LONE: dict[str, Hold] = {
    "pth": partial(alone, name="weights.pth"),
    "pt": partial(alone, name="weights.pt"),
    "renamed-torch-zip": partial(alone, name="final-checkpoint"),
    "renamed-torch-zip-with-a-dot": partial(alone, name="vicuna.v1"),
}

META: dict[str, Hold] = {
    "meta-1": lambda tensors, folder: save_meta(tensors, folder, 1),
    "meta-2": lambda tensors, folder: save_meta(tensors, folder, 2),
    "meta-4": lambda tensors, folder: save_meta(tensors, folder, 4),
    "stored-zip-of-meta": lambda tensors, folder: archive_of(save_meta(tensors, folder, 2), STORED),
    "deflated-zip-of-meta": lambda tensors, folder: archive_of(save_meta(tensors, folder, 2), DEFLATED),
}


@pytest.mark.parametrize("hold", (FOLDERS | LONE | META).values(), ids=FOLDERS | LONE | META)
def test_row36_every_container_of_a_base(plain: Path, tmp_path: Path, hold: Hold) -> None:
    """Whatever a base is held in, every file of the result is that of safetensors; nothing of the base's is left beside it."""
    base = hold(BASE, tmp_path / "base")
    before = tree_of(tmp_path)
    merge(base, plain / "delta", tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(plain / "out")
    assert verify(tmp_path / "out").ok
    shutil.rmtree(tmp_path / "out")
    assert before == tree_of(tmp_path)


@pytest.mark.parametrize("hold", FOLDERS.values(), ids=FOLDERS)
def test_row36_every_container_of_a_delta(plain: Path, tmp_path: Path, hold: Hold) -> None:
    """Whatever a delta is held in, every file of the result is that of safetensors, configuration and tokenizer included."""
    delta = hold(DELTA, tmp_path / "delta")
    before = tree_of(tmp_path)
    merge(plain / "base", delta, tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(plain / "out")
    shutil.rmtree(tmp_path / "out")
    assert before == tree_of(tmp_path)


@pytest.mark.parametrize("hold", LONE.values(), ids=LONE)
def test_row36_a_delta_in_a_lone_file(plain: Path, tmp_path: Path, hold: Hold) -> None:
    """A delta that is a file of its own name gives the same weights; no configuration comes along, and that is said."""
    delta, report = hold(DELTA, tmp_path / "delta"), Notes()
    (delta.parent / "config.json").write_text('{"model_type": "of another model"}')
    merge(plain / "base", delta, tmp_path / "out", report=report)
    assert weights_in(tmp_path / "out") == weights_in(plain / "out")
    assert files_in(tmp_path / "out").keys() - weights_in(tmp_path / "out") == {"DELTAWEIGHTS_NOTICE.txt", "README.md"}
    assert "the delta is a single file: no configuration or tokenizer is copied" in report.notes


@pytest.mark.parametrize("hold", META.values(), ids=META)
def test_row36_a_delta_in_metas_format(plain: Path, tmp_path: Path, hold: Hold) -> None:
    """A delta in Meta's format, of any number of parts, has the rows that converting it would give."""
    merge(plain / "base", hold(BARE, tmp_path / "delta"), tmp_path / "out")
    assert weights_in(tmp_path / "out") == weights_in(plain / "out-bare")


def test_a_part_of_metas_stands_for_all(plain: Path, tmp_path: Path) -> None:
    """Any one part of a base in Meta's format may be given for the whole."""
    folder = save_meta(BASE, tmp_path / "base", 4)
    for number in (0, 3):
        merge(folder / f"consolidated.{number:02d}.pth", plain / "delta", tmp_path / f"out-{number}")
        assert weights_in(tmp_path / f"out-{number}") == weights_in(plain / "out")


def test_both_inputs_in_archives(plain: Path, tmp_path: Path) -> None:
    """Two deflated archives, of one name in two folders, are unpacked apart and give the same files."""
    for role, tensors in (("base", BASE), ("delta", DELTA)):
        (tmp_path / role).mkdir()
        archive_of(save(tensors, tmp_path / role / "model"), DEFLATED)
        shutil.rmtree(tmp_path / role / "model")
    merge(tmp_path / "base" / "model.zip", tmp_path / "delta" / "model.zip", tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(plain / "out")
    assert names_in(tmp_path) == ["base", "delta", "out"]


def test_the_plan_is_that_of_what_the_archive_holds(tmp_path: Path) -> None:
    """A folder and archives of it have one plan: what was merged from the archive is complete for the folder."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta")
    made = merge(archive_of(base, DEFLATED), archive_of(delta, STORED), tmp_path / "out")
    again = merge(base, delta, tmp_path / "out")
    assert (made.status, again.status) == ("merged", "already complete")
    back = merge(base.with_suffix(".zip"), delta.with_suffix(".zip"), tmp_path / "out")
    assert (back.status, back.manifest_sha256) == ("already complete", made.manifest_sha256)
    assert names_in(tmp_path) == ["base", "base.zip", "delta", "delta.zip", "out"]


# Read in place, or unpacked in staging.

MEMBERS = {
    "config.json",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json",
    "tokenizer_config.json",
}


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_what_is_unpacked(plain: Path, tmp_path: Path, method: int) -> None:
    """Of a stored archive nothing is unpacked; of a deflated one its files are in staging while they are read, and then gone."""
    base = archive_of(save(BASE, tmp_path / "base"), method)
    place = locate_target(tmp_path / "out")
    report = Watch(place.root)
    merge(base, plain / "delta", place.target, report=report)
    unpacked = {f"unpacked/base/{name}" for name in MEMBERS}
    assert {name for name in report.seen["merging"] if name.startswith("unpacked")} == (
        unpacked if method == DEFLATED else set()
    )
    assert ("unpacking" in report.seen) == (method == DEFLATED)
    assert not place.root.exists()
    assert files_in(place.target) == files_in(plain / "out")


CUT = """
import itertools, os, signal, sys, time
from deltaweights.checkpoint.zipped_folder import unpack
from deltaweights.checkpoint.zip_format import member_content
from deltaweights.cli import main
from deltaweights.merge import stream

where, left, number = sys.argv[1], int(sys.argv[2]), signal.Signals[sys.argv[3]]
del sys.argv[1:4]
count = itertools.count()

def tick():
    if next(count) == left:
        os.kill(os.getpid(), number)
        if number == signal.SIGINT:
            time.sleep(0.5)  # until the main thread, which handles it, has told the workers

if where == "unpacking":
    member_content.PIECE = 4096
    whole = unpack.read_member
    def read_member(file, member):
        for piece in whole(file, member):
            tick()
            yield piece
    unpack.read_member = read_member
else:
    read = stream.read_block
    def read_block(*arguments):
        tick()
        return read(*arguments)
    stream.read_block = read_block
main()
"""
"""Runs ``deltaweights`` and sends itself a signal at the N-th piece that is unpacked, or the N-th block that is merged."""


def cut_command(where: str, left: int, number: str, *arguments: str | Path) -> list[str]:
    """Return the command that is cut off."""
    return [sys.executable, "-c", CUT, where, str(left), number, *map(str, arguments)]


def cut_off(where: str, left: int, number: str, *arguments: str | Path, **options: Any) -> Done:
    """Run ``deltaweights`` until it is cut off."""
    command = cut_command(where, left, number, *arguments)
    return forked(command, **options)


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, Path]:
    """Make the pair as deflated archives, in a folder with nothing else in it."""
    base = archive_of(save(BASE, tmp_path / "base", "torch", 2), DEFLATED)
    delta = archive_of(save(DELTA, tmp_path / "delta", "safetensors", 2), DEFLATED)
    for folder in (tmp_path / "base", tmp_path / "delta"):
        shutil.rmtree(folder)
    return base, delta


def apply_arguments(archives: tuple[Path, Path], target: Path | str) -> list[str | Path]:
    """Return the arguments of a merge of the archives."""
    return ["apply", "--base", archives[0], "--delta", archives[1], "--target", target, "--max-shard-size", str(SHARD)]


def marks_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what shows whether files were written again, by their paths."""
    files = ((str(path.relative_to(folder)), path.stat()) for path in folder.rglob("*") if path.is_file())
    return {name: (found.st_ino, found.st_mtime_ns) for name, found in files}


class Marks(Report):
    """Keeps the marks of what is unpacked when the stream begins."""

    def __init__(self, place: TargetLocation) -> None:
        self.marks: dict[str, tuple[int, int]] = {}
        self.notes: list[str] = []
        self._place = place

    def begin(self, doing: str, total: int) -> None:
        """Look at the start of the merge."""
        if doing == "merging":
            self.marks = marks_below(self._place.unpacked)

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.notes.append(text)


def goes_on(plain: Path, archives: tuple[Path, Path], place: TargetLocation) -> Marks:
    """Run the merge again after it was cut off; check that it gives the same files, writes none again, and leaves no staging."""
    left = {name: mark for name, mark in marks_below(place.unpacked).items() if not name.endswith(".part")}
    report = Marks(place)
    merge(*archives, place.target, report=report)
    assert left.items() <= report.marks.items(), "an unpacked file was written again"
    assert files_in(place.target) == files_in(plain / "out")
    assert not place.root.exists()
    assert names_in(place.target.parent) == ["base.zip", "delta.zip", place.target.name]
    return report


@pytest.mark.parametrize("left", [0, 5, 13, 26, 40])
def test_row66_killed_while_unpacking(plain: Path, archives: tuple[Path, Path], tmp_path: Path, left: int) -> None:
    """Killed (SIGKILL) at any piece of either archive, the same command finishes, and unpacks nothing again that was whole."""
    place = locate_target(tmp_path / "out")
    done = cut_off("unpacking", left, "SIGKILL", *apply_arguments(archives, place.target))
    assert done.returncode == -signal.SIGKILL
    assert place.unpacked.exists()
    assert not place.target.exists()
    assert (place.unpacked / "delta").exists() == (left > 30), "the base is unpacked first"
    goes_on(plain, archives, place)


@pytest.mark.parametrize("left", [0, 17, 38])
def test_row66_killed_while_merging(plain: Path, archives: tuple[Path, Path], tmp_path: Path, left: int) -> None:
    """Killed at any block of the stream, the same command reuses what is unpacked, and the shards that were finished."""
    place = locate_target(tmp_path / "out")
    done = cut_off("merging", left, "SIGKILL", *apply_arguments(archives, place.target), "--workers", "1")
    assert done.returncode == -signal.SIGKILL
    assert len(marks_below(place.unpacked)) == 10
    finished, shards = len(list(place.fragments.iterdir())), len(list((plain / "out").glob("*.safetensors")))
    assert 0 < finished < shards if left else finished == 0
    report = goes_on(plain, archives, place)
    said = [note for note in report.notes if "shards are finished already" in note]
    assert said == ([f"{finished} of {shards} shards are finished already"] if finished else [])


@pytest.mark.parametrize(("where", "left"), [("unpacking", 40), ("merging", 15)])
def test_row67_interrupted(plain: Path, archives: tuple[Path, Path], tmp_path: Path, where: str, left: int) -> None:
    """On SIGINT a run ends with 130 and one line that says how to go on; whole unpacked files stay, unfinished ones do not."""
    place = locate_target(tmp_path / "out")
    done = cut_off(where, left, "SIGINT", *apply_arguments(archives, place.target), "-q")
    assert line_of(done, 130) == "interrupted; run the same command again to continue"
    staged = marks_below(place.unpacked)
    assert not any(name.endswith(".part") for name in staged)
    assert len(staged) == 10 if where == "merging" else 5 <= len(staged) < 10
    goes_on(plain, archives, place)


@contextlib.contextmanager
def stopped(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process that stops itself, and wait until it has."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_while_one_unpacks(plain: Path, archives: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    """While a run unpacks, another for the same target ends with 7, archive or not, and so does a clean-up; the first finishes."""
    place = locate_target(tmp_path / "out")
    with stopped(cut_command("unpacking", 20, "SIGSTOP", *apply_arguments(archives, place.target))) as process:
        before = marks_below(place.root)
        folders = ("apply", "--base", plain / "base", "--delta", plain / "delta", "--target", place.target, "-q")
        for arguments in ((*apply_arguments(archives, place.target), "-q"), folders, ("clean", place.target)):
            assert line_of(run(*arguments), 7) == (
                f"{place.root}: another run is writing to this folder; wait for it to end"
            )
        with pytest.raises(TargetBusy):
            merge(*archives, place.target)
        assert before == marks_below(place.root)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=PATIENCE) == 0
    assert files_in(place.target) == files_in(plain / "out")


def wrong_delta(tmp_path: Path) -> Path:
    """Make a deflated archive of a delta that does not fit."""
    wrong = DELTA | {"model.layers.9.mlp.up_proj.weight": torch.zeros(3, 3).half()}
    return archive_of(save(wrong, tmp_path / "wrong", "safetensors"), DEFLATED)


def test_row58_a_refusal_leaves_no_staging(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """Archives that do not fit each other are refused with 4, and gigabytes that were unpacked for it are gone."""
    wrong = wrong_delta(tmp_path)
    before = tree_of(tmp_path)
    report = Watch(locate_target(tmp_path / "out").root)
    with pytest.raises(Mismatch, match=r"layers\.9\.mlp\.up_proj\.weight: is in the delta"):
        merge(archives[0], wrong, tmp_path / "out", report=report)
    assert "unpacking" in report.seen
    assert before == tree_of(tmp_path)
    assert not locate_target(tmp_path / "out").root.exists()


def test_row58_a_refusal_clears_what_a_killed_run_left(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """What a killed run unpacked is gone, too, when the next run is refused."""
    place = locate_target(tmp_path / "out")
    cut_off("unpacking", 40, "SIGKILL", *apply_arguments(archives, place.target))
    wrong = wrong_delta(tmp_path)
    assert place.unpacked.exists()
    with pytest.raises(Mismatch):
        merge(archives[0], wrong, place.target)
    assert not place.root.exists()


def test_row49_a_damaged_archive_leaves_no_staging(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """An archive whose weights are not what it records is refused with 3 after it was unpacked, and nothing of it is left."""
    with zipfile.ZipFile(archives[1]) as archive:
        member = archive.getinfo("delta/model-00002-of-00002.safetensors")
    recorded = member.CRC.to_bytes(4, "little")
    data = archives[1].read_bytes()
    assert data.count(recorded) == 2, "in the local header and in the central directory"
    archives[1].write_bytes(data.replace(recorded, (member.CRC ^ 1).to_bytes(4, "little")))
    with pytest.raises(MalformedInput) as caught:
        merge(*archives, tmp_path / "out")
    where = f"{archives[1]}/{member.filename}"
    facts = f"found CRC-32 {member.CRC:08x}, expected {member.CRC ^ 1:08x}, as the file records"
    assert str(caught.value) == f"{where}: stored bytes are damaged: {facts}; fetch the archive again"
    assert names_in(tmp_path) == ["base.zip", "delta.zip"]


@pytest.mark.parametrize("role", ["base", "delta"])
def test_row49_damage_in_a_stored_archive(plain: Path, tmp_path: Path, run: Run, role: str) -> None:
    """Safetensors that are read in place are held against the archive's CRC-32: 3, and nothing is made; sound, that is recorded."""
    archive = archive_of(shutil.copytree(plain / role, tmp_path / role), STORED)
    inputs = {"base": plain / "base", "delta": plain / "delta", role: archive}
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
    assert message.startswith(f"{archive}/{member.filename}: stored bytes are damaged: found CRC-32 ")
    assert message.endswith(f"expected {member.CRC:08x}, as the file records; fetch the file again")
    assert names_in(tmp_path) == [role, f"{role}.zip"]


def free_disk(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """Have the disk say that so many bytes are free, the last number again and again."""
    told, usage = iter(free), type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, next(told, free[-1])))


def weights_of(archive: Path) -> int:
    """Return the bytes of the weights files in an archive."""
    with zipfile.ZipFile(archive) as opened:
        return sum(i.file_size for i in opened.infolist() if i.filename.endswith((".bin", ".safetensors")))


def test_row62_no_room_for_the_result(
    archives: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for what is unpacked, but not for a result as large, is refused with 5 before a byte, and nothing of either is left."""
    size = weights_of(archives[0])
    for free in ((2 * size,), (10**9, 100)):  # too little for the base, and then for the delta
        free_disk(monkeypatch, *free)
        with pytest.raises(InputOutputError, match="not enough free disk to unpack the archive") as caught:
            merge(*archives, tmp_path / "out")
        assert caught.value.exit_code == 5
        assert names_in(tmp_path) == ["base.zip", "delta.zip"]
    free_disk(monkeypatch, size + 10_000)
    inspect_checkpoint(archives[0])  # which makes nothing


def test_row62_no_room_keeps_what_a_killed_run_left(
    plain: Path, archives: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier run unpacked stays when there is no room for more, and the next run goes on with it."""
    place = locate_target(tmp_path / "out")
    cut_off("unpacking", 40, "SIGKILL", *apply_arguments(archives, place.target))
    before = {name for name in marks_below(place.unpacked) if not name.endswith(".part")}
    assert before
    free_disk(monkeypatch, 100)
    with pytest.raises(InputOutputError, match="not enough free disk to unpack the archive"):
        merge(*archives, place.target)
    assert before == marks_below(place.unpacked).keys()
    monkeypatch.undo()
    merge(*archives, place.target)
    assert files_in(place.target) == files_in(plain / "out")


# What stands in place of a file that is copied.

INSTEAD = {
    "row18-config-pointer": ("config.json", POINTER, "a git-LFS pointer"),
    "row18-tokenizer-pointer": ("tokenizer.model", POINTER, "a git-LFS pointer"),
    "row18-readme-pointer": ("README.md", POINTER, "a git-LFS pointer"),
    "row18-licence-pointer": ("LICENSE", POINTER, "a git-LFS pointer"),
    "row18-config-page": ("config.json", "<!DOCTYPE html>", "an HTML page"),
    "row18-tokenizer-page": ("tokenizer.model", "\n<html>", "an HTML page"),
    "row18-json-page": ("tokenizer.json", "<html>", "an HTML page"),
    "row18-json-empty": ("added_tokens.json", "", "an empty file"),
}


@pytest.mark.parametrize(("name", "content", "found"), INSTEAD.values(), ids=INSTEAD)
def test_what_is_no_companion(plain: Path, tmp_path: Path, name: str, content: str, found: str) -> None:
    """A pointer, or a page in place of a configuration or a tokenizer, is refused with 3 and what to do, not copied."""
    delta = shutil.copytree(plain / "delta", tmp_path / "delta")
    (delta / name).write_text(content)
    with pytest.raises(MalformedInput) as caught:
        merge(plain / "base", delta, tmp_path / "out")
    assert str(caught.value).startswith(f"{delta / name}: not what its name says: found {found}; ")
    assert names_in(tmp_path) == ["delta"]


def test_text_may_begin_as_it_likes(plain: Path, tmp_path: Path) -> None:
    """A README that begins as a page, a template with a brace and a vocabulary in JSON are copied as they are."""
    delta = shutil.copytree(plain / "delta", tmp_path / "delta")
    texts = {"README.md": "<html><h1>", "chat_template.jinja": "{% if x %}", "vocab.json": ' {"a": 1}', "LICENSE": ""}
    for name, text in texts.items():
        (delta / name).write_text(text)
    merge(plain / "base", delta, tmp_path / "out")
    texts["DELTA_README.md"] = texts.pop("README.md")
    assert {name: (tmp_path / "out" / name).read_text() for name in texts} == texts


def test_staging_inside_the_target(plain: Path, archives: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    """With the target as the working folder, archives are unpacked in it, and gone when the result stands there."""
    target = tmp_path / "out"
    target.mkdir()
    done = run(*apply_arguments(archives, "."), cwd=target)
    assert done.returncode == 0, done.stderr
    assert files_in(target) == files_in(plain / "out")
    assert not any(name.startswith(".") for name in names_in(target))
    assert names_in(tmp_path) == ["base.zip", "delta.zip", "out"]


def test_row66_killed_with_staging_inside_the_target(
    plain: Path, archives: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    """Killed there while unpacking, the target holds nothing but staging; the same command, from elsewhere too, finishes."""
    target = tmp_path / "out"
    target.mkdir()
    done = cut_off("unpacking", 20, "SIGKILL", *apply_arguments(archives, "."), cwd=target)
    assert done.returncode == -signal.SIGKILL
    assert names_in(target) == [".deltaweights"]
    again = run(*apply_arguments(archives, target))
    assert again.returncode == 0, again.stderr
    assert files_in(target) == files_in(plain / "out")
    assert names_in(target) == sorted({*files_in(plain / "out"), "manifest.json", "SHA256SUMS"})


def test_row69_an_archive_inside_the_target(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """An archive in the target folder is an input inside the output: 7, before it is unpacked."""
    before = tree_of(tmp_path)
    with pytest.raises(TargetBusy, match="output and input overlap"):
        merge(*archives, tmp_path)
    assert before == tree_of(tmp_path)


def test_a_dry_run_leaves_nothing(archives: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    """A dry run of deflated archives shows the plan of the folders that they hold, and leaves nothing anywhere."""
    before, temporary = tree_of(tmp_path), names_in(Path(tempfile.gettempdir()))
    done = run(*apply_arguments(archives, tmp_path / "out"), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert before == tree_of(tmp_path)
    assert names_in(tmp_path) == ["base.zip", "delta.zip"]
    assert [name for name in names_in(Path(tempfile.gettempdir())) if name not in temporary] == []
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta", "safetensors")
    with prepare_merge(base, delta, tmp_path / "out", max_shard_size=SHARD) as job:
        assert json.loads(done.stdout)["plan"] == job.plan.identity


def test_a_dry_run_keeps_what_a_killed_run_unpacked(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """A dry run between a killed run and the next takes nothing away that the next would reuse."""
    place = locate_target(tmp_path / "out")
    cut_off("merging", 17, "SIGKILL", *apply_arguments(archives, place.target))
    before = marks_below(place.unpacked)
    assert len(before) == 10
    with prepare_merge(*archives, place.target, max_shard_size=SHARD):
        pass
    assert before == marks_below(place.unpacked)


def test_a_target_that_is_taken_is_refused_before_unpacking(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """A target with other content is refused with 7 before gigabytes are unpacked for it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    report = Watch(tmp_path)
    with pytest.raises(TargetBusy, match="already there, with other content"):
        merge(*archives, tmp_path / "out", report=report)
    assert "unpacking" not in report.seen


# Unpacked to be looked at.


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the one for temporary files, of this process and of those that it starts."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_inspect_unpacks_where_temporary_files_are(archives: tuple[Path, Path], scratch: Path, run: Run) -> None:
    """A deflated archive is inspected from a temporary folder that is gone afterwards; the report is that of its folder."""
    report = Watch(scratch)
    found = inspect_checkpoint(archives[0], report=report)
    assert report.seen["unpacking"] == set()
    assert names_in(scratch) == []
    folder = save(BASE, scratch.parent / "base")
    assert (found.tensors, found.identity) == (inspect_checkpoint(folder).tensors, inspect_checkpoint(folder).identity)
    hashed = Watch(scratch)
    inspect_checkpoint(archives[0], hash_inputs=True, report=hashed)
    members = {name.split("/", 2)[2] for name in hashed.seen["hashing the inputs"]}
    assert members == MEMBERS
    shown = run("inspect", archives[0])
    assert (shown.returncode, shown.stderr) == (0, "")
    assert names_in(scratch) == []


def test_row67_inspect_that_is_interrupted(archives: tuple[Path, Path], scratch: Path) -> None:
    """An inspection that SIGINT ends while it unpacks leaves nothing where temporary files are."""
    assert line_of(cut_off("unpacking", 10, "SIGINT", "inspect", archives[0]), 130) == "interrupted"
    assert names_in(scratch) == []


def test_diff_unpacks_both(archives: tuple[Path, Path], scratch: Path, run: Run) -> None:
    """Two deflated archives are compared from temporary folders of their own, which are gone afterwards, alike or not."""
    same = save(BASE, scratch.parent / "same", "safetensors", 1)
    report = Watch(scratch)
    assert diff_checkpoints(archives[0], archive_of(same, DEFLATED), report=report).identical
    comparing = {name.split("/")[1] for name in report.seen["comparing"]}
    assert len(comparing) == 2
    assert names_in(scratch) == []
    done = run("diff", archives[0], archives[1], "-q")
    assert (done.returncode, done.stdout.splitlines()[0]) == (6, "different: 41 of 41 tensors")
    assert names_in(scratch) == []


# The projector beside the shards.


def beside(folder: Path, projector: Tensors, tensors: Tensors = BARE) -> Path:
    """Save a delta's shards, and the projector in a file of its own."""
    save(tensors, folder)
    torch.save(projector, folder / "mm_projector.bin")
    return folder


SPELLINGS = {
    "as-in-the-model": lambda name: name,
    "without-model": lambda name: name.removeprefix("model."),
    "with-more-before-it": lambda name: f"base_model.model.{name}",
}


@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS)
def test_the_projector_beside_the_shards(plain: Path, tmp_path: Path, spelled: Callable[[str], str]) -> None:
    """A projector beside shards that have none is merged as if it were in them, whatever stands before its names."""
    delta = beside(tmp_path / "delta", {spelled(name): tensor for name, tensor in PROJECTOR.items()})
    report = Notes()
    result = merge(plain / "base", delta, tmp_path / "out", report=report, hash_inputs=True)
    assert files_in(tmp_path / "out") == files_in(plain / "out")
    assert result.fates["copy"] == 2
    recorded = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]["delta"]["files"]
    assert "sha256" in recorded["mm_projector.bin"]
    assert not any("not copied" in note for note in report.notes)


def test_the_projector_beside_an_index(plain: Path, tmp_path: Path) -> None:
    """Who names the index means the whole checkpoint, too."""
    delta = beside(tmp_path / "delta", PROJECTOR)
    merge(plain / "base", next(delta.glob("*.index.json")), tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(plain / "out")


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_the_projector_in_an_archive(plain: Path, tmp_path: Path, method: int) -> None:
    """The same holds in an archive, read in place or unpacked, and where only the projector is deflated."""
    folder = beside(tmp_path / "delta", PROJECTOR)
    merge(plain / "base", archive_of(folder, method), tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(plain / "out")
    mixed = tmp_path / "mixed.zip"
    with zipfile.ZipFile(mixed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"d/{path.name}", DEFLATED if path.name == "mm_projector.bin" else STORED)
    merge(plain / "base", mixed, tmp_path / "out-mixed")
    assert files_in(tmp_path / "out-mixed") == files_in(plain / "out")


def test_the_projector_in_the_shards_wins(plain: Path, tmp_path: Path) -> None:
    """Where the shards hold a projector the one beside them is not even opened, and is named as not copied."""
    delta, report = save(DELTA, tmp_path / "delta"), Notes()
    (delta / "mm_projector.bin").write_bytes(b"no torch file")
    merge(plain / "base", delta, tmp_path / "out", report=report)
    assert files_in(tmp_path / "out") == files_in(plain / "out")
    assert "not copied from the delta: mm_projector.bin" in report.notes


NO_PROJECTORS = {
    "something-else": ({"vision.weight": torch.zeros(2)}, "vision.weight"),
    "more-than-a-projector": (PROJECTOR | {"x": torch.zeros(2)}, "model.mm_projector.weight, model.mm_projector.bias, x"),
    "a-bias-alone": ({"mm_projector.bias": torch.zeros(2)}, "mm_projector.bias"),
    "two-of-one-name": (
        {"model.mm_projector.weight": torch.zeros(2, 2), "mm_projector.weight": torch.zeros(2, 2)},
        "model.mm_projector.weight, mm_projector.weight",
    ),
    "of-another-depth": ({"model.mm_projector.0.weight": torch.zeros(2, 2)}, "model.mm_projector.0.weight"),
    "nothing": ({}, "nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "found"), NO_PROJECTORS.values(), ids=NO_PROJECTORS)
def test_a_file_that_is_no_projector(plain: Path, tmp_path: Path, tensors: Tensors, found: str) -> None:
    """A file of the projector's name that holds something else is refused with 3 and what it holds."""
    delta = beside(tmp_path / "delta", tensors)
    with pytest.raises(MalformedInput) as caught:
        merge(plain / "base", delta, tmp_path / "out")
    assert str(caught.value) == (
        f"{delta / 'mm_projector.bin'}: not a projector: found {found}, "
        "expected model.mm_projector.weight and model.mm_projector.bias; remove it if it does not belong to the checkpoint"
    )
    assert names_in(tmp_path) == ["delta"]


def test_a_damaged_projector(plain: Path, tmp_path: Path) -> None:
    """A projector that is no torch file is refused as such, by its own name."""
    delta = save(BARE, tmp_path / "delta")
    (delta / "mm_projector.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n")
    with pytest.raises(MalformedInput, match=r"mm_projector\.bin: .*LFS"):
        merge(plain / "base", delta, tmp_path / "out")


def test_a_projector_beside_a_base(plain: Path, tmp_path: Path) -> None:
    """Beside a base, a file of that name is nothing of ours: it is neither used nor opened."""
    base = save(BASE, tmp_path / "base")
    (base / "mm_projector.bin").write_bytes(b"no torch file")
    merge(base, plain / "delta", tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(plain / "out")


def test_the_projector_is_shown(plain: Path, tmp_path: Path) -> None:
    """``inspect`` counts the projector beside the shards, ``diff`` compares it, and ``make`` puts a target's into the delta."""
    delta = beside(tmp_path / "delta", PROJECTOR)
    assert inspect_checkpoint(delta).tensors.keys() == inspect_checkpoint(plain / "delta").tensors.keys()
    assert diff_checkpoints(delta, plain / "delta").identical
    target = beside(
        tmp_path / "target", PROJECTOR, {n: t for n, t in load(plain / "out").items() if n not in PROJECTOR}
    )
    make_delta(plain / "base", target, tmp_path / "made")
    assert same_bits({name: load(tmp_path / "made")[name] for name in PROJECTOR}, PROJECTOR)


def test_a_projector_without_a_bias(plain: Path, tmp_path: Path) -> None:
    """A projector may have no bias."""
    delta = beside(tmp_path / "delta", {"model.mm_projector.weight": PROJECTOR["model.mm_projector.weight"]})
    assert merge(plain / "base", delta, tmp_path / "out").fates["copy"] == 1


# convert.


def llama(heads: int = 4, keys: int = 4, epsilon: float = 1e-06) -> tuple[LlamaForCausalLM, Tensors]:
    """Return a tiny LLaMA with float16 weights, as a model in float32 and as the float16 tensors that it was given."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=92,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        rms_norm_eps=epsilon,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config).train(False)
    tensors = {name: (tensor * 4).half() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model, tensors


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[1, 7, 3, 39, 0, 12]])).logits
    return found


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 92,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 40,
}

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

ALWAYS = [
    "DELTAWEIGHTS_NOTICE.txt",
    "README.md",
    "SHA256SUMS",
    "config.json",
    "generation_config.json",
    "manifest.json",
]


def json_in(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_convert_gives_the_original_model(tmp_path: Path, parts: int) -> None:
    """Of any number of parts: every bit is the original's, transformers loads the folder, and the logits are the same."""
    model, tensors = llama()
    folder = save_meta(tensors, tmp_path / "meta", parts)
    result = convert_checkpoint(folder, tmp_path / "hf", max_shard_size=20_000)
    assert (result.status, result.fates) == ("converted", {"copy": 21, "dropped": 1})
    assert result.dropped == {"base": {"rope.freqs": "buffer"}}
    assert same_bits(load(tmp_path / "hf"), tensors)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert torch.equal(logits(loaded), logits(model))
    assert json_in(tmp_path / "hf" / "config.json") == CONFIG
    assert AutoConfig.from_pretrained(tmp_path / "hf").rms_norm_eps == 1e-06
    assert json_in(tmp_path / "hf" / "generation_config.json") == {"bos_token_id": 1, "eos_token_id": 2}
    assert verify(tmp_path / "hf", expect=result.content_digest).ok
    shards = [f"model-{n:05d}-of-{result.shards:05d}.safetensors" for n in range(1, result.shards + 1)]
    assert names_in(tmp_path / "hf") == sorted([*ALWAYS, *shards, "model.safetensors.index.json"])


def test_convert_of_grouped_heads(tmp_path: Path) -> None:
    """Fewer heads of keys than of queries, as LLaMA-2 70B has, and its epsilon, which says how long its inputs may be."""
    model, tensors = llama(4, 2, 1e-05)
    folder = save_meta(tensors, tmp_path / "meta", 2)
    params = json_in(folder / "params.json") | {"norm_eps": 1e-05}
    (folder / "params.json").write_text(json.dumps(params))
    convert_checkpoint(folder, tmp_path / "hf")
    assert same_bits(load(tmp_path / "hf"), tensors)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert torch.equal(logits(loaded), logits(model))
    changed = {"num_key_value_heads": 2, "rms_norm_eps": 1e-05, "max_position_embeddings": 4096}
    assert json_in(tmp_path / "hf" / "config.json") == CONFIG | changed


def test_convert_with_a_tokenizer(tmp_path: Path) -> None:
    """A tokenizer.model beside Meta's parts is copied byte for byte, and gets the files around it; others are left behind."""
    folder = save_meta(llama()[1], tmp_path / "meta")
    (folder / "tokenizer.model").write_bytes(bytes(range(256)) * 9)
    (folder / "checklist.chk").write_text("x")
    convert_checkpoint(folder, tmp_path / "hf")
    target = tmp_path / "hf"
    assert (target / "tokenizer.model").read_bytes() == bytes(range(256)) * 9
    assert json_in(target / "special_tokens_map.json") == SPECIAL
    assert json_in(target / "tokenizer_config.json") == SPECIAL | {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "tokenizer_class": "LlamaTokenizer",
    }
    tokenizer = ["special_tokens_map.json", "tokenizer.model", "tokenizer_config.json"]
    assert names_in(target) == sorted([*ALWAYS, "model.safetensors", *tokenizer])
    for method, name in ((STORED, "stored"), (DEFLATED, "deflated")):
        convert_checkpoint(archive_of(folder, method), tmp_path / name)
        assert tree_of(tmp_path / name) == tree_of(target)


def test_a_converted_base_is_the_base(plain: Path, tmp_path: Path) -> None:
    """A merge on a converted base has the weights of a merge on Meta's files, and its digest says what was converted."""
    folder = save_meta(BASE, tmp_path / "meta", 2)
    convert_checkpoint(folder, tmp_path / "hf")
    merge(tmp_path / "hf", plain / "delta", tmp_path / "out")
    assert weights_in(tmp_path / "out") == weights_in(plain / "out")


def converted(run: Run, base: Path, *more: str) -> Done:
    """Run ``convert`` of a folder to ``hf`` beside it."""
    return run("convert", "--base", base, "--target", "hf", *more, cwd=base.parent)


def test_convert_command(run: Run, tmp_path: Path) -> None:
    """``convert`` prints what it made, with one JSON object on demand; verify and sha256sum find the folder sound."""
    _, tensors = llama()
    folder = save_meta(tensors, tmp_path / "meta", 2)
    done = converted(run, folder, "--max-shard-size", "20KB")
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert list(rows) == ["target", "status", "tensors", "content digest", "manifest"]
    assert rows["status"].strip().startswith("converted in ")
    said = done.stderr.splitlines()
    shapes = "2 layers, hidden size 32, 40 rows: no model that is known by its shapes"
    assert said[0].startswith(f"base            {shapes}; weights as large as a model's (typically 0.08")
    assert said[1:3] == ["21 tensors: 21 copied", "dropped from the base (buffer): rope.freqs"]
    assert run("verify", tmp_path / "hf").returncode == 0
    summed = subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "hf", check=False)
    assert summed.returncode == 0
    listed = {line.split("  ", 1)[1] for line in (tmp_path / "hf" / "SHA256SUMS").read_text().splitlines()}
    assert listed == {*names_in(tmp_path / "hf")} - {"SHA256SUMS"}
    before = marks_below(tmp_path / "hf")
    again = converted(run, folder, "--max-shard-size", "20KB", "--json")
    assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "already complete")
    assert marks_below(tmp_path / "hf") == before
    assert "already there, with other content" in line_of(converted(run, folder, "--dtype", "float32", "-q"), 7)
    replaced = converted(run, folder, "--dtype", "float32", "--overwrite", "--json")
    assert json.loads(replaced.stdout)["status"] == "converted"
    assert same_bits(load(tmp_path / "hf"), {name: tensor.float() for name, tensor in tensors.items()})
    assert json_in(tmp_path / "hf" / "config.json")["torch_dtype"] == "float32"


def test_convert_dry_run(run: Run, tmp_path: Path) -> None:
    """A dry run shows shards and fates, and writes nothing, of a deflated archive neither."""
    folder = save_meta(llama()[1], tmp_path / "meta", 2)
    archive = archive_of(folder, DEFLATED)
    before = tree_of(tmp_path)
    plans = []
    for base in (folder, archive):
        done = converted(run, base, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        plans.append(json.loads(done.stdout))
    assert plans[0]["fates"] == {"copy": 21, "dropped": 1}
    assert [shard["file"] for shard in plans[0]["shards"]] == ["model.safetensors"]
    assert plans[0]["plan"] == plans[1]["plan"]
    assert before == tree_of(tmp_path)
    assert names_in(tmp_path) == ["meta", "meta.zip"]


@pytest.mark.parametrize("left", [0, 11, 20])
def test_row66_convert_that_is_killed_goes_on(tmp_path: Path, left: int) -> None:
    """Killed at any tensor, the same conversion reuses the shards that were finished and gives the same files."""
    _, tensors = llama()
    archive = archive_of(save_meta(tensors, tmp_path / "meta", 2), DEFLATED)
    convert_checkpoint(archive, tmp_path / "expected", max_shard_size=9000)
    arguments = ("convert", "--base", archive, "--target", tmp_path / "hf", "--max-shard-size", "9000")
    assert cut_off("merging", left, "SIGKILL", *arguments).returncode == -signal.SIGKILL
    place, report = locate_target(tmp_path / "hf"), Notes()
    finished = len(list(place.fragments.iterdir()))
    convert_checkpoint(archive, tmp_path / "hf", max_shard_size=9000, report=report)
    assert tree_of(tmp_path / "hf") == tree_of(tmp_path / "expected")
    said = [note for note in report.notes if "shards are finished already" in note]
    assert len(said) == (finished > 0) == (left > 0)
    assert names_in(tmp_path) == ["expected", "hf", "meta", "meta.zip"]


def test_row69_convert_onto_itself(tmp_path: Path) -> None:
    """A target that is the base, is inside it, or holds it ends with 7, and the base stays as it was."""
    folder = save_meta(llama()[1], tmp_path / "meta")
    before = tree_of(tmp_path)
    for target in (folder, folder / "hf", tmp_path):
        with pytest.raises(TargetBusy) as caught:
            convert_checkpoint(folder, target, overwrite=True)
        assert str(caught.value) == (
            f"{target}: output and input overlap: found input {folder}; choose another output folder"
        )
    assert before == tree_of(tmp_path)


def test_convert_of_torch_files(tmp_path: Path) -> None:
    """Torch files become safetensors of the same bits, buffers apart, with the files that lie beside them."""
    folder = save(BASE, tmp_path / "base", "torch", 3)
    (folder / "README.md").write_text("a base")
    (folder / "tokenizer.model").write_bytes(b"\0x")
    (folder / "convert.py").write_text("no")
    report = Notes()
    result = convert_checkpoint(folder, tmp_path / "hf", report=report, hash_inputs=True)
    weights = {name: tensor for name, tensor in BASE.items() if not name.endswith("inv_freq")}
    assert same_bits(load(tmp_path / "hf"), weights)
    assert len(result.dropped["base"]) == 4
    copied = {"config.json", "tokenizer_config.json", "tokenizer.model", "BASE_README.md"}
    assert {*names_in(tmp_path / "hf")} == {*ALWAYS, *copied, "model.safetensors"} - {"generation_config.json"}
    assert (tmp_path / "hf" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (tmp_path / "hf" / "BASE_README.md").read_text() == "a base"
    assert "not copied from the base: convert.py" in report.notes
    recorded = json_in(tmp_path / "hf" / "manifest.json")["inputs"]["base"]
    assert all("sha256" in file for file in recorded["files"].values())
    assert verify(tmp_path / "hf", expect=result.content_digest).ok


@pytest.mark.parametrize(
    ("dtypes", "found"),
    [
        ((torch.float16, torch.float32), "F16 and F32"),
        ((torch.bfloat16, torch.float16), "BF16 and F16"),
        ((torch.float64,), "F64"),
    ],
    ids=["float16-and-float32", "bfloat16-and-float16", "float64"],
)
def test_convert_of_several_dtypes(run: Run, tmp_path: Path, dtypes: tuple[torch.dtype, ...], found: str) -> None:
    """Weights of several dtypes, or of one that is not written, end with 2 without ``--dtype``; with it, they are torch's casts."""
    tensors = {f"w{number}": torch.randn(5, 7).to(dtypes[number % len(dtypes)]) for number in range(4)}
    folder = save(tensors, tmp_path / "base")
    assert line_of(converted(run, folder, "-q"), 2) == (
        f"which dtype is wanted is not clear: found {found}, expected float16, bfloat16, float32; say --dtype"
    )
    assert names_in(tmp_path) == ["base"]
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        convert_checkpoint(folder, tmp_path / name, dtype=name)
        assert same_bits(load(tmp_path / name), {key: tensor.float().to(dtype) for key, tensor in tensors.items()})
        assert json_in(tmp_path / name / "config.json")["torch_dtype"] == name


def test_convert_of_what_is_no_weights(tmp_path: Path) -> None:
    """Whole numbers are not converted, and a checkpoint of buffers alone holds nothing to convert: 4."""
    save({"q": torch.ones(3, dtype=torch.int8), "w": torch.ones(3)}, tmp_path / "packed", "safetensors", 1)
    with pytest.raises(Mismatch) as caught:
        convert_checkpoint(tmp_path / "packed", tmp_path / "hf")
    assert str(caught.value) == (
        "base model.safetensors: tensor q: cannot be copied: found dtype I8, expected one of F16 BF16 F32 F64; "
        "only weights of floating-point numbers are converted"
    )
    save({"a.rotary_emb.inv_freq": torch.ones(3)}, tmp_path / "empty", "safetensors", 1)
    with pytest.raises(Mismatch, match="nothing to copy: the base has no weights"):
        convert_checkpoint(tmp_path / "empty", tmp_path / "hf")
    with pytest.raises(UsageError, match="target is an empty path; is a variable unset"):
        convert_checkpoint(tmp_path / "empty", "")
    assert names_in(tmp_path) == ["empty", "packed"]


# check-base.

LARGE = base_tensors(2, 320, 64)
TUNED = {
    name: t.float() + torch.randn(t.shape, generator=torch.Generator().manual_seed(5)) * 4e-4
    for name, t in LARGE.items()
}


def difference(name: str) -> torch.Tensor:
    """Return a delta's tensor as the original scripts made it, in float16."""
    return TUNED[name].half() - LARGE[name] if not name.endswith("inv_freq") else torch.zeros_like(LARGE[name])


GIVEN = {name: difference(name) for name in LARGE}
"""The delta of the large pair."""


@dataclass(frozen=True)
class Counts:
    """What the sums of one tensor, or of all, say of their base."""

    weights: int
    region: int
    violations: int
    evidence: int


def counts_of(base: torch.Tensor, delta: torch.Tensor) -> Counts:
    """Count by the definition, in integers of the bits and in float64."""
    total = base + delta
    gap = total.view(torch.int16).int() % 65536 - base.view(torch.int16).int() % 65536
    region = (gap.abs() <= 0x400) & total.isfinite()
    wrong = region & (total.double() - base.double() != delta.double())
    return Counts(total.numel(), int(region.sum()), int(wrong.sum()), int((region & (gap != 0)).sum()))


def expected_of(base: Tensors, delta: Tensors) -> tuple[Counts, dict[str, int]]:
    """Return what all tensors together say, and the violations of each that has any."""
    found = {name: counts_of(base[name], delta[name]) for name in delta if not name.endswith("inv_freq")}
    fields = ("weights", "region", "violations", "evidence")
    whole = Counts(**{field: sum(getattr(counts, field) for counts in found.values()) for field in fields})
    return whole, {name: counts.violations for name, counts in found.items() if counts.violations}


def noisy(scale: float) -> Tensors:
    """Return a model that was tuned from the base: each weight with noise of this share of a typical weight, 0.02."""
    generator = torch.Generator().manual_seed(9)
    return {n: (t + 0.02 * scale * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in LARGE.items()}


def damaged() -> Tensors:
    """Return the base with a few exponents changed."""
    gate = LARGE["model.layers.1.mlp.gate_proj.weight"].clone()
    gate.view(torch.int16).view(-1)[100:200] ^= 0x0400
    return LARGE | {"model.layers.1.mlp.gate_proj.weight": gate}


def unrelated() -> Tensors:
    """Return another model of the same shapes."""
    return base_tensors(2, 320, 64, seed=99)


WRONG_BASES: dict[str, tuple[Callable[[], Tensors], str]] = {
    "damaged": (damaged, LIKELY_CAUSES[0][1]),
    "rounded": (lambda: {n: t.bfloat16().to(t.dtype) for n, t in LARGE.items()}, LIKELY_CAUSES[1][1]),
    "sibling": (lambda: noisy(0.02), LIKELY_CAUSES[2][1]),
    "unrelated": (unrelated, LIKELY_CAUSES[3][1]),
}


def check(run: Run, base: Path, delta: Path, *more: str | Path) -> Done:
    """Run ``check-base`` in the inputs' folder, having made sure that it writes nothing."""
    before = tree_of(base.parent)
    done = run("check-base", *more, "--base", base.name, "--delta", delta.name, cwd=base.parent)
    assert before == tree_of(base.parent)
    assert {base.name, delta.name} <= {*names_in(base.parent)}
    return done


def shown(counts: Counts) -> str:
    """Return the line on stdout."""
    region = f"{counts.weights:,} weights, {counts.region / counts.weights:.1%} in the region"
    if not counts.violations:
        return f"base            proved: {region}, 0 violations\n"
    rate = f"{counts.violations:,} violations ({counts.violations / counts.region:.2%})"
    return f"base            NOT proved: {region}, {rate}\n"


def what_does_not_come_back(counts: Counts, tensors: dict[str, int], suspicion: str) -> str:
    """Return what the line of error says of the violations."""
    worst = sorted(tensors, key=lambda name: (-tensors[name], name))[:3]
    share = (
        f"{counts.violations:,} of {counts.region:,} weights do not come back ({counts.violations / counts.region:.2%})"
    )
    return f"{share}, most in {', '.join(worst)}; likely {suspicion}"


def test_check_base_proves(run: Run, scratch: Path) -> None:
    """The right base is proved: 0, exact counts on stdout, what the inputs are on stderr; with ``-q`` the counts alone."""
    base, delta = save(LARGE, scratch.parent / "base"), save(GIVEN, scratch.parent / "delta", "safetensors")
    counts, tensors = expected_of(LARGE, GIVEN)
    assert (counts.violations, tensors, counts.evidence > 100_000) == (0, {}, True)
    done = check(run, base, delta)
    assert (done.returncode, done.stdout) == (0, shown(counts))
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["base", "delta"]
    quiet = check(run, base, delta, "-q", "--workers", "1")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, shown(counts), "")
    as_json = check(run, base, delta, "-q", "--json")
    assert (as_json.returncode, as_json.stderr) == (0, "")
    proof = {**vars(counts), "verdict": "proved", "tensors": {}, "untested": [], "allowed": False}
    assert json.loads(as_json.stdout) == {
        "base": "base",
        "delta": "delta",
        "recipe": None,
        "compute_dtype": "float16",
        "stated": False,
        "sample": 1.0,
        "proof": proof,
        "proved": True,
    }
    assert names_in(scratch) == []


@pytest.mark.parametrize(("make", "suspicion"), WRONG_BASES.values(), ids=WRONG_BASES)
def test_row58_check_base_refutes(run: Run, tmp_path: Path, make: Callable[[], Tensors], suspicion: str) -> None:
    """Another base is refuted: 4, exact counts on stdout, and on stderr where they are, what is likely and what to do."""
    wrong = make()
    base, delta = save(wrong, tmp_path / "base"), save(GIVEN, tmp_path / "delta")
    counts, tensors = expected_of(wrong, GIVEN)
    assert counts.violations
    done = check(run, base, delta, "-q")
    assert (done.returncode, done.stdout) == (4, shown(counts))
    assert done.stderr == (
        f"deltaweights: error: base: the base is not the one that the delta was made from: "
        f"{what_does_not_come_back(counts, tensors, suspicion)}; use the base that the delta was made from\n"
    )


def test_check_base_with_too_little_evidence(run: Run, tmp_path: Path) -> None:
    """A pair too small to say anything is neither proved nor refuted: 6; so is a delta of zeros, and JSON says it, too."""
    small, delta = base_tensors(), delta_tensors(base_tensors(), 0, projector=False)
    base, tuned = save(small, tmp_path / "base"), save(delta, tmp_path / "delta")
    zeros = save({name: torch.zeros_like(tensor) for name, tensor in LARGE.items()}, tmp_path / "zeros")
    large = save(LARGE, tmp_path / "large")
    counts, _ = expected_of(small, delta)
    assert 0 < counts.evidence < 100_000
    for one, other, moved in ((base, tuned, counts.evidence), (large, zeros, 0)):
        done = check(run, one, other, "-q")
        assert done.returncode == 6
        assert done.stdout == f"base            no evidence: {moved:,} weights moved; less than 100,000 say nothing\n"
        assert done.stderr == (
            f"deltaweights: error: {one.name}: neither proved nor refuted: "
            f"found {moved:,} weights that moved, expected at least 100,000\n"
        )
    as_json = check(run, base, tuned, "-q", "--json")
    found = json.loads(as_json.stdout)
    assert (as_json.returncode, found["proved"], found["proof"]["verdict"]) == (6, False, "no evidence")


def test_check_base_of_another_arithmetic(run: Run, tmp_path: Path) -> None:
    """A delta that was made in float32 and rounded cannot prove its base: 6, with what to try; one that was not rounded can."""
    rounded = {name: (TUNED[name] - tensor.float()).to(tensor.dtype) for name, tensor in LARGE.items()}
    rounded |= {name: torch.zeros_like(tensor) for name, tensor in LARGE.items() if name.endswith("inv_freq")}
    exact = {name: TUNED[name] - tensor.float() for name, tensor in LARGE.items() if not name.endswith("inv_freq")}
    base, delta = save(LARGE, tmp_path / "base"), save(rounded, tmp_path / "delta")
    counts, tensors = expected_of(LARGE, rounded)
    done = check(run, base, delta, "-q")
    assert (done.returncode, done.stdout) == (6, shown(counts))
    assert done.stderr == (
        f"deltaweights: error: base: the base cannot be proved: {what_does_not_come_back(counts, tensors, OTHER_CAUSE)}; "
        "try --compute-dtype, if you know in which arithmetic the delta was computed\n"
    )
    whole = save(exact, tmp_path / "whole")
    proved = check(run, base, whole, "-q", "--compute-dtype", "float32")
    assert proved.returncode == 0
    assert proved.stdout.startswith(f"base            proved: {counts.weights:,} weights, ")


def test_check_base_by_a_recipe(run: Run, tmp_path: Path) -> None:
    """A recipe's arithmetic, new rows and sizes count: Alpaca's float32 and mean row are proved, other sizes end with 4."""
    delta = delta_tensors(LARGE, 1, projector=False, dtype=torch.float32)
    base, given = save(LARGE, tmp_path / "base"), save(delta, tmp_path / "delta")
    text = 'format = "deltaweights-recipe"\nversion = 1\nextends = "alpaca-7b"\n[shapes]\nhidden_size = 64\n'
    sizes = "intermediate_size = 188\nlayers = 2\nheads = 4\nbase_rows = 320\ndelta_rows = 321\n"
    (tmp_path / "tiny.toml").write_text(text + sizes)
    weights = sum(tensor.numel() for name, tensor in LARGE.items() if not name.endswith("inv_freq"))
    for named in ((), ("alpaca-7b",)):
        done = check(run, base, given, *named, "--recipe", "tiny.toml", "--json", "-q")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["recipe"], found["compute_dtype"], found["proof"]["weights"]) == ("alpaca-7b", "float32", weights)
    assert line_of(check(run, base, given, "alpaca-7b", "-q"), 4) == (
        "base base: tensor model.embed_tokens.weight: not the base of recipe alpaca-7b: found 320 rows, expected 32000; "
        "use the original LLaMA-1 of the delta's size as the base"
    )
    against = check(run, base, given, "alpaca-7b", "--compute-dtype", "float16", "-q")
    assert line_of(against, 2).startswith("recipe alpaca-7b adds in another dtype: found float16, expected float32; ")


def test_check_base_looks_at_added_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a larger vocabulary the base's rows are looked at; new rows, which say nothing of the base, are not even read."""
    monkeypatch.setattr("deltaweights.jobs.check_base.BLOCK", 1000)
    delta = delta_tensors(LARGE, 5000, projector=False)
    base, given = save(LARGE, tmp_path / "base"), save(delta, tmp_path / "delta", "safetensors", 1)
    with counted_reads() as read:
        report = check_base(base, given)
    block = {name: tensor[:320] if tensor.shape[0] == 5320 else tensor for name, tensor in delta.items()}
    counts, _ = expected_of(LARGE, block)
    assert report.proof is not None
    assert {field: getattr(report.proof, field) for field in vars(counts)} == vars(counts)
    new_rows = 2 * 2 * 5000 * 64
    assert read["model.safetensors"] < (given / "model.safetensors").stat().st_size - new_rows // 2


def test_row61_check_base_of_files_that_change(tmp_path: Path) -> None:
    """An input that changes while it is looked at ends with 5, and proves nothing."""
    base, delta = save(LARGE, tmp_path / "base"), save(GIVEN, tmp_path / "delta", "safetensors", 1)

    class Touching(Report):
        def end(self) -> None:
            os.utime(delta / "model.safetensors", (1, 1))

    with pytest.raises(InputOutputError, match=r"delta/model\.safetensors: changed while being read: "):
        check_base(base, delta, report=Touching())


def test_check_base_unpacks_where_temporary_files_are(scratch: Path, run: Run) -> None:
    """Deflated archives are unpacked in a temporary folder that is gone afterwards, also when a base is refuted."""
    folder = scratch.parent
    base, delta = save(LARGE, folder / "base"), save(GIVEN, folder / "delta")
    wrong = save(unrelated(), folder / "wrong")
    archives = [archive_of(path, DEFLATED) for path in (base, delta, wrong)]
    report = Watch(scratch)
    assert check_base(archives[0], archives[1], report=report).proved
    assert {name.split("/")[1] for name in report.seen["checking the base"]} == {"base", "delta"}
    assert names_in(scratch) == []
    assert check(run, archives[2], archives[1], "-q").returncode == 4
    assert names_in(scratch) == []


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_a_sample_reads_its_share(tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample reads about that share of both inputs, beyond what headers and names need, and finds a wrong base all the same."""
    monkeypatch.setattr("deltaweights.jobs.check_base.BLOCK", 512)
    monkeypatch.setattr("deltaweights.checkpoint.samples.FEW", 1)  # of tensors as small as these, samples are all
    base, delta = save(LARGE, tmp_path / "base"), save(GIVEN, tmp_path / "delta")
    weights, _ = expected_of(LARGE, GIVEN)
    read = {}
    for sample in (share, 1.0):
        with counted_reads() as counts:
            report = check_base(base, delta, sample=sample)
        assert report.proof is not None
        read[sample] = sum(counts.values())
        assert report.proof.weights == pytest.approx(sample * weights.weights, abs=0.01 * weights.weights)
    beyond = read[1.0] - 2 * 2 * weights.weights
    assert 0 <= beyond < 0.5 * read[1.0]
    assert read[share] - beyond == pytest.approx(share * 2 * 2 * weights.weights, abs=0.01 * 2 * 2 * weights.weights)
    refuted = check_base(save(noisy(0.02), tmp_path / "sibling"), delta, sample=share).proof
    assert refuted is not None
    assert (refuted.verdict, refuted.violations > 0) == ("violated", True)


def test_a_sample_is_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One share of one pair gives one report, whatever the number of workers; a larger share looks at other weights."""
    monkeypatch.setattr("deltaweights.jobs.check_base.BLOCK", 1000)
    base, delta = save(noisy(0.02), tmp_path / "base"), save(GIVEN, tmp_path / "delta")
    proofs = [check_base(base, delta, sample=0.3, workers=workers).proof for workers in (1, 2, 5, 1)]
    assert all(proof == proofs[0] for proof in proofs)
    assert proofs[0] is not None
    assert proofs[0].violations
    assert check_base(base, delta, sample=0.31).proof != proofs[0]


@pytest.mark.parametrize("share", ["0", "-0.5", "1.5", "nan"])
def test_what_is_no_share(run: Run, share: str) -> None:
    """A sample of nothing, or of more than all, ends with 2 before an input is looked for."""
    done = run("check-base", "--base", "b", "--delta", "d", "--sample", share)
    assert line_of(done, 2) == (f"--sample is not a share: found {float(share)}, expected more than 0, at most 1")


def test_a_sample_of_less_than_a_block(run: Run, tmp_path: Path) -> None:
    """A share that is less than one block looks at one, or says that it looked at none: not that nothing is added."""
    base, delta = save(LARGE, tmp_path / "base"), save(GIVEN, tmp_path / "delta")
    assert "nothing is added to it" not in check(run, base, delta, "-q", "--sample", "0.001").stdout


def test_check_base_names_no_option_that_it_has_not(tmp_path: Path) -> None:
    """The way out of a merged model given as the delta is one that the command takes."""
    merged = {name: t if name.endswith("inv_freq") else t + GIVEN[name] for name, t in LARGE.items()}
    text = 'format = "deltaweights-recipe"\nversion = 1\nname = "own"\n[arithmetic]\n'
    (tmp_path / "own.toml").write_text(f'{text}compute_dtype = "float16"\nstated = true\n')
    base, delta = save(LARGE, tmp_path / "base"), save(merged, tmp_path / "merged")
    with pytest.raises(Mismatch, match="likely already a merged model") as caught:
        check_base(base, delta, recipe_file=tmp_path / "own.toml")
    assert "--allow-unproved-base" not in str(caught.value)
