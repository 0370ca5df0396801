"""The documents tell the truth: what they show is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deltaweights.cli.apply import command as apply_command
from deltaweights.cli.diff import command as diff_command
from deltaweights.cli.drop_in import apply_delta as apply_drop_in
from deltaweights.cli.drop_in import make_delta as make_drop_in
from deltaweights.cli.export import command as export_command
from deltaweights.cli.group import COMMANDS, deltaweights
from deltaweights.cli.inspect import command as inspect_command
from deltaweights.cli.make import command as make_command
from deltaweights.jobs.demo import make_pair
from tests.conftest import Run
from tests.support.limits import PATIENCE
from tests.support.pages import PAGES, ROOT, TEXTS, blocks, script


def test_the_python_of_the_pages_runs(tmp_path: Path) -> None:
    """The Python block of docs/merge.md runs as it stands, and prints a content digest."""
    base, delta = make_pair(tmp_path)
    base.rename(tmp_path / "llama-7b")
    delta.rename(tmp_path / "llava-med-7b-delta")
    (block,) = (text for language, text in blocks("merge.md") if language == "python" and "apply_delta" in text)
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


GUIDES = "".join(TEXTS[page] for page in ("merge.md", "hub.md", "running.md", "publish.md", "verify.md"))


@pytest.mark.parametrize("name", COMMANDS_WITH_OPTIONS)
def test_the_guides_name_every_option(name: str) -> None:
    """Every option of a command is in a how-to page, and every option in the table of merge.md is one of the merge and of make."""
    command = COMMANDS_WITH_OPTIONS[name]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    inputs = {"--base", "--delta", "--target", "--base-model-path", "--target-model-path", "--delta-path"}
    hidden = inputs | {"--version", "--low-cpu-mem"}
    assert {name for name in options - hidden if name not in GUIDES} == set()
    table = TEXTS["merge.md"].partition("| `--dry-run`")[2].partition("Old notes and job scripts")[0]
    assert len(re.findall(r"--[a-z-]+", table)) > 10
    if name not in {"diff", "inspect", "export"}:
        assert set(re.findall(r"--[a-z-]+", table)) <= options


@pytest.mark.parametrize("name", [*COMMANDS, "apply-delta", "make-delta"])
def test_the_reference_has_every_option(name: str) -> None:
    """The page of a command has each of its options with its help, and nothing else, in 1,500 words at most."""
    pages = script("docs_pages")
    command, page = pages.find_command(name), pages.command_page(name)
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    rows = [line for line in page.splitlines() if line.startswith("| `-")]
    assert len(rows) == len(options)
    for option, row in zip(options, rows, strict=True):
        assert all(f"`{flag}`" in row for flag in [*option.opts, *option.secondary_opts])
        assert " ".join((option.help or "").split()) in row.replace("\\|", "|").replace("&lt;", "<")
    assert all(example in page for example in getattr(command, "examples", ()))
    assert len(page.split()) <= 1500
    text = re.sub(r"```text\n.*?```", "", page, flags=re.DOTALL)
    assert [line for line in text.splitlines() if line.startswith(" ")] == []  # Markdown would take it for code


def test_the_picture_is_a_run() -> None:
    """docs/assets/demo.svg shows what the demo prints today; scripts/terminal-svg draws it anew."""
    terminal = script("terminal_svg")
    assert terminal.shown(terminal.PICTURE.read_text(encoding="utf-8")) == terminal.recorded()


def test_the_readme_keeps_the_notice() -> None:
    """README says that LLaVA-Med is for research use only."""
    assert "for research use only. It is not for clinical care or any clinical decision." in TEXTS["README.md"]


def test_every_command_has_help_and_is_listed() -> None:
    """The group's list of commands is the modules that are there, each with a help text."""
    modules = {path.stem for path in (ROOT / "src/deltaweights/cli").glob("*.py")}
    assert {{"try": "try_"}.get(name, name.replace("-", "_")) for name in COMMANDS} <= modules
    for name in COMMANDS:
        command = deltaweights.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help


def test_the_links_of_the_documents_primary_somewhere() -> None:
    """Every relative link of README and docs leads to a file of the project, or to a page that is made of the program."""
    made = set(script("docs_pages").pages())
    for page, document in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[page]):
            if not link.startswith("http") and link not in made:
                assert (document.parent / link).exists(), f"{page}: {link}"


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
