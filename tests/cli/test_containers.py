"""The recipes for containers install what the documents say; no image is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import PATIENCE
from tests.support.pairs import make_pair
from tests.support.shell import run_script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


RECIPES = {name: (ROOT / "scripts" / "container" / name).read_text() for name in ("Dockerfile", "deltaweights.def")}
STEPS = {
    name: [line.strip().removeprefix("&& ").removeprefix("RUN ").removesuffix(" \\") for line in text.splitlines()]
    for name, text in RECIPES.items()
}


def names_in(lock: str) -> set[str]:
    return set(re.findall(r"^([\w-]+)==", (ROOT / "scripts" / "container" / lock).read_text(), re.MULTILINE))


def test_a_container_has_what_a_merge_needs() -> None:
    """The lock has the packages of the light install, but for what only older Pythons need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split(r"[><;]", line)[0].replace("_", "-") for line in project["dependencies"] if ";" not in line}
    assert asked <= names_in("requirements.txt")
    assert not names_in("requirements.txt") & {"torch", "transformers"}
    assert "hatchling" in names_in("build.txt")


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_unpinned_is_installed(recipe: str) -> None:
    """Every pip line installs by digest, or the wheel that was built with what was; nothing is imported from the working folder."""
    lines = [line for line in STEPS[recipe] if re.search(r"\bpip (install|wheel)\b", line)]
    wheel = r"wheel --no-build-isolation --wheel-dir /opt/wheel \.|install /opt/wheel/\*\.whl"
    allowed = rf"-m pip (install --require-hashes --requirement \S+|{wheel})"
    assert len(lines) == 4
    assert all(re.search(allowed + "$", line) for line in lines)
    assert all("python -I -m " in line for line in STEPS[recipe] if " -m " in line)
    assert "PIP_NO_DEPS=1 PIP_ONLY_BINARY=:all:" in RECIPES[recipe]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_lines_of_a_recipe_install_the_program(recipe: str, tmp_path: Path) -> None:
    """The lines that make environments and install do so for the Python that the images hold, and leave a program that runs."""
    python = shutil.which("python3.12")
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("no python3.12 here, of which the images are")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src")
    to = source / "scripts" / "container" if recipe == "Dockerfile" else source
    to.mkdir(parents=True, exist_ok=True)
    for name in ("requirements.txt", "build.txt"):
        shutil.copy(ROOT / "scripts" / "container" / name, to)
    lines = [line for line in STEPS[recipe] if re.search("-m (pip|venv) ", line)]
    script = "\n".join([f'python() {{ "{python}" "$@"; }}', *lines]).replace("/opt/", f"{tmp_path}/")
    environment = {"PIP_NO_CACHE_DIR": "1", "PIP_NO_DEPS": "1", "PIP_ONLY_BINARY": ":all:"}
    done = run_script(script, source, **environment)
    assert done.returncode == 0, done.stderr
    base, delta = make_pair(tmp_path)
    program, out = tmp_path / "deltaweights" / "bin" / "deltaweights", tmp_path / "out"
    merge: list[str | Path] = ["apply", "--base", base, "--delta", delta, "--target", out, "--quiet"]
    for arguments in (merge, ["verify", out]):
        ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert ran.returncode == 0, ran.stderr


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
