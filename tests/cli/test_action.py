"""The GitHub action verifies, whatever lies in the workspace; docs/ci.md says what holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from deltaweights.cli.group import deltaweights
from tests.support.limits import PATIENCE
from tests.support.listings import FORMS, MANIFEST, ROOT, content_of, kept, small
from tests.support.pairs import save
from tests.support.shell import OUR_PATH, run_script

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}


def run_step(name: str, folder: Path, environment: dict[str, str], **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the action as a runner does, with ``folder`` as workspace, and with these inputs."""
    values = {key: str(of.get("default", "")) for key, of in ACTION["inputs"].items()} | inputs
    fill = {
        key: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: values[match[1]], value)
        for key, value in STEPS[name].get("env", {}).items()
    }
    fill |= {"GITHUB_ACTION_PATH": str(ROOT), "RUNNER_TEMP": str(folder.parent / "temp")}
    (folder.parent / "temp").mkdir(exist_ok=True)
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | fill | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Make the folder of a job."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def installed(workspace: Path) -> None:
    """Stand for the step that installs: the Python of these tests, which has what the action would install."""
    python = workspace.parent / "temp" / "deltaweights" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)


@pytest.mark.usefixtures("installed")
def test_the_action_verifies(workspace: Path) -> None:
    """The action's step passes and fails as the command does, with every input given, odd characters in them, or only the path."""
    model = save(small(), workspace / "a $(touch x) 'model", "safetensors", 1)
    listing = kept(model, workspace / "kept.json")
    pins = {
        "path": model.name, "manifest": "kept.json", "junit": "re port.xml", "expect": listing.content_digest,
        "expect-manifest": listing.manifest_sha256,
    }  # fmt: skip
    done = run_step("Verify", workspace, {}, **pins)
    assert (done.returncode, done.stderr) == (0, "")
    assert (workspace / "re port.xml").exists()
    assert run_step("Verify", workspace, {}, **{**pins, "expect": "dw1:" + 64 * "0"}).returncode == 6
    assert run_step("Verify", workspace, {}, path=model.name).returncode == 6, "it has no manifest of its own"
    (workspace / "kept.json").rename(model / MANIFEST)
    assert run_step("Verify", workspace, {}, path=model.name).returncode == 0
    assert not (workspace / "x").exists()
    assert all("${{" not in step.get("run", "") for step in STEPS.values())


MODULES = (
    "venv", "pip", "ensurepip", "click", "tqdm", "blake3", "sitecustomize", "usercustomize", "deltaweights", "json", "hashlib",
    "typing_extensions", "subprocess", "site", "encodings", "setup",
)  # fmt: skip
"""What somebody hopes to be imported, each as a module and as a package that can be run."""


