"""The documents tell the truth: what they show is run."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from deltaweights import apply_delta
from deltaweights.cli.apply import command as apply_command
from deltaweights.cli.diff import command as diff_command
from deltaweights.cli.drop_in import apply_delta as apply_drop_in
from deltaweights.cli.drop_in import make_delta as make_drop_in
from deltaweights.cli.export import command as export_command
from deltaweights.cli.group import COMMANDS, deltaweights
from deltaweights.cli.inspect import command as inspect_command
from deltaweights.cli.make import command as make_command
from deltaweights.jobs.apply import ApplyResult
from deltaweights.jobs.demo import make_pair
from deltaweights.recipes.catalogue import load
from deltaweights.recipes.models import model
from tests.conftest import Run
from tests.support.hub_server import HubServer
from tests.support.limits import PATIENCE
from tests.support.llava_2023 import make_tower
from tests.support.shell import OUR_PATH, run_script

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RUN_HERE = ("deltaweights ", "apply-delta ", "make-delta ", "(cd ", "for k in ")


TINY = """\
format = "deltaweights-recipe"
version = 1
[shapes]
hidden_size = 128
intermediate_size = 344
layers = 4
heads = 4
base_rows = 320
delta_rows = 324
[transformers]
tokens = { "[PAD]" = 320, "<im_patch>" = 321, "<im_start>" = 322, "<im_end>" = 323 }
"""
"""Laid over the recipe of LLaVA-Med: the sizes of the demo's pair, which stands in for the real one."""


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    """Each command that the README shows for our programs ends with 0, run in order where BASE and DELTA are a real pair.

    The models of the Hub are that pair, too, on a Hub of this machine, at the commits that the recipe pins.
    """
    base, delta = make_pair(tmp_path)
    base.rename(tmp_path / "llama-7b")
    delta.rename(tmp_path / "llava-med-7b-delta")
    (tmp_path / "BASE").symlink_to("llama-7b")
    (tmp_path / "DELTA").symlink_to("llava-med-7b-delta")
    pins = apply_delta(tmp_path / "BASE", tmp_path / "DELTA", tmp_path / "pinned")
    (tmp_path / "TUNED").symlink_to("pinned")
    (tmp_path / "MERGED").symlink_to("pinned")
    make_tower(tmp_path / "CLIP", hidden_size=1024, num_hidden_layers=2)
    for line in (ROOT / "docs" / "signing.md").read_text().splitlines():
        if line.startswith("openssl "):
            assert run_script(line, tmp_path, PATH=OUR_PATH).returncode == 0
    Image.new("RGB", (80, 60), "gray").save(tmp_path / "cell.png")
    lines = [line.removeprefix("$ ") for line in README.splitlines() if line.startswith("$ ")]
    lines = [line.partition("  #")[0] for line in lines if line.startswith(RUN_HERE)]
    assert len(lines) >= 12
    (tmp_path / "tiny.toml").write_text(TINY)
    served = {
        "huggyllama/llama-7b": "BASE",
        "microsoft/llava-med-7b-delta": "DELTA",
        "ORG/NAME": "BASE",
        "ORG/MERGED": "MERGED",
    }
    with HubServer({repo: tmp_path / name for repo, name in served.items()}) as hub:
        recipe = load("llava-med-7b")
        hub.tag("huggyllama/llama-7b", str(model("llama-1-7b").revision))
        hub.tag("microsoft/llava-med-7b-delta", str(recipe.delta.revision))
        hub.tag("ORG/NAME", "REVISION")
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
        for line in lines:
            run_line(line, tmp_path, pins, variables)


def run_line(line: str, folder: Path, pins: ApplyResult, variables: dict[str, str]) -> None:
    """Run one command; several make the same folder, each from its beginning."""
    if line.endswith("--target OUT") or "--target OUT " in line:
        shutil.rmtree(folder / "OUT", ignore_errors=True)
    by_recipe = line
    if "llava-med" in line:
        by_recipe = re.sub(r" apply (llava-med-7b )?", " apply llava-med-7b --recipe tiny.toml ", line)
    if "--layout transformers" in line or " export " in line:
        by_recipe += " --vision-tower CLIP"  # that which the recipe names cannot be had here
    with_digest = re.sub(r"dw1:[0-9a-f]+\.\.\.", pins.content_digest, by_recipe.replace("0.05", "0.5"))
    manifest = folder / "OUT" / "manifest.json"  # says where the inputs are from, so each way to OUT has its own
    pin = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ""
    with_pins = re.sub(r"--expect-manifest \S+", f"--expect-manifest {pin}", with_digest)
    done = run_script(with_pins, folder, PATH=OUR_PATH, **variables)
    assert (line, done.returncode, done.stderr if done.returncode else "") == (line, 0, "")


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    """The README's Python block runs as it stands, and prints a content digest."""
    base, delta = make_pair(tmp_path)
    base.rename(tmp_path / "llama-7b")
    delta.rename(tmp_path / "llava-med-7b-delta")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "apply_delta" in block)
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout[:4]) == (0, "dw1:")


COMMANDS_WITH_OPTIONS = {
    "apply": apply_command,
    "apply-delta": apply_drop_in,
    "make": make_command,
    "make-delta": make_drop_in,
    "export": export_command,
    "diff": diff_command,
    "inspect": inspect_command,
}


@pytest.mark.parametrize("name", COMMANDS_WITH_OPTIONS)
def test_the_readme_names_every_option(name: str) -> None:
    """Every option of a command is in the README, and every option in the README's table is one of the merge and of make."""
    command = COMMANDS_WITH_OPTIONS[name]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    inputs = {"--base", "--delta", "--target", "--base-model-path", "--target-model-path", "--delta-path"}
    hidden = inputs | {"--version", "--low-cpu-mem"}
    assert {name for name in options - hidden if name not in README} == set()
    table = README[README.index("| `--dry-run`") : README.index("Old notes and job scripts")]
    if name not in {"diff", "inspect", "export"}:
        assert set(re.findall(r"--[a-z-]+", table)) <= options


def test_every_command_has_help_and_is_listed() -> None:
    """The group's list of commands is the modules that are there, each with a help text."""
    modules = {path.stem for path in (ROOT / "src/deltaweights/cli").glob("*.py")}
    assert {{"try": "try_"}.get(name, name.replace("-", "_")) for name in COMMANDS} <= modules
    for name in COMMANDS:
        command = deltaweights.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help


def test_the_links_of_the_documents_primary_somewhere() -> None:
    """Every relative link of README and docs leads to a file of the project."""
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"


@pytest.mark.slow
def test_demo_prints_target_digest_and_verified(run: Run) -> None:
    """The demo ends with 0, says what it made and that it verified, warns of clinical use, and leaves nothing behind."""
    done = run("demo")
    assert done.returncode == 0, done.stderr
    for word in ("target          ", "content digest  dw1:", "verified        ", "not for clinical care"):
        assert word in done.stdout
    target = re.search(r"^target +(\S+)$", done.stdout, re.MULTILINE)
    assert target is not None
    assert not Path(target[1]).parent.exists()


def test_demo_keeps_its_files_where_it_is_told(run: Run, tmp_path: Path) -> None:
    """With --keep the pair and the result stay, and a folder with something in it is refused with 7."""
    assert run("demo", "--keep", tmp_path / "kept").returncode == 0
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"base", "delta", "merged"}
    again = run("demo", "--keep", tmp_path / "kept")
    assert (again.returncode, again.stderr.count("\n")) == (7, 1)
