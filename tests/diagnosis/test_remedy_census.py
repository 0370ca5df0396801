"""No remedy escapes: each text in the source is in the census, and what remedies and documents name is there to be run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click
import pytest

from deltaweights.cli.group import deltaweights
from tests.diagnosis import test_remedies, test_remedies_of_places, test_remedies_of_tools
from tests.diagnosis.test_remedies import Scene, try_remedy
from tests.support.remedies import pattern, remedies
from tests.support.remedy_census import ELSEWHERE, FOLLOWED, NOT_FOLLOWED

pytestmark = pytest.mark.diagnosis

ROOT = Path(__file__).parents[2]

ROWS = {**test_remedies.CASES, **test_remedies_of_tools.CASES, **test_remedies_of_places.CASES}

OF_OTHERS = {
    "--array": "sbatch",
    "--model-path": "merge_lora_weights.py",
    "--model-base": "merge_lora_weights.py",
    "--save-model-path": "merge_lora_weights.py",
    "--recover_diff": "EasyLM",
    "--trust_config": "model_signing",
}
"""Options of other programs that remedies name."""


def test_every_remedy_is_in_the_census() -> None:
    """A new remedy gets a row that follows it, or a reason; one that is gone leaves the census."""
    listed = [*chain(*FOLLOWED.values(), *ELSEWHERE.values(), *NOT_FOLLOWED.values())]
    assert sorted(set(listed)) == sorted(remedies())
    assert len(set(listed)) == len(listed)


def test_the_census_names_what_is_there() -> None:
    """The rows and the tests that it names exist."""
    assert set(FOLLOWED) <= set(ROWS)
    for name in ELSEWHERE:
        file, _, test = name.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_the_census_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The remedy that a row follows has the texts that the census says."""
    case, said = ROWS[name], []
    for variable in test_remedies_of_tools.variables():
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    scene = Scene(tmp_path)
    follow = case.follow

    def noting(scene: Scene, line: list[str], remedy: str) -> list[str]:
        said.append(remedy)
        return follow(scene, line, remedy)

    try_remedy(type(case)(case.situation, case.code, case.says, noting, case.then), scene)
    for text in FOLLOWED[name]:
        assert pattern(text).search(said[0]), text


def _commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None:
            yield name, command
        if isinstance(command, click.Group):
            yield from _commands(command)


COMMANDS = dict(_commands(deltaweights))


def _options(commands: list[click.Command]) -> set[str]:
    named = {flag for command in commands for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    return named | {"--help", "--version"}


ALL = _options([*COMMANDS.values()])


def test_remedies_name_options_that_exist() -> None:
    """Each option in a remedy is one of some command, or of the program that the remedy names."""
    for text in remedies():
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text):
            assert flag in ALL or flag in OF_OTHERS, text


def test_remedies_name_commands_that_exist() -> None:
    """What stands behind ``deltaweights`` in a remedy is a command, with the options that follow it there."""
    for text in remedies():
        for name, rest in re.findall(
            r"(?<![a-z-])deltaweights ([a-z-]+)((?: (?:\{\}|[A-Z/]+|\.\.\.|--[a-z-]+))*)", text
        ):
            if name in {"wrote", "made"}:  # "that deltaweights wrote"
                continue
            assert name in COMMANDS, text
            assert set(re.findall("--[a-z-]+", rest)) <= _options([COMMANDS[name]]), text


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_options_that_exist(document: Path) -> None:
    """In a document, a line that runs a command of ours has only options of that command."""
    if document.name == "CHANGELOG.md":
        pytest.skip("it tells of what was")
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, rest in re.findall(r"(?m)(?<![\w/.-])deltaweights ([a-z][a-z-]*)((?:[ \t]+[^\s`|;&#)]+)*)", text):
        if name in COMMANDS:
            flags = {flag.partition("=")[0] for flag in re.findall(r"(?<=[ \t])--[a-z][a-z-]*", rest)}
            group = COMMANDS[name]
            inner = list(group.commands.values()) if isinstance(group, click.Group) else []
            assert flags <= _options([group, *inner]), (name, rest)


def test_packages_that_remedies_name() -> None:
    """The extra that is to be installed is one of the project's."""
    extras = re.findall(
        r"(?m)^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]")[2]
    )
    named = {extra for text in remedies() for extra in re.findall(r"deltaweights\[([a-z]+)\]", text)}
    assert named
    assert named <= set(extras)
