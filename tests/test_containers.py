"""The recipes for containers install what the documents say; no image is built here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("recipe", ["Dockerfile", "deltaweights.def"])
def test_a_container_has_what_a_merge_needs(recipe: str) -> None:
    """A recipe installs the packages with which, so the README says, one can merge, the Hub's client, and no more."""
    text = (ROOT / "scripts" / "container" / recipe).read_text()
    (installed,) = re.findall(r"pip install --no-cache-dir --constraint constraints.txt ([\w ]+)", text)
    (needed,) = re.findall(r"`pip install (blake3 [\w ]*numkong[\w ]*)`", (ROOT / "README.md").read_text())
    assert {*installed.split()} == {*needed.split(), "huggingface_hub"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*installed.split()} <= {re.split(r"[><;]", line)[0] for line in project["dependencies"]}
    assert "pip install --no-cache-dir --no-deps ." in text


def test_a_build_sees_what_it_copies() -> None:
    """What the Dockerfile copies is there and is not ignored, and the Apptainer definition copies the same."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    seen = {line[1:] for line in ignored if line.startswith("!")}
    docker = (ROOT / "scripts" / "container" / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY ([^-].*)$", docker, re.MULTILINE) for word in line.split()[:-1]}
    assert copied == seen
    assert all((ROOT / name).exists() for name in seen)
    (files,) = re.findall(
        r"%files\n +(.*) /source/\n", (ROOT / "scripts" / "container" / "deltaweights.def").read_text()
    )
    assert {*files.split()} == seen
