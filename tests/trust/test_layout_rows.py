"""Rows 50 to 61 of the table: the index, the layout of a folder, and what stands in place of files.

Many more of each row are in ``tests/unit/checkpoint/test_folder.py``; here some go through a merge.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltaweights.staging.location import locate_target
from tests.support.killed_merges import Pair, apply_command, caught_in_the_middle
from tests.support.limits import PATIENCE
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save
from tests.trust.harness import TARGET, Case, Make, case, hold, merging, run_command
from tests.unit.checkpoint.test_folder import INDEXES, NAMES, SPECIAL

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ONE, TWO = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
FIRST = "model.embed_tokens.weight"


def with_index(change: Callable[[dict[str, object]], object]) -> Make:
    """Return what makes a pair in whose delta's index ``change`` was made to the weight_map."""

    def edit(_: Path, delta: Path) -> None:
        index = json.loads((delta / INDEX).read_text())
        change(index["weight_map"])
        (delta / INDEX).write_text(json.dumps(index))

    return merging(edit)


def naming(row: str) -> Make:
    """Return what makes a pair whose index names something that is no weights file beside it."""
    return with_index(lambda places: places.update({FIRST: NAMES[row]}))


def indexed(row: str) -> Make:
    """Return what makes a pair with another text for an index."""
    content = INDEXES[row][0]
    data = content if isinstance(content, bytes) else content.encode()
    return merging(lambda _, delta: (delta / INDEX).write_bytes(data))


def add_to_second_shard(_: Path, delta: Path) -> None:
    """Put a tensor of the first shard into the second one, too."""
    tensors = load_file(delta / TWO)
    tensors[FIRST] = load_file(delta / ONE)[FIRST]
    save_file(tensors, delta / TWO)


def of_tensors(change: Callable[[Tensors, Tensors], object], *more: str) -> Make:
    """Return what makes a pair of whose tensors ``change(base, delta)`` spoils some."""

    def make(folder: Path) -> list[str | Path]:
        base = base_tensors()
        delta = delta_tensors(base)
        change(base, delta)
        one, other = (save(t, folder / role, "safetensors") for role, t in (("base", base), ("delta", delta)))
        return ["apply", "--base", one, "--delta", other, "--target", TARGET, *more]

    return make


def set_nan(_: Tensors, delta: Tensors) -> None:
    """Put a NaN into the delta."""
    delta["model.norm.weight"][2] = torch.nan


def replaced(name: str, make: Callable[[Path], None]) -> Make:
    """Return what makes a pair with something else in place of a file of the delta."""

    def change(_: Path, delta: Path) -> None:
        (delta / name).unlink()
        make(delta / name)

    return merging(change)


def stray(name: str) -> Make:
    """Return what makes a pair with another set of weights in the delta's folder."""
    return merging(lambda _, delta: shutil.copy(delta / ONE, delta / name))


CASES: dict[str, Case] = {
    **{
        row: case(
            naming(row),
            3, INDEX, f"tensor {FIRST}: index names something other than a weights file beside it",
        )
        for row in ("row50-way-up", "row50-absolute", "row50-number", "row50-control", "row50-backslash-way-up")
    },
    "row52-two-shards": case(merging(add_to_second_shard), 3, TWO, f"tensor {FIRST}: tensor is in two shards: found also in {ONE}"),
    "row53-not-in-the-shard": case(
        with_index(lambda places: places.update({"more": TWO})), 3, INDEX, "tensor more: tensor of the index is not in its shard"
    ),
    "row53-not-in-the-index": case(
        with_index(lambda places: places.pop(FIRST)), 3, ONE, f"tensor {FIRST}: tensor of a shard is not in the index"
    ),
    "row53-another-shard": case(
        with_index(lambda places: places.update({FIRST: TWO})), 3, f"tensor {FIRST}: tensor is in another shard than the index says"
    ),
    "row54-missing": case(merging(lambda _, delta: (delta / TWO).unlink()), 3, TWO, "shard is missing"),
    "row55-single-beside-index": case(stray(SINGLE), 3, f"more than one set of weights: found {INDEX} and {SINGLE}"),
    "row55-meta-beside-index": case(stray("consolidated.00.pth"), 3, INDEX, "consolidated.00.pth"),
    "row55-stray-shard": case(stray("model-00003-of-00003.safetensors"), 3, "model-00003-of-00003.safetensors", INDEX),
    **{
        row: case(indexed(row), 3, INDEX, INDEXES[row][1])
        for row in (
            "row56-cut", "row56-byte-order-mark", "row56-nested", "row56-duplicate-tensor-escaped", "row56-too-many-tensors",
        )
    },
    "row58-name": case(of_tensors(lambda _, delta: delta.update(strange=torch.zeros(3).half())), 4, "tensor strange"),
    "row58-shape": case(
        of_tensors(lambda _, delta: delta.update({"model.norm.weight": torch.zeros(33).half()})), 4,
        "tensor model.norm.weight", "[33]",
    ),
    "row58-dtype": case(
        of_tensors(lambda _, delta: delta.update({"model.norm.weight": torch.zeros(32, dtype=torch.int64)})), 4,
        "tensor model.norm.weight", "I64",
    ),
    "row58-missing": case(of_tensors(lambda base, _: base.pop("model.norm.weight")), 4, "tensor model.norm.weight"),
    "row59-strict": case(of_tensors(set_nan, "--strict", "--workers", "1"), 6, "tensor model.norm.weight: result is not finite"),
    **{
        f"row60-{found.split()[-1]}-{name}": case(replaced(name, make), 3, f"{name}: not a regular file: found {found}")
        for make, found in SPECIAL[:3] for name in (ONE, INDEX)
    },
}  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.trust
@pytest.mark.parametrize("subject", CASES.values(), ids=CASES.keys())
def test_a_bad_layout_is_refused(subject: Case, tmp_path: Path, normal: float) -> None:
    """A folder that contradicts itself, or a pair that does not fit, ends the run with one line, and nothing is touched."""
    hold(subject, tmp_path, normal)


