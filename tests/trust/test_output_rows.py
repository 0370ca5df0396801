"""Rows 69 and 72 to 75 of the table: targets that are inputs, and results that were tampered with.

Other faults of the output are tested in ``tests/unit/staging`` and ``tests/faults``, signatures in ``tests/unit/signing``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaweights.jobs.apply import apply_delta
from tests.support.pairs import make_pair
from tests.trust.harness import Case, Make, case, contents, hold, run_command


def into(target: Callable[[Path, Path], Path]) -> Make:
    """Return a function that makes a pair and returns the arguments of a merge into ``target(base, delta)``."""

    def make(folder: Path) -> list[str | Path]:
        base, delta = make_pair(folder, "safetensors")
        (folder / "link").symlink_to(base)
        return ["apply", "--base", base, "--delta", delta, "--target", target(base, delta), "--overwrite"]

    return make


INPUTS: dict[str, Callable[[Path, Path], Path]] = {
    "row69-the-base": lambda base, _: base,
    "row69-the-delta": lambda _, delta: delta,
    "row69-inside-the-base": lambda base, _: base / "merged",
    "row69-inside-the-delta": lambda _, delta: delta / "a" / "b",
    "row69-around-both": lambda base, _: base.parent,
    "row69-the-base-by-a-link": lambda base, _: base.parent / "link",
    "row69-the-base-by-another-spelling": lambda base, _: base / ".." / "delta" / ".." / "base",
}


@pytest.mark.sampled(2)
@pytest.mark.trust
@pytest.mark.parametrize("target", INPUTS.values(), ids=INPUTS)
def test_a_target_that_is_an_input_is_refused(
    target: Callable[[Path, Path], Path], tmp_path: Path, normal: float
) -> None:
    """A target that is, is inside, or contains an input ends the run with 7, and the inputs do not change."""
    base, _ = make_pair(tmp_path / "sound", "safetensors")
    hold(case(into(target), 7), tmp_path, normal)
    made = tmp_path / "inputs-absent"
    assert contents(made / "base") == contents(base)
    assert {path.name for path in made.iterdir()} == {"base", "delta", "link"}


# Tampering that verify finds.


def of_result(change: Callable[[Path], object], *more: str) -> Make:
    """Return a function that makes a result, tampers with it, and returns the arguments of its verification."""

    def make(folder: Path) -> list[str | Path]:
        base, delta = make_pair(folder, "safetensors")
        apply_delta(base, delta, folder / "out", max_shard_size="50KB")
        change(folder / "out")
        return ["verify", folder / "out", *more]

    return make


SHARD, SHARDS = "model-00002-of-*.safetensors", "model-0000[12]-of-*.safetensors"


def flip(pattern: str, at: int) -> Callable[[Path], object]:
    """Return a function that flips one bit of a file."""

    def change(out: Path) -> None:
        (path,) = out.glob(pattern)
        data = bytearray(path.read_bytes())
        data[at] ^= 0x10
        path.write_bytes(data)

    return change


def swap_names(out: Path) -> None:
    """Exchange the names of two shards."""
    one, other = sorted(out.glob(SHARDS))
    one.rename(out / "x")
    other.rename(one)
    (out / "x").rename(other)


def link(out: Path) -> None:
    """Replace a shard by a link to the same bytes."""
    (path,) = out.glob(SHARD)
    path.rename(out.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def edit_manifest(out: Path) -> None:
    """Change a file's digest in the manifest."""
    document = json.loads((out / "manifest.json").read_text())
    document["result"]["files"]["config.json"]["sha256"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(document))


def remove(pattern: str) -> Callable[[Path], object]:
    """Return a function that removes a file."""
    return lambda out: next(iter(out.glob(pattern))).unlink()


TAMPERED: dict[str, Case] = {
    "row72-weight": case(of_result(flip(SHARD, -1)), 6, "model-00002-of-", "has another sha256: found "),
    "row72-header": case(of_result(flip(SHARD, 20)), 6, "model-00002-of-", "has another sha256: found "),
    "row72-config": case(of_result(flip("config.json", 0)), 6, "config.json", "has another sha256: found "),
    "row72-sums": case(of_result(flip("SHA256SUMS", 0)), 6, "SHA256SUMS", "does not say what manifest.json says"),
    "row73-extra": case(of_result(lambda out: shutil.copy(out / "config.json", out / "x.bin")), 6, "x.bin", "an extra file"),
    "row73-missing": case(of_result(remove(SHARD)), 6, "model-00002-of-", "is missing"),
    "row73-renamed": case(of_result(swap_names), 6, "model-00001-of-"),
    "row74-manifest": case(of_result(edit_manifest), 6, "config.json", "has another sha256"),
    "row74-pinned": case(
        of_result(edit_manifest, "--expect-manifest", "0" * 64), 6, "manifest.json", "is not the pinned one"
    ),
    "row74-expected": case(of_result(lambda _: None, "--expect", "dw1:" + "0" * 64), 6, "content digest is not the expected one"),
    "row75-link": case(of_result(link), 6, "model-00002-of-", "is not a regular file"),
}  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.trust
@pytest.mark.parametrize("subject", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_result_fails(subject: Case, tmp_path: Path, normal: float) -> None:
    """A result with any change fails verification with 6, and the file is named."""
    hold(subject, tmp_path, normal)


@pytest.mark.trust
def test_row72_a_sound_result_verifies(tmp_path: Path) -> None:
    """The rows above fail because of the tampering: the untouched result verifies."""
    outcome = run_command(of_result(lambda _: None)(tmp_path))
    assert outcome.code == 0, outcome.err
