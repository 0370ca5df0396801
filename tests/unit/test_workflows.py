"""The workflows, and the other files that GitHub and PyPI read: .ci/run lints them, here is what a linter cannot know."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from deltaweights import __version__
from tests.support.limits import PATIENCE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def jobs(name: str) -> dict[str, Any]:
    """Return the jobs of a workflow."""
    found: dict[str, Any] = yaml.safe_load(WORKFLOWS[name].read_text())["jobs"]
    return found


def steps(name: str, job: str) -> list[dict[str, Any]]:
    """Return the steps of a job."""
    found: list[dict[str, Any]] = jobs(name)[job]["steps"]
    return found


def test_every_action_is_pinned_by_its_commit() -> None:
    """An action of others is named by a commit, with the version beside it, and by the same one everywhere."""
    pins: dict[str, set[str]] = {}
    for path in (*WORKFLOWS.values(), ROOT / "action.yml", *(ROOT / "docs").rglob("*.md")):
        for used in re.findall(r"^\s*(?:- )?uses: (.*)$", path.read_text(), re.MULTILINE):
            if used.startswith("$/") or used == "OWNER/deltaweights@COMMIT":
                continue  # this repository, at the commit that runs
            match = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40} # v\d+\.\d+\.\d+)", used)
            assert match, f"{path.name}: {used}"
            pins.setdefault(match[1], set()).add(match[2])
    assert len(pins) >= 7
    assert {name: versions for name, versions in pins.items() if len(versions) > 1} == {}


def test_jobs_may_only_do_what_they_need() -> None:
    """Nothing is granted to a whole workflow; only deploy and publish may write, and those run no code of the tree."""
    writing = {}
    for name, path in WORKFLOWS.items():
        assert yaml.safe_load(path.read_text())["permissions"] == {}, name
        for job, of in jobs(name).items():
            granted = {scope for scope, access in of["permissions"].items() if access == "write"}
            if granted:
                writing[name, job] = granted
                assert not [step for step in of["steps"] if "run" in step or "checkout" in step.get("uses", "")]
    assert writing == {
        ("docs", "deploy"): {"id-token", "pages"},
        ("release", "publish"): {"attestations", "id-token"},
    }
    assert "secrets." not in "".join(path.read_text() for path in WORKFLOWS.values())


def test_ci_runs_on_every_python_that_is_supported() -> None:
    """.ci/run runs on Linux and macOS, from the oldest Python of requires-python to 3.14; the classifiers say the same."""
    (job,) = jobs("ci").values()
    oldest = re.fullmatch(r">=3\.(\d+)", PROJECT["project"]["requires-python"])
    assert oldest
    supported = [f"3.{minor}" for minor in range(int(oldest[1]), 15)]
    assert job["strategy"]["matrix"] == {"system": ["ubuntu-latest", "macos-latest"], "python": supported}
    classifiers = "\n".join(PROJECT["project"]["classifiers"])
    assert re.findall(r"Python :: (3\.\d+)", classifiers) == supported
    assert {"MacOS", "POSIX :: Linux"} == set(re.findall(r"Operating System :: (.*)", classifiers))
    *_, last = job["steps"]
    assert (last["run"], last["env"]) == (".ci/run", {"PYTHON": "python"})


def test_a_release_is_checked_built_and_tested_before_it_is_published() -> None:
    """The tag is compared with the version first; publishing waits for build and tests, and has no token."""
    wanted = ['python -I scripts/check_release.py "$GITHUB_REF_NAME"', "scripts/package dist"]
    assert [step["run"] for step in steps("release", "build") if "run" in step] == wanted
    assert jobs("release")["test"]["uses"] == "$/.github/workflows/ci.yml"
    publish = jobs("release")["publish"]
    assert set(publish["needs"]) == {"build", "wheels", "test"}
    assert {step.get("env", {}).get("DELTAWEIGHTS_PURE") for step in steps("release", "build")} == {None, "1"}
    assert "cibuildwheel" in " ".join(step.get("run", "") for step in steps("release", "wheels"))
    assert publish["environment"]["name"] == "pypi"
    used = [step["uses"].partition("@")[0] for step in publish["steps"]]
    assert used == ["actions/download-artifact", "actions/attest", "pypa/gh-action-pypi-publish"]
    assert "with" not in publish["steps"][-1]


def test_the_hooks_use_the_pinned_tools() -> None:
    """The hooks of pre-commit are ruff and mypy of .venv, as .ci/run calls them."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in repository["hooks"]]
    assert repository["repo"] == "local"
    assert entries == [".venv/bin/ruff format", ".venv/bin/ruff check", ".venv/bin/mypy"]


