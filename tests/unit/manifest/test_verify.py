"""Verification finds every change to our results, in both directions, and trusts bytes rather than the manifest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, UsageError
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import Problem
from tests.support.errors import refused
from tests.support.manifest_format import FIXTURE
from tests.support.pairs import base_tensors, delta_tensors, save
from tests.support.results import (
    MANIFEST,
    SUMS,
    digest_of,
    forge_file,
    merged,
    only_problem,
    original,
    read,
    restate_digest,
    sha256,
    shards_of,
    write,
)

__all__ = ["merged", "original"]  # fixtures


def test_what_we_write_verifies(merged: Path) -> None:
    """An untouched result has no problems, with and without pins, and the report counts what was checked."""
    manifest_sha256 = sha256(merged / MANIFEST)
    plain = verify(merged)
    assert plain.ok
    assert not plain.recomputed
    pinned = verify(merged, expect=digest_of(merged), expect_manifest=manifest_sha256.upper(), workers=1)
    assert pinned.ok
    assert pinned.recomputed
    for report in (plain, pinned):
        report.raise_if_failed()
        assert report.manifest_sha256 == manifest_sha256
        assert report.content_digest == digest_of(merged)
        others = [path for path in merged.iterdir() if path.name not in {MANIFEST, SUMS}]
        assert report.files == len(others)
        assert report.bytes == sum(path.stat().st_size for path in others)


def flips(folder: Path, name: str, stride: int, check: Callable[[], bool]) -> list[int]:
    """Flip a bit of every ``stride``-th byte of a file, one at a time; return the offsets where ``check`` is still true."""
    path = folder / name
    data = path.read_bytes()
    missed = []
    with path.open("r+b", buffering=0) as file:
        for place in range(0, len(data), stride):
            os.pwrite(file.fileno(), bytes([data[place] ^ 1 << place % 8]), place)
            if check():
                missed.append(place)
            os.pwrite(file.fileno(), data[place : place + 1], place)
    assert path.read_bytes() == data
    return missed


@pytest.mark.slow
def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """A flip in any byte of weights and sums, and in every fifth byte of other files, is found."""
    tensors = {"w": torch.arange(6).half(), "v": torch.ones(2, 2).half()}
    save(tensors, tmp_path / "base", "safetensors", 1)
    save({name: tensor * 2 for name, tensor in tensors.items()}, tmp_path / "delta", "safetensors", 1)
    folder = Path(apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "merged", max_shard_size=12).target)
    names = sorted(path.name for path in folder.iterdir())
    assert len(shards_of(folder)) == 2
    for name in names:
        stride = 1 if name.endswith(".safetensors") or name == SUMS else 5
        assert flips(folder, name, stride, lambda: verify(folder, workers=1).ok) == [], name
    assert verify(folder).ok


def test_flipped_weights_are_found_under_every_pin(merged: Path) -> None:
    """A flipped byte of weights, headers included, is found by the manifest and by the content digest."""
    expect = digest_of(merged)
    for path in shards_of(merged):
        assert flips(merged, path.name, 501, lambda: verify(merged).ok) == []
        assert flips(merged, path.name, 1009, lambda: verify(merged, expect=expect).ok) == []


@pytest.mark.parametrize("expect", [False, True])
def test_changes_to_the_set_of_files_are_found(merged: Path, *, expect: bool) -> None:
    """A file that is truncated, longer, missing, added or renamed is found and named."""
    pin = digest_of(merged) if expect else None
    shard = shards_of(merged)[1]
    data = shard.read_bytes()

    def problems() -> dict[str, str]:
        report = verify(merged, expect=pin)
        with refused(CheckFailed, where=merged) as info:
            report.raise_if_failed()
        assert info.value.exit_code == 6
        return {problem.file: str(problem) for problem in report.problems}

    os.truncate(shard, len(data) - 1)
    assert shard.name in problems()
    shard.write_bytes(data + b"\0")
    assert shard.name in problems()
    shard.write_bytes(b"")
    assert shard.name in problems()
    shard.unlink()
    assert "is missing" in problems()[shard.name]
    other = shard.with_name("model-00009-of-00009.safetensors")
    other.write_bytes(data)
    found = problems()
    assert "is missing" in found[shard.name]
    assert "is not in the manifest: found an extra file" in found[other.name]
    other.rename(shard)
    assert verify(merged, expect=pin).ok
    (merged / "pytorch_model.bin").write_bytes(b"extra")
    assert list(problems()) == ["pytorch_model.bin"]


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors", MANIFEST, SUMS])
@pytest.mark.parametrize("kind", ["link", "folder", "FIFO"])
def test_what_is_no_regular_file_is_found(merged: Path, tmp_path: Path, name: str, kind: str) -> None:
    """A file replaced by a link to the same bytes, a folder or a FIFO is found; a FIFO does not hang the check."""
    path = merged / name
    assert path.exists()
    path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    report = verify(merged)
    assert (
        Problem(name, "is not a regular file", "a special file" if kind == "FIFO" else f"a {kind}") in report.problems
    )


def test_a_folder_inside_is_found(merged: Path) -> None:
    """A subfolder in the result is a problem."""
    (merged / "code").mkdir()
    assert only_problem(verify(merged)) == Problem("code", "is not a regular file", "a folder")


def test_what_others_put_beside_a_model_is_permitted(merged: Path) -> None:
    """A signature, the Hub client's cache, and git's own files are permitted."""
    (merged / "model.sig").write_text("{}")
    (merged / ".cache" / "huggingface").mkdir(parents=True)
    (merged / ".git").mkdir()
    (merged / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert verify(merged, expect=digest_of(merged)).ok


def test_an_edited_manifest_is_found(merged: Path) -> None:
    """A manifest that was edited without SHA256SUMS, or whose content digest does not follow from its tensors, is found."""
    text = (merged / MANIFEST).read_text()
    (merged / MANIFEST).write_text(text.replace('"F16"', '"F16" '))
    assert only_problem(verify(merged)).file == SUMS
    document = json.loads(text)
    document["result"]["content_digest"] = "dw1:" + 64 * "0"
    write(merged, document)
    assert only_problem(verify(merged)).problem == "content_digest does not follow from the tensors that it lists"
    document = json.loads(text)
    next(iter(document["result"]["tensors"].values()))["shape"] = [1]
    write(merged, document)
    assert only_problem(verify(merged)).problem == "content_digest does not follow from the tensors that it lists"


def test_a_consistently_edited_manifest_is_found_by_a_pin(merged: Path) -> None:
    """A manifest that was forged consistently with SHA256SUMS passes without a pin, and fails with either pin."""
    true_digest, true_sha256 = digest_of(merged), sha256(merged / MANIFEST)
    document = read(merged)
    next(iter(document["result"]["tensors"].values()))["digest"] = "blake3:" + 64 * "0"
    restate_digest(document)
    write(merged, document)
    assert verify(merged).ok, "nothing but a pin can tell"
    pinned = only_problem(verify(merged, expect_manifest=true_sha256))
    assert (pinned.file, pinned.problem, pinned.expected) == (MANIFEST, "is not the pinned one", true_sha256)
    with_truth = verify(merged, expect=true_digest)
    assert with_truth.content_digest == true_digest, "recomputed from the bytes"
    assert only_problem(with_truth).problem == "tensor is not what the manifest says"


def test_expect_asks_the_bytes(merged: Path) -> None:
    """A forged content digest that is also expected still fails, because it is recomputed from the bytes."""
    document = read(merged)
    next(iter(document["result"]["tensors"].values()))["digest"] = "blake3:" + 64 * "0"
    restate_digest(document)
    write(merged, document)
    forged = digest_of(merged)
    report = verify(merged, expect=forged)
    assert report.recomputed
    assert report.content_digest != forged
    assert f"content digest is not the expected one: found {report.content_digest}" in str(report.problems[-1])


def test_forged_weights_are_found_by_expect(merged: Path) -> None:
    """Weights that were changed together with their sha256 pass without a pin, and fail with the content digest."""
    expect = digest_of(merged)
    shard = shards_of(merged)[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    forge_file(merged, shard.name, bytes(data))
    assert verify(merged).ok, "the manifest's tensor digests are not looked at without a pin"
    report = verify(merged, expect=expect)
    assert [problem.problem for problem in report.problems] == [
        "tensor is not what the manifest says",
        "content digest is not the expected one",
    ]


def test_tensors_added_hidden_or_doubled_are_found_by_expect(merged: Path) -> None:
    """A tensor that is only in the weights, only in the manifest, or in two files is found."""
    expect = digest_of(merged)
    first, second = shards_of(merged)
    forge_file(merged, "model-00003.safetensors", first.read_bytes())
    loadable = "could be loaded, but holds no tensor of the manifest"
    assert {problem.problem for problem in verify(merged).problems} == {loadable}
    doubled = {problem.problem for problem in verify(merged, expect=expect).problems}
    assert doubled == {loadable, "is in two weights files", "is in another file than the manifest says"}
    one_more = safetensors({"new": torch.ones(3)})
    forge_file(merged, "model-00003.safetensors", one_more)
    found = {problem.file: problem.problem for problem in verify(merged, expect=expect).problems}
    assert found == {
        "model-00003.safetensors": loadable,
        "new": "tensor is in a weights file, not in the manifest",
        str(merged): "content digest is not the expected one",
    }
    document = read(merged)
    for name in ("model-00003.safetensors", second.name):
        del document["result"]["files"][name]
        (merged / name).unlink()
    write(merged, document)
    hidden = verify(merged, expect=expect).problems
    assert {problem.problem for problem in hidden} == {
        "holds tensors of the manifest, but is not among its files",
        "tensor is in the manifest, in no weights file",
        "content digest is not the expected one",
    }


def safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """Return a safetensors file."""
    from safetensors.torch import save as to_bytes  # noqa: PLC0415  (the name is taken)

    data: bytes = to_bytes(tensors, {"format": "pt"})
    return data


def test_an_unsound_weights_file_is_a_problem_not_an_error(merged: Path) -> None:
    """A malformed weights file is reported like any other problem."""
    forge_file(merged, shards_of(merged)[0].name, b"no safetensors")
    problems = verify(merged, expect=digest_of(merged)).problems
    assert "cannot be verified" in problems[0].problem
    assert problems[0].file == shards_of(merged)[0].name


def test_all_problems_are_collected(merged: Path) -> None:
    """One pass reports a changed, a missing and an extra file, a link, an edited SHA256SUMS and a wrong pin together."""
    (merged / "config.json").write_text("{}")
    shards_of(merged)[0].unlink()
    (merged / "extra.py").write_text("?")
    (merged / "DELTAWEIGHTS_NOTICE.txt").unlink()
    (merged / "DELTAWEIGHTS_NOTICE.txt").symlink_to("/dev/null")
    (merged / SUMS).write_text("")
    report = verify(merged, expect_manifest=64 * "a")
    assert {problem.file for problem in report.problems} == {
        "config.json", "model-00001-of-00002.safetensors", "extra.py", "DELTAWEIGHTS_NOTICE.txt", SUMS, MANIFEST,
    }  # fmt: skip
    assert len(report.problems) == 6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": "deltaweights-manifest", "version": 1}',
        '{"format": "deltaweights-manifest", "version": 2, "result": {}, "inputs": {}}',
        '{"format": "other", "version": 1}',
        '{"format": "deltaweights-manifest", "version": 1, "version": 1}',
        "\ufeff{}",
    ],
)
def test_a_manifest_that_is_none_is_a_problem(merged: Path, text: str) -> None:
    """Bytes that are not a manifest of our version are reported, not raised."""
    (merged / MANIFEST).write_text(text)
    assert "is not a manifest" in [problem.problem for problem in verify(merged).problems]


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/b", "..", "", "x\n", MANIFEST, "a\\b"])
def test_a_manifest_cannot_point_outside(merged: Path, name: str) -> None:
    """A manifest that names a file by a path is refused."""
    document = read(merged)
    document["result"]["files"][name] = document["result"]["files"]["config.json"]
    (merged / MANIFEST).write_text(json.dumps(document))
    assert "is not a manifest" in [problem.problem for problem in verify(merged).problems]


@pytest.mark.parametrize("value", [-1, 1.5, True, "12", None, [1]])
def test_a_manifest_with_odd_values_is_none(merged: Path, value: object) -> None:
    """A manifest with a size that is not a whole number, or negative, is refused."""
    document = read(merged)
    document["result"]["files"]["config.json"]["size"] = value
    (merged / MANIFEST).write_text(json.dumps(document))
    assert "is not a manifest" in [problem.problem for problem in verify(merged).problems]


def test_a_folder_without_a_manifest_is_a_problem(tmp_path: Path) -> None:
    """A folder without a manifest fails, with and without pins."""
    for expect, expect_manifest in ((None, None), ("dw1:" + 64 * "0", None), (None, 64 * "0")):
        report = verify(tmp_path, expect=expect, expect_manifest=expect_manifest)
        assert only_problem(report, of=1 if expect is None else 2).problem == "is missing"
        assert not any(verdict.ok for _, verdict in report.verdicts())
        assert report.content_digest is None


def test_a_missing_folder_is_an_error_of_input_output(tmp_path: Path) -> None:
    """A missing folder is an error: nothing was checked."""
    with refused(InputOutputError, where=tmp_path / "missing"):
        verify(tmp_path / "missing")


@pytest.mark.parametrize(
    "pin",
    ["", "dw1:", 64 * "0", "dw1:" + 63 * "0", "dw1:" + 65 * "0", "dw1:" + 64 * "g", "dw2:" + 64 * "0", "DW1:" + 64 * "a",
     "dw1:" + 64 * "A", " dw1:" + 64 * "0", "dw1:" + 63 * "0" + "\n"],
)  # fmt: skip
def test_a_malformed_digest_is_a_usage_error(merged: Path, pin: str) -> None:
    """A pin that is not a content digest is a usage error, so that a typo is not taken for a mismatch."""
    with refused(UsageError, found=pin, expected="dw1: and 64 lower-case hex digits"):
        verify(merged, expect=pin)


@pytest.mark.parametrize("pin", ["", 63 * "0", 65 * "0", 64 * "g", "sha256:" + 64 * "0", 63 * "0" + "\n", 64 * "٣"])
def test_a_malformed_sha256_is_a_usage_error(merged: Path, pin: str) -> None:
    """A manifest pin that is not a sha256 is a usage error."""
    with refused(UsageError, found=pin, expected="64 hex digits"):
        verify(merged, expect_manifest=pin)


def test_coreutils_check_our_sums(merged: Path) -> None:
    """``sha256sum -c --strict SHA256SUMS`` passes on a result, covers each of its files, and fails on a flipped byte."""
    command = ["sha256sum", "-c", "--strict", SUMS]
    done = subprocess.run(command, cwd=merged, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    named = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    assert named == {path.name for path in merged.iterdir()} - {SUMS}
    shard = shards_of(merged)[0]
    data = bytearray(shard.read_bytes())
    data[100] ^= 4
    shard.write_bytes(data)
    done = subprocess.run(command, cwd=merged, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{shard.name}: FAILED" in done.stdout


def test_the_digest_does_not_depend_on_the_order_in_which_files_are_read(merged: Path) -> None:
    """One worker and many give the same report, problems in the same order."""
    for path in merged.iterdir():
        if path.name != MANIFEST:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    reports = {verify(merged, expect=digest_of(merged), workers=workers) for workers in (1, 2, 8)}
    assert len(reports) == 1
    assert len(reports.pop().problems) > 4


def test_tensors_without_elements_are_recomputed_too(tmp_path: Path) -> None:
    """Empty tensors and scalars anywhere in a file are part of the recomputed digest."""
    tensors = {
        "a": torch.empty(0).half(), "b": torch.ones(3).half(), "c": torch.empty(2, 0).half(),
        "d": torch.tensor(2.0).half(), "e": torch.empty(0, 5).half(),
    }  # fmt: skip
    save(tensors, tmp_path / "base", "torch", 1)
    save({name: tensor * 2 for name, tensor in tensors.items()}, tmp_path / "delta", "torch", 1)
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "merged")
    assert verify(result.target, expect=result.content_digest).ok


def test_tensors_larger_than_a_read_are_recomputed_in_pieces(tmp_path: Path) -> None:
    """Tensors that span several of the pieces in which a file is read have the digests that the merge recorded."""
    base = base_tensors(layers=1, vocabulary=9001, hidden=64)
    save(base, tmp_path / "base", "safetensors", 1)
    save(delta_tensors(base), tmp_path / "delta", "safetensors", 1)
    result = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "merged")
    assert result.bytes > 2 * 1024 * 1024
    report = verify(result.target, expect=result.content_digest)
    assert report.problems == ()


@pytest.mark.parametrize("beside", ["both", "sums", "neither", "others"])
def test_a_kept_manifest_counts_alone(merged: Path, tmp_path: Path, beside: str) -> None:
    """With an external manifest the folder needs neither manifest.json nor SHA256SUMS; notes say that they are ignored."""
    pins: dict[str, Any] = {"expect": digest_of(merged), "expect_manifest": sha256(merged / MANIFEST)}
    kept = tmp_path / "kept.json"
    shutil.copy(merged / MANIFEST, kept)
    there = {"both": [SUMS, MANIFEST], "sums": [SUMS], "neither": [], "others": [SUMS, MANIFEST]}[beside]
    for name in {MANIFEST, SUMS} - set(there):
        (merged / name).unlink()
    if beside == "others":
        for name in there:
            (merged / name).write_text("of another model")
    report = verify(merged, manifest=kept, **pins)
    assert report.problems == ()
    assert report.notes == tuple(f"{merged / name} was not looked at: another manifest counts" for name in there)
    assert (report.content_digest, report.manifest_sha256) == (pins["expect"], pins["expect_manifest"])
    (merged / "config.json").write_text("{}")
    (merged / "extra.py").write_text("?")
    assert {problem.file for problem in verify(merged, manifest=kept).problems} == {"config.json", "extra.py"}


def test_a_kept_manifest_of_other_weights_is_found(merged: Path, tmp_path: Path) -> None:
    """Weights that were changed together with manifest.json and SHA256SUMS fail against an external manifest."""
    kept = tmp_path / "kept.json"
    shutil.copy(merged / MANIFEST, kept)
    shard = shards_of(merged)[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    forge_file(merged, shard.name, bytes(data))
    assert verify(merged).ok, "by itself it is consistent"
    assert only_problem(verify(merged, manifest=kept)).problem == "has another sha256"
    pinned = only_problem(verify(merged, manifest=kept, expect_manifest=64 * "0"), of=2)
    assert (pinned.file, pinned.problem) == (str(kept), "is not the pinned one")


def test_a_result_of_links_verifies_against_a_kept_manifest_only(merged: Path, tmp_path: Path) -> None:
    """A folder of links verifies only if a manifest from elsewhere is given: naming the folder's own changes nothing."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in merged.iterdir():
        (linked / path.name).symlink_to(path)
    assert verify(linked, manifest=merged / MANIFEST, expect=digest_of(merged)).problems == ()
    assert not verify(linked).ok
    assert verify(linked, manifest=linked / MANIFEST) == verify(linked)


