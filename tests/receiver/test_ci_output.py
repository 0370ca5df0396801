"""Job summaries and annotations: what CI shows of a verification, also when names in it are hostile."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deltaweights.errors import InputOutputError, printable
from deltaweights.manifest.ci_report import MOST_SHOWN, CheckedModel, code_span, summary, workflow_commands
from deltaweights.manifest.verify import verify
from tests.cli.test_action import installed, run_step, workspace
from tests.conftest import Run
from tests.support.limits import PATIENCE
from tests.support.signing import make_key, merged, result

__all__ = ["installed", "merged", "result", "workspace"]  # fixtures

pytestmark = pytest.mark.receiver


def runner_commands(text: str) -> list[str]:
    """Return the workflow commands that GitHub's runner finds in output: at the start of a line, or ``##[`` anywhere in one."""
    lines = re.split(r"[\r\n]+", text)
    return [line for line in lines if line.lstrip().startswith("::") or "##[" in line]


def test_a_summary_of_a_folder_that_holds(result: Path, run: Run, tmp_path: Path) -> None:
    """The summary has the three verdicts, and is appended to what is there."""
    page = tmp_path / "summary.md"
    page.write_text("# Before\n")
    done = run("verify", result, "--summary", page, "--annotations")
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("# Before\n## deltaweights verify: all holds\n")
    for part in ("weights", "loader files", "other files"):
        assert f"\n- **{part}**: intact" in text or f"\n- **{part}**: none" in text, text
    assert not runner_commands(done.stdout + done.stderr)


def test_a_summary_of_a_folder_that_does_not_hold(result: Path, run: Run, tmp_path: Path) -> None:
    """The summary says which part failed, and has each problem; each is an annotation; stdout stays one document."""
    (result / "config.json").write_text("{}")
    (result / "tokenizer_config.json").unlink()
    page = tmp_path / "summary.md"
    done = run("verify", result, "--summary", page, "--annotations", "--json")
    assert done.returncode == 6
    problems = json.loads(done.stdout)["problems"]
    assert len(problems) == 2
    text = page.read_text()
    assert text.startswith("## deltaweights verify: 1 of 1 model failed\n")
    assert f"### FAILED: `{result}`" in text
    assert "- **weights**: intact" in text
    assert "- **loader files**: FAILED: " in text
    assert "- `config.json: has another size: " in text
    assert len(runner_commands(done.stderr)) == len(problems)
    assert not runner_commands(done.stdout)


def test_a_folder_that_is_not_there(run: Run, tmp_path: Path) -> None:
    """A folder that cannot be read is in the summary, too."""
    page = tmp_path / "summary.md"
    done = run("verify", tmp_path / "no" / "model" / "here", "--summary", page, "--annotations")
    assert done.returncode == 5
    assert "cannot list" in page.read_text() or "No such file" in page.read_text()
    assert len(runner_commands(done.stderr)) == 1