def test_the_issue_form_asks_for_what_is_needed() -> None:
    """Command, output of --json, version and platform are required."""
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "problem.yml").read_text())
    fields = {field["id"]: field for field in form["body"] if "id" in field}
    required = {name for name, field in fields.items() if field.get("validations", {}).get("required")}
    assert required == {"command", "json", "expected", "version", "platform"}
    assert "`--json`" in fields["json"]["attributes"]["description"]


# A release, in a copy of the files that state its version.

STATING = ("CITATION.cff", "CHANGELOG.md", "src/deltaweights/__init__.py", ".github/ISSUE_TEMPLATE/config.yml")


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """Make a tree that is ready for the release of its version."""
    for name in ("scripts/check_release.py", *STATING):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    replace(tmp_path / "CHANGELOG.md", r"^## \[.*$", f"## [{__version__}] - 2026-12-01")
    replace(tmp_path / ".github/ISSUE_TEMPLATE/config.yml", "OWNER", "somebody")
    return tmp_path


def replace(path: Path, pattern: str, by: str) -> None:
    """Replace the first place where a pattern matches in a file."""
    text, count = re.subn(pattern, by, path.read_text(), flags=re.MULTILINE)
    assert count
    path.write_text(text)


def check(tree: Path, *arguments: str) -> tuple[int, str]:
    """Run the check as the workflow does; return its exit code and what it says."""
    command = [sys.executable, "-I", "scripts/check_release.py", *arguments]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


def test_a_tree_that_is_ready_passes(ready: Path) -> None:
    """Nothing is said of a tree in which all files state the version of the tag."""
    assert check(ready, f"v{__version__}") == (0, "")


@pytest.mark.parametrize(
    ("file", "pattern", "by"),
    [
        ("src/deltaweights/__init__.py", '^__version__ = ".*"', '__version__ = "0.1.0rc1"'),
        ("CITATION.cff", "^version: .*", "version: 0.0.9"),
        ("CHANGELOG.md", r"^## \[.*$", "## [Unreleased]"),
        ("CHANGELOG.md", r" - 2026-12-01$", ""),
        (".github/ISSUE_TEMPLATE/config.yml", "somebody", "OWNER"),
    ],
)
def test_a_file_that_was_forgotten(ready: Path, file: str, pattern: str, by: str) -> None:
    """A file that does not state the version is named, and no other is."""
    replace(ready / file, pattern, by)
    code, said = check(ready, f"v{__version__}")
    assert code == 1
    assert [line.split()[1] for line in said.splitlines()] == [file]


@pytest.mark.parametrize(
    "tag", ["v9.9.9", __version__, f"v{__version__}.dev1", f"v{__version__}-rc1", "", f"v{__version__}\n"]
)
def test_a_tag_of_another_version(ready: Path, tag: str) -> None:
    """A tag that is not the version of the tree ends the release."""
    code, said = check(ready, tag)
    assert code == 1
    assert said.startswith("check_release: ")


def test_the_citation_states_the_version() -> None:
    """CITATION.cff has the version and the licence of the project, in a commit that is no release, too."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["project"]["license"]


def test_the_sdist_is_the_repository(tmp_path: Path) -> None:
    """Everything that git does not ignore is in the sdist, so that its tests and .ci/run work there, too."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no clone")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=PATIENCE)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    ours = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    assert held - ours == {"PKG-INFO"}
    assert ours - held == set()