def test_a_kept_manifest_that_is_none_is_an_error(merged: Path, tmp_path: Path) -> None:
    """An external manifest that is malformed or missing is an error: nothing was compared."""
    with refused(MalformedInput, where=merged / "config.json"):
        verify(merged, manifest=merged / "config.json")
    with refused(InputOutputError, where=tmp_path / "missing"):
        verify(merged, manifest=tmp_path / "missing")


@pytest.mark.parametrize("release", ["out", "out-with-proof", "out-with-card", "made"])
def test_manifests_of_all_releases_verify(release: str, tmp_path: Path) -> None:
    """Results of every release verify, by their own manifest and by a copy of it elsewhere."""
    folder = FIXTURE / release
    expect = digest_of(folder)
    assert verify(folder, expect=expect).problems == ()
    assert verify(folder, expect=expect, manifest=shutil.copy(folder / MANIFEST, tmp_path)).problems == ()


def test_folders_are_permitted_by_listings_alone(merged: Path) -> None:
    """A merge's manifest cannot permit a subfolder by a key that only listings have."""
    document = read(merged)
    document["result"]["folders"] = ["code"]
    write(merged, document)
    assert verify(merged).ok, "a key that is not known is ignored"
    (merged / "code").mkdir()
    assert only_problem(verify(merged)) == Problem("code", "is not a regular file", "a folder")