NAMES = [
    "::error::all is well",
    "x\n::set-output name=a::b",
    "x\r::error::b",
    "##[set-output name=a]b",
    "a ##[add-mask]b",
    "%0A::error::b",
    "`` `x` ```",
    "<img src=x>",
    "</summary> **bold**",
    "| a | b |",
    "[a](https://example.org)",
    "\u2028::error::b",
    "\x1b[2J",
    "-x",
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", NAMES, ids=map(ascii, NAMES))
def test_hostile_names(result: Path, run: Run, tmp_path: Path, name: str) -> None:
    """A file's name adds no command to the output, with and without --json, and no markup to the summary."""
    extra = f"{name.replace('/', '')}.bin"
    (result / extra).write_bytes(b"x")
    for more in ((), ("--json",)):
        page = tmp_path / f"summary{len(more)}.md"
        done = run("verify", result, "--summary", page, *more)
        assert done.returncode == 6
        assert not runner_commands(done.stdout + done.stderr)
        assert not more or extra in [each["file"] for each in json.loads(done.stdout)["problems"]]
        lines = page.read_text().splitlines()
        assert [line for line in lines if printable(extra) in line]
        for line in lines:
            assert line[:2] in {"##", "- ", ""} or re.fullmatch(r"\d+ problems?:", line), line
    done = run("verify", result, "--annotations")
    commands = runner_commands(done.stderr)
    assert len(commands) == len(verify(result).problems)
    assert all(command.startswith("::error title=") for command in commands)


@pytest.mark.parametrize("text", ["a", "", " ", "`", "``", "a`b", "`a``b`", "```", "a\nb", "\\`"])
def test_code_spans(text: str) -> None:
    """A code span ends where it should: its fence is longer than any run of backticks in it."""
    span = code_span(text)
    fence = re.match("`+", span)
    assert fence is not None
    inner = span[fence.end() : -fence.end()]
    assert fence[0] not in re.findall("`+", inner)
    assert inner.strip() == printable(text).strip()
    assert inner


def test_commands_are_escaped() -> None:
    """Data and properties are escaped as GitHub wants it, and no line is added."""
    error = InputOutputError("100% is gone", where="a:b,c")
    (command,) = workflow_commands([CheckedModel("x:y,z%", error)])
    assert command == "::error title=deltaweights verify x%3Ay%2Cz%25::a:b,c: 100%25 is gone"


def test_many_problems(result: Path, tmp_path: Path) -> None:
    """Of thousands of problems the first are shown, and the rest counted."""
    for number in range(MOST_SHOWN + 20):
        (result / f"{number:04}.bin").write_bytes(b"x")
    report = verify(result)
    outcome = CheckedModel(report.target, report)
    assert len(list(workflow_commands([outcome]))) == MOST_SHOWN + 1
    assert f"and {len(report.problems) - MOST_SHOWN} more" in summary([outcome])


def test_a_summary_is_not_written_anywhere(result: Path, run: Run, tmp_path: Path) -> None:
    """A summary in the folder, or appended to weights, is refused before anything is written."""
    shard = min(result.glob("*.safetensors"))
    elsewhere = Path(shutil.copy(shard, tmp_path / "weights.safetensors"))
    before = elsewhere.read_bytes()
    for page in (result / "summary.md", shard, elsewhere, tmp_path):
        done = run("verify", result, "--summary", page)
        assert done.returncode == 2, page
        assert "--summary" in done.stderr
    assert elsewhere.read_bytes() == before
    assert not (result / "summary.md").exists()


# The action.


@pytest.mark.usefixtures("installed")
def test_the_action_writes_a_summary(workspace: Path, result: Path) -> None:
    """The action passes the summary's file, and prints annotations."""
    shutil.copytree(result, workspace / "model")
    page = workspace.parent / "summary.md"
    page.write_text("")
    environment = {"GITHUB_STEP_SUMMARY": str(page)}
    assert run_step("Verify", workspace, environment, path="model").returncode == 0
    assert "all holds" in page.read_text()
    (workspace / "model" / "x.bin").write_bytes(b"x")
    done = run_step("Verify", workspace, environment, path="model")
    assert done.returncode == 6
    assert runner_commands(done.stderr)
    assert "FAILED" in page.read_text()


@pytest.mark.usefixtures("installed")
def test_the_action_verifies_locks_and_signatures(workspace: Path, result: Path, run: Run) -> None:
    """The action's inputs lock, public-key, identity and issuer are the command's options."""
    shutil.copytree(result, workspace / "model")
    private, public = make_key(workspace)
    assert run("sign", workspace / "model", "--private-key", private).returncode == 0
    assert run("pin", workspace / "model", "--output", workspace / "deltaweights.lock").returncode == 0
    assert run_step("Verify", workspace, {}, lock="deltaweights.lock").returncode == 0
    signed = run_step("Verify", workspace, {}, path="model", **{"public-key": public.name})
    assert signed.returncode == 0, signed.stderr
    other = run_step("Verify", workspace, {}, path="model", identity="a@example.org", issuer="https://example.org")
    assert other.returncode == 6
    assert "signed by a key" in other.stderr
    (workspace / "model" / "config.json").write_text("{}")
    assert run_step("Verify", workspace, {}, lock="deltaweights.lock").returncode == 6


@pytest.mark.usefixtures("installed")
def test_a_folder_that_is_missing_is_no_model_of_the_hub(workspace: Path) -> None:
    """A folder that is not there is not looked for on the Hub, where somebody may have taken its name."""
    done = run_step("Verify", workspace, {"HF_ENDPOINT": "http://127.0.0.1:9"}, path="models/llama")
    assert done.returncode == 5
    assert "No such file" in done.stderr


@pytest.mark.slow
def test_the_action_installs_what_signatures_need(workspace: Path) -> None:
    """For a model of the Hub, a lock or a signature, the action installs the libraries for them, and no torch."""
    done = run_step("Install", workspace, {}, lock="deltaweights.lock")
    assert done.returncode == 0, done.stderr
    python = str(workspace.parent / "temp" / "deltaweights" / "bin" / "python")
    modules = "signing.keyless", "jobs.verify_lock", "jobs.download"
    code = "".join(f"import deltaweights.{name}\n" for name in modules) + "import sys; print('torch' in sys.modules)"
    imported = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (imported.returncode, imported.stdout) == (0, "False\n"), imported.stderr