def lay_traps(workspace: Path, *variables: str) -> tuple[Path, dict[str, str]]:
    """Fill the workspace with files that leave a mark when they are run; return the mark, and ``variables`` that lead there."""
    mark = workspace.parent / "ran"
    code = f"open({str(mark)!r}, 'a').write(__file__ + chr(10))\n"
    for name in MODULES:
        (workspace / f"{name}.py").write_text(code)
        (workspace / "packages" / name).mkdir(parents=True)
        for file in ("__init__.py", "__main__.py"):
            (workspace / "packages" / name / file).write_text(code)
    (workspace / "trap.pth").write_text(f"import sys; open({str(mark)!r}, 'a').write('pth')\n")
    for program in ("python3", "python", "pip", "bash"):
        (workspace / program).write_text(f"#!/bin/sh\necho {program} >>'{mark}'\n")
        (workspace / program).chmod(0o755)
    (workspace / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9/simple\nno-binary = :all:\n")
    (workspace / "constraints.txt").write_text("blake3==0.0.1\n")
    (workspace / ".python-version").write_text("2.7.18\n")
    (workspace / "pyvenv.cfg").write_text(f"home = {workspace}\n")
    paths = os.pathsep.join(["", ".", str(workspace), str(workspace / "packages")])
    values = {"PYTHONPATH": paths, "PYTHONHOME": str(workspace), "PYTHONUSERBASE": str(workspace)}
    return mark, {name: values[name] for name in variables}


VARIABLES: list[tuple[str, ...]] = [(), ("PYTHONPATH",), ("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE")]


@pytest.mark.trust
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("variables", VARIABLES)
def test_row84_nothing_in_the_workspace_is_run_when_it_is_verified(workspace: Path, variables: tuple[str, ...]) -> None:
    """With the checkout itself as the checkpoint, and with a folder and files whose names look like options."""
    mark, leading_there = lay_traps(workspace, *variables)
    save(small(), workspace / "-model", "safetensors", 1)
    listing = kept(workspace / "-model", workspace / "--kept.json")
    pins = {"path": "-model", "manifest": "--kept.json", "expect": listing.content_digest, "junit": "-report.xml"}
    done = run_step("Verify", workspace, leading_there, **pins)
    assert (done.returncode, done.stderr) == (0, "")
    assert (workspace / "-report.xml").exists()
    assert run_step("Verify", workspace, leading_there, path=".").returncode == 6
    assert not mark.exists(), mark.read_text()


@pytest.mark.trust
@pytest.mark.slow
@pytest.mark.parametrize("variables", VARIABLES)
def test_row84_nothing_in_the_workspace_is_run_when_the_action_installs(
    workspace: Path, variables: tuple[str, ...]
) -> None:
    """The environment is made, and pip runs, until it finds no index here: the slow test below goes on from there."""
    mark, leading_there = lay_traps(workspace, *variables)
    done = run_step("Install", workspace, leading_there | OFFLINE)
    assert "No matching distribution found for" in done.stderr
    assert done.returncode != 0
    assert (workspace.parent / "temp" / "deltaweights" / "bin" / "python").exists()
    assert not mark.exists(), mark.read_text()


def test_the_traps_close(workspace: Path) -> None:
    """A Python that is not isolated does run what lies there."""
    mark, _ = lay_traps(workspace)
    subprocess.run([sys.executable, "-m", "venv"], cwd=workspace, check=False, capture_output=True, timeout=PATIENCE)
    assert "venv.py" in mark.read_text()


@pytest.mark.slow
def test_the_action_installs_all_that_it_needs(workspace: Path) -> None:
    """In a bare environment the action installs four packages, which list and verify with its own source; also a second time."""
    mark, leading_there = lay_traps(workspace, *VARIABLES[-1])
    for _ in range(2):
        done = run_step("Install", workspace, leading_there)
        assert done.returncode == 0, done.stderr
    python = str(workspace.parent / "temp" / "deltaweights" / "bin" / "python")
    command = [python, "-I", "-m", "pip", "list", "--format=freeze"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=workspace)
    found = {line.partition("==")[0] for line in lines.stdout.split()}
    assert {"blake3", "click", "tqdm"} <= found
    assert found <= {"blake3", "click", "tqdm", "pip", "setuptools", "typing_extensions"}
    for form, write in FORMS.items():
        model = write(small(), workspace / form)
        command = [python, "-I", "-m", "deltaweights", "manifest", str(model), "--output", "kept.json", "--json"]
        listed = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=True)
        digest = json.loads(listed.stdout)["content_digest"]
        assert digest == content_of(small())
        pins = {"path": form, "manifest": "kept.json", "expect": digest, "junit": "report.xml"}
        done = run_step("Verify", workspace, leading_there, **pins)
        assert (done.returncode, done.stderr) == (0, "")
    assert not mark.exists(), mark.read_text()


