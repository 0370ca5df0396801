"""The projector in a file beside the shards, through whole merges."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import MalformedInput
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import make_delta
from tests.support.errors import refused
from tests.support.identity import archive_of
from tests.support.pairs import Tensors, load, same_bits, save
from tests.support.reports import RecordingReport
from tests.support.whole_runs import BARE, BASE, DEFLATED, DELTA, PROJECTOR, STORED, files_in, merge, names_in


def beside(folder: Path, projector: Tensors, tensors: Tensors = BARE) -> Path:
    """Save a delta's shards, and the projector in a separate file."""
    save(tensors, folder)
    torch.save(projector, folder / "mm_projector.bin")
    return folder


SPELLINGS = {
    "as-in-the-model": lambda name: name,
    "without-model": lambda name: name.removeprefix("model."),
    "with-more-before-it": lambda name: f"base_model.model.{name}",
}


@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS)
def test_the_projector_beside_the_shards(merged_pair: Path, tmp_path: Path, spelled: Callable[[str], str]) -> None:
    """A projector beside shards that have none is merged as if it were in them, whatever precedes its names."""
    delta = beside(tmp_path / "delta", {spelled(name): tensor for name, tensor in PROJECTOR.items()})
    report = RecordingReport()
    result = merge(merged_pair / "base", delta, tmp_path / "out", report=report, hash_inputs=True)
    assert files_in(tmp_path / "out") == files_in(merged_pair / "out")
    assert result.fates["copy"] == 2
    recorded = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]["delta"]["files"]
    assert "sha256" in recorded["mm_projector.bin"]
    assert not any("not copied" in note for note in report.notes)


def test_the_projector_beside_an_index(merged_pair: Path, tmp_path: Path) -> None:
    """The projector is also merged when the index is given."""
    delta = beside(tmp_path / "delta", PROJECTOR)
    merge(merged_pair / "base", next(delta.glob("*.index.json")), tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(merged_pair / "out")


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_the_projector_in_an_archive(merged_pair: Path, tmp_path: Path, method: int) -> None:
    """The projector is merged from an archive, read in place or unpacked, and where only the projector is deflated."""
    folder = beside(tmp_path / "delta", PROJECTOR)
    merge(merged_pair / "base", archive_of(folder, method), tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(merged_pair / "out")
    mixed = tmp_path / "mixed.zip"
    with zipfile.ZipFile(mixed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"d/{path.name}", DEFLATED if path.name == "mm_projector.bin" else STORED)
    merge(merged_pair / "base", mixed, tmp_path / "out-mixed")
    assert files_in(tmp_path / "out-mixed") == files_in(merged_pair / "out")


def test_the_projector_in_the_shards_wins(merged_pair: Path, tmp_path: Path) -> None:
    """If the shards contain a projector, the file beside them is not opened, and reported as not copied."""
    delta, report = save(DELTA, tmp_path / "delta"), RecordingReport()
    (delta / "mm_projector.bin").write_bytes(b"no torch file")
    merge(merged_pair / "base", delta, tmp_path / "out", report=report)
    assert files_in(tmp_path / "out") == files_in(merged_pair / "out")
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
def test_a_file_that_is_no_projector(merged_pair: Path, tmp_path: Path, tensors: Tensors, found: str) -> None:
    """A file of the projector's name that holds something else is refused with its contents."""
    delta = beside(tmp_path / "delta", tensors)
    expected = "model.mm_projector.weight and model.mm_projector.bias"
    with refused(MalformedInput, where=delta / "mm_projector.bin", found=found, expected=expected):
        merge(merged_pair / "base", delta, tmp_path / "out")
    assert names_in(tmp_path) == ["delta"]


def test_a_damaged_projector(merged_pair: Path, tmp_path: Path) -> None:
    """A projector that is not a torch file is refused by its own name."""
    delta = save(BARE, tmp_path / "delta")
    (delta / "mm_projector.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n")
    with refused(MalformedInput, where=delta / "mm_projector.bin", found="a git-LFS pointer"):
        merge(merged_pair / "base", delta, tmp_path / "out")


def test_a_projector_beside_a_base(merged_pair: Path, tmp_path: Path) -> None:
    """A file of that name beside a base is neither used nor opened."""
    base = save(BASE, tmp_path / "base")
    (base / "mm_projector.bin").write_bytes(b"no torch file")
    merge(base, merged_pair / "delta", tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(merged_pair / "out")


def test_the_projector_is_shown(merged_pair: Path, tmp_path: Path) -> None:
    """``inspect`` counts the projector beside the shards, ``diff`` compares it, and ``make`` puts a target's into the delta."""
    delta = beside(tmp_path / "delta", PROJECTOR)
    assert inspect_checkpoint(delta).tensors.keys() == inspect_checkpoint(merged_pair / "delta").tensors.keys()
    assert diff_checkpoints(delta, merged_pair / "delta").identical
    target = beside(
        tmp_path / "target", PROJECTOR, {n: t for n, t in load(merged_pair / "out").items() if n not in PROJECTOR}
    )
    make_delta(merged_pair / "base", target, tmp_path / "made")
    assert same_bits({name: load(tmp_path / "made")[name] for name in PROJECTOR}, PROJECTOR)


def test_a_projector_without_a_bias(merged_pair: Path, tmp_path: Path) -> None:
    """A projector may have no bias."""
    delta = beside(tmp_path / "delta", {"model.mm_projector.weight": PROJECTOR["model.mm_projector.weight"]})
    assert merge(merged_pair / "base", delta, tmp_path / "out").fates["copy"] == 1
