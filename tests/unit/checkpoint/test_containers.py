"""Every container that a checkpoint may come in gives the same result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from deltaweights.manifest.verify import verify
from tests.support.identity import archive_of, cached
from tests.support.meta import save_meta
from tests.support.pairs import Tensors, save
from tests.support.reports import RecordingReport
from tests.support.whole_runs import BARE, BASE, DEFLATED, DELTA, STORED, files_in, merge, names_in, tree_of, weights_in

Hold = Callable[[Tensors, Path], Path]


def alone(tensors: Tensors, folder: Path, name: str) -> Path:
    """Save one torch file of this name, and nothing else."""
    folder.mkdir()
    torch.save(tensors, folder / name)
    return folder / name


def legacy(tensors: Tensors, folder: Path) -> Path:
    """Save a checkpoint in torch's legacy format, from before it used zip."""
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
"""Containers that also hold configuration and tokenizer."""


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


@pytest.mark.sampled(7)
@pytest.mark.parametrize("hold", (FOLDERS | LONE | META).values(), ids=FOLDERS | LONE | META)
def test_row36_a_base_in_every_container(merged_pair: Path, tmp_path: Path, hold: Hold) -> None:
    """A base in any container gives the same result files as safetensors, and nothing is left beside it."""
    base = hold(BASE, tmp_path / "base")
    before = tree_of(tmp_path)
    merge(base, merged_pair / "delta", tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(merged_pair / "out")
    assert verify(tmp_path / "out").ok
    shutil.rmtree(tmp_path / "out")
    assert before == tree_of(tmp_path)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("hold", FOLDERS.values(), ids=FOLDERS)
def test_row36_a_delta_in_every_container(merged_pair: Path, tmp_path: Path, hold: Hold) -> None:
    """A delta in any container gives the same result files as safetensors, configuration and tokenizer included."""
    delta = hold(DELTA, tmp_path / "delta")
    before = tree_of(tmp_path)
    merge(merged_pair / "base", delta, tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(merged_pair / "out")
    shutil.rmtree(tmp_path / "out")
    assert before == tree_of(tmp_path)


@pytest.mark.parametrize("hold", LONE.values(), ids=LONE)
def test_row36_a_delta_in_a_lone_file(merged_pair: Path, tmp_path: Path, hold: Hold) -> None:
    """A delta that is one file of any name gives the same weights; no configuration is copied, and a note says so."""
    delta, report = hold(DELTA, tmp_path / "delta"), RecordingReport()
    (delta.parent / "config.json").write_text('{"model_type": "of another model"}')
    merge(merged_pair / "base", delta, tmp_path / "out", report=report)
    assert weights_in(tmp_path / "out") == weights_in(merged_pair / "out")
    assert files_in(tmp_path / "out").keys() - weights_in(tmp_path / "out") == {"DELTAWEIGHTS_NOTICE.txt", "README.md"}
    assert "the delta is a single file: no configuration or tokenizer is copied" in report.notes


@pytest.mark.parametrize("hold", META.values(), ids=META)
def test_row36_a_delta_in_metas_format(merged_pair: Path, tmp_path: Path, hold: Hold) -> None:
    """A delta in Meta's format, with any number of parts, gives the rows that converting it would give."""
    merge(merged_pair / "base", hold(BARE, tmp_path / "delta"), tmp_path / "out")
    assert weights_in(tmp_path / "out") == weights_in(merged_pair / "out-bare")


def test_one_part_of_metas_stands_for_all(merged_pair: Path, tmp_path: Path) -> None:
    """Any part of a base in Meta's format stands for the whole."""
    folder = save_meta(BASE, tmp_path / "base", 4)
    for number in (0, 3):
        merge(folder / f"consolidated.{number:02d}.pth", merged_pair / "delta", tmp_path / f"out-{number}")
        assert weights_in(tmp_path / f"out-{number}") == weights_in(merged_pair / "out")


def test_both_inputs_in_archives(merged_pair: Path, tmp_path: Path) -> None:
    """Two deflated deflated_pair, of one name in two folders, are unpacked apart and give the same files."""
    for role, tensors in (("base", BASE), ("delta", DELTA)):
        (tmp_path / role).mkdir()
        archive_of(save(tensors, tmp_path / role / "model"), DEFLATED)
        shutil.rmtree(tmp_path / role / "model")
    merge(tmp_path / "base" / "model.zip", tmp_path / "delta" / "model.zip", tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(merged_pair / "out")
    assert names_in(tmp_path) == ["base", "delta", "out"]


def test_an_archive_has_the_plan_of_its_folder(tmp_path: Path) -> None:
    """A folder and its archives have the same plan: a result made from one is already complete for the other."""
    base, delta = save(BASE, tmp_path / "base"), save(DELTA, tmp_path / "delta")
    made = merge(archive_of(base, DEFLATED), archive_of(delta, STORED), tmp_path / "out")
    again = merge(base, delta, tmp_path / "out")
    assert (made.status, again.status) == ("merged", "already complete")
    back = merge(base.with_suffix(".zip"), delta.with_suffix(".zip"), tmp_path / "out")
    assert (back.status, back.manifest_sha256) == ("already complete", made.manifest_sha256)
    assert names_in(tmp_path) == ["base", "base.zip", "delta", "delta.zip", "out"]
