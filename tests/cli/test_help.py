"""What the program says of itself: help in groups with examples, what was meant by a typo, and colour where it belongs."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import pytest

from deltaweights.cli.command import SECTIONS, Command
from deltaweights.cli.completion import EXAMPLES as IN_A_SHELL
from deltaweights.cli.drop_in import apply_delta, make_delta
from deltaweights.cli.group import COMMANDS, GROUPS, deltaweights
from deltaweights.recipes.catalogue import load
from tests.conftest import Run
from tests.support.fork_server import run as forked
from tests.support.limits import PATIENCE

DROP_INS = {"apply-delta": apply_delta, "make-delta": make_delta}

RECIPE = load("llava-med-7b")


def command_of(name: str) -> click.Command:
    """Return the command or drop-in ``name``."""
    found = DROP_INS.get(name) or deltaweights.get_command(click.Context(deltaweights), name)
    assert found is not None
    return found


def help_of(name: str, columns: int) -> list[str]:
    """Return the lines of a command's help on a terminal of so many columns; click leaves two free."""
    settings = {**deltaweights.context_settings, "terminal_width": columns - 2}
    return click.Context(command_of(name), info_name=name, **settings).get_help().splitlines()


@pytest.mark.parametrize("name", [*COMMANDS, *DROP_INS])
def test_a_help_page_fits_a_terminal(name: str) -> None:
    """No line is longer than 80 columns, and on 60 only examples and the names of options are."""
    assert max(map(len, help_of(name, 80))) <= 80
    narrow, examples = "\n".join(help_of(name, 60)), "\n".join(help_of(name, 80)).partition("\nExamples:")[2]
    rest = [line for line in narrow.partition("\nExamples:")[0].splitlines() if not line.startswith("  -")]
    assert max(map(len, rest)) <= 60
    assert narrow.partition("\nExamples:")[2] == examples, "examples are not wrapped"


@pytest.mark.parametrize("name", [*COMMANDS, *DROP_INS])
def test_every_option_is_in_a_section_and_says_its_default(name: str) -> None:
    """Each option is listed once, in one of the known sections, in their order, with the default and what it takes."""
    lines, command = help_of(name, 200), command_of(name)
    titles = [line.removesuffix(":") for line in lines if re.fullmatch(r"\w+:", line)]
    assert [title for title in titles if title in SECTIONS] == [title for title in SECTIONS if title in titles]
    listed = Counter(re.match(r"  (?:-\w, )?(--[\w-]+)?", line)[1] for line in lines if line.startswith("  -"))  # type: ignore[index]
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert listed == Counter([*(next(n for n in each.opts if n.startswith("--")) for each in options), "--help"])
    for option in options:
        assert getattr(option, "section", "Logging") in SECTIONS
        assert option.help
        if isinstance(option.default, str | float) and not option.is_flag:
            assert option.show_default, f"{option.name} has a default that is not shown"
        if not option.is_flag and not isinstance(option.type, click.Choice):
            assert option.metavar, f"{option.name} does not say what it takes"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in {"recipes", "completion"}])
def test_examples_are_lines_that_parse(name: str) -> None:
    """Each command has examples, which begin with the program, and whose commands take such options."""
    command = command_of(name)
    assert isinstance(command, Command)
    lines = "\n".join(command.examples).replace("\\\n", "").splitlines()
    assert any(shlex.split(line)[1] == name for line in lines)
    for line in lines:
        program, other, *arguments = shlex.split(line)
        assert program == "deltaweights"
        command_of(other).make_context(other, arguments)


