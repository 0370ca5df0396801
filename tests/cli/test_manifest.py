"""``deltaweights manifest``, and what it and ``verify`` need to be installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from deltaweights.manifest.listing import list_checkpoint
from tests.conftest import Run
from tests.support.limits import PATIENCE
from tests.support.listings import FORMS, ROOT, small
from tests.support.meta import save_meta
from tests.support.pairs import base_tensors, save


def test_the_command_prints_or_writes_the_manifest(tmp_path: Path, run: Run) -> None:
    """Stdout is the manifest, byte for byte, or a summary if the manifest is written to a file; -q prints nothing."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    listing, to = list_checkpoint(model), tmp_path / "kept.json"
    done = run("manifest", model)
    assert (done.returncode, done.stdout.encode(), done.stderr) == (0, listing.document, "")
    done = run("manifest", model, "--output", to)
    assert (done.returncode, to.read_bytes()) == (0, listing.document)
    assert f"content digest  {listing.content_digest}" in done.stdout
    done = run("manifest", model, "--output", to, "--json")
    document = json.loads(done.stdout)
    assert (document["content_digest"], document["manifest_sha256"]) == (
        listing.content_digest,
        listing.manifest_sha256,
    )
    done = run("manifest", model, "--output", to, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_replaces_nothing_but_listings(tmp_path: Path, run: Run) -> None:
    """The output never replaces weights or a merge's manifest; it replaces an empty file; a missing folder is an error."""
    model = save(small(), tmp_path / "model", "safetensors", 1)
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    done = run("manifest", model, "--output", weights)
    assert (done.returncode, weights.read_bytes()) == (7, before)
    (line,) = done.stderr.splitlines()
    assert str(weights) in line
    merge = tmp_path / "merge.json"
    shutil.copy(ROOT / "tests/fixtures/manifest-v1/out/manifest.json", merge)
    assert run("manifest", model, "--output", merge).returncode == 7
    (tmp_path / "empty").write_text("")
    assert run("manifest", model, "--output", tmp_path / "empty").returncode == 0
    assert run("manifest", model, "--output", tmp_path / "no" / "folder").returncode == 5


ALONE = f"""
import sys
allowed = {{"deltaweights", "click", "tqdm", "blake3"}}
for name in {sorted(name for name in packages_distributions() if name.isidentifier())!r}:
    if name not in allowed:
        sys.modules[name] = None  # importing it fails
from deltaweights.cli import main
main()
"""


@pytest.mark.parametrize("form", ["safetensors", "torch", "legacy"])
def test_manifest_and_verify_need_three_packages(tmp_path: Path, form: str) -> None:
    """Both commands need only click, tqdm and blake3, for every container."""
    model = FORMS[form](small(), tmp_path / "model")
    to = tmp_path / "kept.json"
    digest = list_checkpoint(model).content_digest
    pins: list[str | Path] = ["--manifest", to, "--expect", digest, "--junit", tmp_path / "report.xml"]
    commands: list[list[str | Path]] = [["manifest", model, "--output", to], ["verify", model, *pins, "--json"]]
    for arguments in commands:
        command = [sys.executable, "-c", ALONE, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        warned = form == "legacy" and arguments[0] == "manifest"  # such a file records no checksums
        assert (done.returncode, done.stderr.count("\n")) == (0, int(warned))
    assert "torch" in ALONE


@pytest.mark.slow
def test_the_wheel_alone_lists_and_verifies(tmp_path: Path) -> None:
    """The wheel, installed with only three of its dependencies, can run both commands."""
    pip = ["-m", "pip", "--disable-pip-version-check"]
    wheel = [
        sys.executable,
        *pip,
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(wheel, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pins = ["--constraint", str(ROOT / "constraints.txt"), "blake3", "click", "tqdm"]
    subprocess.run([python, *pip, "install", "--quiet", *pins], check=True)
    wheels = [str(path) for path in tmp_path.glob("*.whl")]
    subprocess.run([python, *pip, "install", "--quiet", "--no-deps", *wheels], check=True)
    save_meta(base_tensors(), tmp_path / "meta", 2)
    kept_at = str(tmp_path / "kept.json")
    for arguments in (["manifest", "meta", "--output", kept_at], ["verify", "meta", "--manifest", kept_at]):
        command = [python, "-m", "deltaweights", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
