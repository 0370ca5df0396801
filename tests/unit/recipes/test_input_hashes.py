"""The sha256 of input files, computed or stated by the Hub's cache."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltaweights.hub.snapshot import Snapshot, snapshot_at, stated_sha256
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.inspect import inspect_checkpoint
from tests.conftest import Run
from tests.support.identity import (
    BASE,
    DELTA,
    FILE,
    LLAMA_1,
    ONE,
    archive_of,
    cached,
    counted_reads,
    sha256_of,
    with_projector,
)
from tests.support.meta import save_meta
from tests.support.pairs import save
from tests.support.reports import RecordingReport


def test_a_blob_that_is_not_its_name_is_told(tmp_path: Path) -> None:
    """If the computed hash of a cached file differs from its blob's name, there is a warning."""
    base, delta = cached(save(BASE, tmp_path / "base"), LLAMA_1), save(DELTA, tmp_path / "delta")
    report = RecordingReport()
    apply_delta(base, delta, tmp_path / "out", hash_inputs=True, report=report)
    assert any(ONE in warning for warning in report.warnings)


def test_what_is_no_statement(tmp_path: Path) -> None:
    """Only a link to a blob whose name is 64 hex digits states a hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    sha256 = "ab" * 32
    made = {"blobs": (sha256, sha256.upper(), sha256[:40], f"{sha256}.incomplete"), "elsewhere": (sha256,)}
    for folder, blobs in made.items():
        for blob in blobs:
            (tmp_path / folder / blob).write_text("x")
            (tmp_path / f"{folder}-{blob}").symlink_to(f"{folder}/{blob}")
    (tmp_path / "chain").symlink_to(f"blobs-{sha256}")
    (tmp_path / "nothing").symlink_to(f"blobs/{'cd' * 32}")
    found = {name: stated_sha256(tmp_path / name) for name in os.listdir(tmp_path)}  # noqa: PTH208
    assert {name for name, stated in found.items() if stated} == {f"blobs-{sha256}", "chain", "nothing"}
    assert found["chain"] == sha256
    assert stated_sha256(tmp_path / "blobs" / sha256) is None, "a file that is no link"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models--org--name/snapshots/0123", Snapshot("org/name", "0123")),
        ("models--org--name/snapshots/0123/x.bin", Snapshot("org/name", "0123")),
        ("models--gpt2/snapshots/0123", Snapshot("gpt2", "0123")),
        ("models--org--a--b/snapshots/0123/", Snapshot("org/a/b", "0123")),
        ("datasets--org--name/snapshots/0123", None),
        ("models--org--name/blobs/0123", None),
        ("models--org--name/snapshots", None),
        ("models--org--name/snapshots/0123/sub/x.bin", None),
        ("org/name", None),
    ],
)
def test_where_a_snapshot_is(path: str, expected: Snapshot | None, tmp_path: Path) -> None:
    """A snapshot, or a file directly in it, is recognized by the names of the folders above, even if nothing exists."""
    assert snapshot_at(tmp_path / path) == expected


def sums_of(paths: Iterator[Path]) -> dict[str, str]:
    """Return what ``sha256sum`` says of files, by their names."""
    done = subprocess.run(["sha256sum", *paths], capture_output=True, text=True, check=True)
    pairs = (line.split("  ", 1) for line in done.stdout.splitlines())
    return {Path(path).name: digest for digest, path in pairs}


FORMS: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "shards": lambda f: (save(BASE, f / "base"), save(DELTA, f / "delta", "safetensors", 3)),
    "cache": lambda f: (cached(save(BASE, f / "base"), LLAMA_1), cached(save(DELTA, f / "delta"), {})),
    "meta": lambda f: (save_meta(BASE, f / "base", 2, 4), with_projector(f / "delta")),
    "stored-zip": lambda f: (save(BASE, f / "base"), archive_of(save(DELTA, f / "delta"), zipfile.ZIP_STORED)),
    "deflated-zip": lambda f: (
        archive_of(save(BASE, f / "base"), zipfile.ZIP_DEFLATED),
        archive_of(save(DELTA, f / "delta", "safetensors", 1), zipfile.ZIP_DEFLATED),
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_hashes_of_the_inputs_are_those_of_sha256sum(tmp_path: Path, make: Callable[[Path], tuple[Path, Path]]) -> None:
    """With ``hash_inputs`` the manifest has the sha256 of every weights file, unpacked if in an archive; without it, none."""
    base, delta = make(tmp_path)
    apply_delta(base, delta, tmp_path / "out", hash_inputs=True)
    apply_delta(base, delta, tmp_path / "plain")
    for role, given in (("base", base), ("delta", delta)):
        folder = given.with_suffix("") if given.suffix == ".zip" else given
        weights = [path for path in folder.iterdir() if path.suffix in {".bin", ".pth", ".safetensors"}]
        recorded = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"][role]["files"]
        assert {name: file["sha256"] for name, file in recorded.items()} == sums_of(iter(weights))
        assert all("sha256" in file["checks"] for file in recorded.values())
        plain = json.loads((tmp_path / "plain" / "manifest.json").read_text())["inputs"][role]["files"]
        assert not any("sha256" in file or "sha256" in file["checks"] for file in plain.values())
    shards = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("model*")}
    assert shards == {path.name: path.read_bytes() for path in (tmp_path / "plain").glob("model*")}


def test_inspect_prints_hashes(run: Run, tmp_path: Path) -> None:
    """``inspect --hash-inputs`` prints the sha256 of each of several files, and has them in its JSON; without it, neither."""
    save(BASE, tmp_path)
    expected = sums_of(tmp_path.glob("*.bin"))
    shown = run("inspect", tmp_path, "--hash-inputs")
    assert (shown.returncode, shown.stderr) == (0, "")
    files = shown.stdout.split("\nfiles\n")[1].splitlines()
    assert [(line.split()[0], line.split("  sha256 ")[1]) for line in files] == sorted(expected.items())
    as_json = json.loads(run("inspect", tmp_path, "--hash-inputs", "--json").stdout)
    assert {file["name"]: file["sha256"] for file in as_json["files"]} == expected
    assert "sha256" not in run("inspect", tmp_path).stdout


def test_inspect_prints_the_hash_of_one_file(run: Run, tmp_path: Path) -> None:
    """``inspect --hash-inputs`` of a checkpoint in one file prints its sha256."""
    save(BASE, tmp_path, "torch", 1)
    assert sha256_of(tmp_path / FILE) in run("inspect", tmp_path, "--hash-inputs").stdout


def test_inspect_has_the_hash_of_one_file_in_json(run: Run, tmp_path: Path) -> None:
    """``inspect --hash-inputs --json`` has the sha256 of a single file."""
    save(BASE, tmp_path, "torch", 1)
    (file,) = json.loads(run("inspect", tmp_path, "--hash-inputs", "--json").stdout)["files"]
    assert file["sha256"] == sha256_of(tmp_path / FILE)


def test_the_count_is_that_of_all_bytes(tmp_path: Path) -> None:
    """``counted_reads`` sees the whole file when it is hashed."""
    save(BASE, tmp_path, "safetensors", 1)
    with counted_reads() as counts:
        inspect_checkpoint(tmp_path, hash_inputs=True)
    assert counts["model.safetensors"] > (tmp_path / "model.safetensors").stat().st_size