def test_the_locks_hold_the_pins() -> None:
    """What the action and the containers install has the versions of constraints.txt, each with digests of wheels."""
    pins = set((ROOT / "constraints.txt").read_text().splitlines())
    versions = {pin.partition(";")[0] for pin in pins}
    for path in (
        "ci/requirements.txt",
        "ci/hub-and-signatures.txt",
        "container/requirements.txt",
        "container/build.txt",
    ):
        lines = (ROOT / "scripts" / path).read_text().replace("\\\n", "").splitlines()[1:]
        assert lines
        for line in lines:
            requirement, *digests = re.split(r"\s+--hash=sha256:", line)
            known = {re.sub(r"[-_.]+", "-", pin) for pin in (pins if path.startswith("ci") else versions)}
            assert re.sub(r"[-_.]+", "-", requirement.strip()) in known, f"{path}: run scripts/lock.py"
            assert digests
            assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_what_others_publish_is_pinned_by_digest() -> None:
    """Actions of others are named by a commit, and images by their digest."""
    files = ["action.yml", "docs/ci.md", "scripts/container/Dockerfile", "scripts/container/deltaweights.def"]
    text = "\n".join((ROOT / file).read_text() for file in files)
    actions = re.findall(r"uses: (\S+)", text)
    assert actions
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}|OWNER/deltaweights@COMMIT", action) for action in actions)
    images = re.findall(r"^(?:ARG PYTHON=|From: |  image: )(\S+)", text, re.MULTILINE)
    assert {re.sub(r"^python(:[\w.-]+)?@sha256:", "", image) for image in images} == {images[0].partition("sha256:")[2]}
    assert len(images) == 3
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON}"}


# The document.

PAGE = (ROOT / "docs" / "ci.md").read_text()


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    """The console lines of docs/ci.md about MODEL end with 0, run in order where that is a checkpoint."""
    save(small(), tmp_path / "MODEL", "safetensors", 2)
    lines = [line.removeprefix("$ ") for line in PAGE.splitlines() if line.startswith("$ ") and " MODEL " in line]
    assert len(lines) == 3
    for line in lines:
        done = run_script(line, tmp_path, PATH=OUR_PATH)
        assert (line, done.returncode, done.stderr) == (line, 0, "")


def test_the_workflows_of_the_page_fit_the_program() -> None:
    """The GitHub workflow passes inputs that the action has, and GitLab's script options that the commands have."""
    github, gitlab = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    (used,) = (step for step in github["jobs"]["verify"]["steps"] if "deltaweights" in step.get("uses", ""))
    assert set(used["with"]) <= set(ACTION["inputs"])
    assert {name for name, of in ACTION["inputs"].items() if of.get("required")} <= set(used["with"])
    command = deltaweights.get_command(None, "verify")  # type: ignore[arg-type]
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    (line,) = (line for line in gitlab["verify"]["script"] if " -I -m deltaweights verify " in line)
    assert set(re.findall(r" (--[a-z-]+)", line)) | set(re.findall(r"\((--[a-z-]+)", STEPS["Verify"]["run"])) <= options
    assert gitlab["verify"]["artifacts"]["reports"]["junit"] in line


@pytest.mark.slow
def test_the_script_of_the_page_verifies(tmp_path: Path) -> None:
    """GitLab's script, where the archive is one of this source and the workspace is full of traps."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    mark, leading_there = lay_traps(workspace, *VARIABLES[-1])
    save(small(), workspace / "model", "safetensors", 1)
    kept(workspace / "model", workspace / "model-manifest.json")
    archive = tmp_path / "source.tar.gz"
    command = ["tar", "-czf", str(archive), "--transform=s,^,deltaweights-COMMIT/,", "src", "scripts/ci"]
    subprocess.run(command, cwd=ROOT, check=True)
    _, gitlab = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    (tmp_path / "tmp").mkdir()
    script = "\n".join(gitlab["verify"]["script"]).replace("/tmp/", f"{tmp_path}/tmp/")  # noqa: S108  (of the page)
    environment = leading_there | {"DELTAWEIGHTS": archive.as_uri()}
    done = run_script(script, workspace, **environment)
    assert done.returncode == 0, done.stderr
    assert (workspace / "report.xml").exists()
    assert not mark.exists(), mark.read_text()