def test_the_group_lists_each_command_in_one_line(run: Run) -> None:
    """Commands are listed in groups; alone, the program shows that on stdout and ends with 0."""
    done = forked([sys.executable, "-m", "deltaweights"], env=os.environ | {"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    for title, commands in GROUPS.items():
        below = done.stdout.partition(f"\n{title}:\n")[2].splitlines()
        assert [line.split() for line in below[: len(commands)]] == [
            [name, *text.split()] for name, text in commands.items()
        ]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert run().stdout == run("--help").stdout


NOT_A_MODEL = "the name of a recipe, not a model: found llava-med-7b, expected a path, or ORG/NAME on the Hub"

MEANT = {
    "no-shell": (("completion",), "Choose from: bash, zsh, fish"),
    "address-without-https": (
        ("apply", "huggingface.co/huggyllama/llama-7b", "--target", "o"),
        "no recipe has its delta in this repository",
    ),
    "command": (("aply",), "No such command 'aply'. Did you mean 'deltaweights apply'?"),
    "recipe-as-command": (("LLaVA-Med-7b",), "Did you mean 'deltaweights apply llava-med-7b'?"),
    "id-as-command": (("microsoft/llava-med-7b-delta",), "Did you mean 'deltaweights apply llava-med-7b'?"),
    "option": (("apply", "--basse", "x"), "No such option '--basse'. Did you mean '--base'?"),
    "recipe": (
        ("apply", "llava-med-7", "--target", "o"),
        "no recipe has this name: found llava-med-7, expected one of",
    ),
    "no-recipe": (
        ("apply", "huggyllama/llama-7b", "--target", "o"),
        "no recipe has its delta in this repository: found huggyllama/llama-7b; if it is a delta, give --delta",
    ),
    "other-revision": (
        ("apply", "microsoft/llava-med-7b-delta@v2", "--target", "o"),
        f"recipe llava-med-7b is for another revision: found v2, expected {RECIPE.delta.revision}; give --delta",
    ),
    "folder-as-recipe": (
        ("apply", "folder", "--target", "o"),
        "a folder, not the name of a recipe: found folder; give it as --delta folder",
    ),
    "recipe-as-delta": (
        ("apply", "--base", "b", "--delta", "llava-med-7b", "--target", "o"),
        f"{NOT_A_MODEL}; give microsoft/llava-med-7b-delta",
    ),
    "recipe-as-base": (
        ("check-base", "--base", "llava-med-7b", "--delta", "x"),
        f"{NOT_A_MODEL}; give huggyllama/llama-7b",
    ),
    "recipe-to-inspect": (("inspect", "llava-med-7b"), "give microsoft/llava-med-7b-delta"),
    "recipe-to-verify": (("verify", "llava-med-7b"), "give microsoft/llava-med-7b-delta"),
    "recipe-to-diff": (("diff", "folder", "llava-med-7b"), "give microsoft/llava-med-7b-delta"),
    "recipe-to-pin": (("pin", "llava-med-7b"), "give microsoft/llava-med-7b-delta"),
    "no-model-page": (
        ("inspect", "https://huggingface.co/datasets/a/b"),
        "not the address of a model: found https://huggingface.co/datasets/a/b",
    ),
    "page-of-a-file": (("inspect", "https://huggingface.co/a/b/blob/main/c.json"), "; give a/b, or a/b@REVISION"),
    "no-page-of-the-hub": (("inspect", "https://example.com/a/b"), "not an address of the Hub: found https://example"),
}


@pytest.mark.parametrize(("arguments", "part"), MEANT.values(), ids=MEANT)
def test_what_was_meant(run: Run, tmp_path: Path, arguments: tuple[str, ...], part: str) -> None:
    """A name that is misspelt, or of another kind, ends with 2 and one line that says what to type; nothing is written."""
    (tmp_path / "folder").mkdir()
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert part in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_path_that_is_misspelt(run: Run, tmp_path: Path) -> None:
    """It looks like an id of the Hub: that it was taken for one is said where its first part is a folder here."""
    (tmp_path / "pair").mkdir()
    said = "was taken for an id of the Hub, since there is no such path here"
    assert f"pair/bse {said}" in run("inspect", "pair/bse", "--offline", cwd=tmp_path).stderr
    done = run("inspect", "acme/model", "--offline", cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (5, False)


INSTEAD: dict[str, tuple[str, ...]] = {
    "if it is a delta, give --delta": ("apply", "--base", "folder", "--delta", "huggyllama/llama-7b", "--target", "o"),
    "give --delta": ("apply", "--base", "folder", "--delta", "microsoft/llava-med-7b-delta@v2", "--target", "o"),
    "give it as --delta": ("apply", "--base", "folder", "--delta", "folder", "--target", "o"),
    "give the id": ("inspect", "a/b", "--offline"),
    "download it": ("inspect", "folder"),
    "say what it needs": ("recipes", "show", "alpaca-7b"),
}


@pytest.mark.parametrize("arguments", INSTEAD.values(), ids=INSTEAD)
def test_what_is_to_be_given_instead(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What the lines above tell to type is no usage error: it is looked for, and here not found."""
    (tmp_path / "folder").mkdir()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode in ({0} if arguments[0] == "recipes" else {3, 5}), done.stderr


@pytest.mark.parametrize(
    "given", ["{0}", "{0}@{1}", "hf://{0}", "https://huggingface.co/{0}", "https://huggingface.co/{0}/tree/main"]
)
def test_an_id_finds_its_recipe(run: Run, given: str) -> None:
    """Where a recipe is wanted, the id of its delta is as good, in any form, of its own revision."""
    repo, revision = RECIPE.delta.repo, RECIPE.delta.revision
    expected = run("recipes", "show", "llava-med-7b").stdout
    assert run("recipes", "show", given.format(repo, revision)).stdout == expected


# Colour.

ERROR = ["-m", "deltaweights", "verify", "nothing-is-here"]
RED = "\x1b[31m"


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
    ids=["pipe", "forced", "forbidden"],
)
def test_colour_in_a_pipe(variables: dict[str, str], *, coloured: bool) -> None:
    """What goes into a file or a pipe has no colour unless ``FORCE_COLOR`` asks for it; ``NO_COLOR`` wins."""
    done = forked([sys.executable, *ERROR], env=environment() | variables)
    assert done.returncode == 5
    assert (RED in done.stderr) is coloured
    plain = re.sub(r"\x1b\[\d+m", "", done.stderr)
    assert plain.startswith("deltaweights: error: nothing-is-here: cannot verify")


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
    ids=["terminal", "dumb", "forbidden"],
)
def test_colour_on_a_terminal(variables: dict[str, str], *, coloured: bool) -> None:
    """On a terminal, errors are red, unless ``NO_COLOR`` is set."""
    ours, theirs = pty.openpty()
    try:
        command = [sys.executable, *ERROR]
        subprocess.run(command, env=environment() | variables, stderr=theirs, check=False, timeout=PATIENCE)
        shown = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "error:" in shown
    assert (RED in shown) is coloured


def environment() -> dict[str, str]:
    """Return this process's variables without those that decide on colours."""
    return {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR", "TERM"}}


def test_completion_tells_how_it_is_set_up() -> None:
    """There is an example for each shell."""
    shells = command_of("completion").params[0].type
    assert isinstance(shells, click.Choice)
    assert all(any(f" {shell}" in line for line in IN_A_SHELL) for shell in shells.choices)