# What must pass, and what is said.


def snapshot(tensors: Tensors, cache: Path) -> Path:
    """Save a checkpoint as the Hub's cache has it: links in a snapshot to blobs."""
    source = save(tensors, cache / "blobs", "safetensors")
    made = cache / "snapshots" / "0123"
    made.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        name = path.name
        path.rename(source / f"blob{number}")
        (made / name).symlink_to(f"../../blobs/blob{number}")
    return made


@pytest.mark.trust
def test_row51_a_snapshot_is_merged_and_leaves_no_path(tmp_path: Path) -> None:
    """Links that end in regular files are followed; their sha256 is recorded, and no path."""
    base = base_tensors()
    delta = delta_tensors(base)
    paths = [snapshot(tensors, tmp_path / role) for role, tensors in (("base", base), ("delta", delta))]
    arguments: list[str | Path] = [
        "apply",
        "--base",
        paths[0],
        "--delta",
        paths[1],
        "--target",
        tmp_path / "out",
        "--hash-inputs",
    ]
    outcome = run_command(arguments)
    assert outcome.code == 0, outcome.err
    assert same_bits(load(tmp_path / "out"), reference(base, delta))
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert all(file["sha256"] for file in json.loads(manifest)["inputs"]["base"]["files"].values())
    assert "blob0" not in manifest
    assert str(tmp_path) not in manifest


@pytest.mark.trust
def test_row51_a_link_to_nothing_is_refused(tmp_path: Path, normal: float) -> None:
    """A link whose end is missing is a missing shard."""

    def change(_: Path, delta: Path) -> None:
        (delta / TWO).unlink()
        (delta / TWO).symlink_to("../blobs/0123")

    hold(case(merging(change), 3, TWO, "shard is missing"), tmp_path, normal)


@pytest.mark.trust
def test_row57_a_wrong_total_size_is_a_warning(tmp_path: Path) -> None:
    """It is said once, and the merge goes on."""

    def change(_: Path, delta: Path) -> None:
        index = json.loads((delta / INDEX).read_text())
        (delta / INDEX).write_text(json.dumps(index | {"metadata": {"total_size": 7}}))

    arguments = [tmp_path / "out" if part == TARGET else part for part in merging(change)(tmp_path)]
    outcome = run_command(arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("deltaweights: warning: ") == 1
    assert f"{INDEX}: total_size is 7, the tensors have " in outcome.err
    assert run_command(["verify", tmp_path / "out"]).code == 0


@pytest.mark.trust
def test_row59_a_nan_is_said(tmp_path: Path) -> None:
    """Without ``--strict`` the merge goes on, and tells tensor and count."""
    arguments = [tmp_path / "out" if part == TARGET else part for part in of_tensors(set_nan)(tmp_path)]
    outcome = run_command(arguments)
    assert outcome.code == 0, outcome.err
    assert "model.norm.weight" in outcome.err
    assert "1 NaN or infinite" in outcome.err


@pytest.mark.sampled(2)
@pytest.mark.trust
@pytest.mark.parametrize("role", ["base", "delta"])
@pytest.mark.parametrize("how", ["row61-cut", "row61-touched", "row61-overwritten"])
def test_an_input_that_changes_during_the_run(large_pair: Pair, tmp_path: Path, role: str, how: str) -> None:
    """An input that is cut or written to while it is merged ends the run with 5, and nothing has the target's name."""
    inputs = {path.name: shutil.copytree(path, tmp_path / path.name) for path in large_pair}
    path = inputs[role] / SINGLE
    target = tmp_path / "out"
    with caught_in_the_middle(
        apply_command(inputs["base"], inputs["delta"], target, "--quiet"), locate_target(target)
    ) as process:
        if how == "row61-cut":
            os.truncate(path, 1000)
        elif how == "row61-touched":
            os.utime(path, (1, 1))
        else:
            with path.open("r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(bytes(1000))
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (5, ""), err
    assert err.startswith(f"deltaweights: error: {path}: ")
    assert ("cut short" if how == "row61-cut" else "changed while being read") in err
    assert err.count("\n") == 1
    assert not target.exists()
