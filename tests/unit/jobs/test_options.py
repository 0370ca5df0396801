"""Options are declared once: flags, keyword arguments and defaults come from the same fields."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import click
import pytest

from deltaweights import apply_delta, convert_checkpoint, export_checkpoint, make_delta
from deltaweights.cli.apply import command as apply_command
from deltaweights.cli.convert import command as convert_command
from deltaweights.cli.export import command as export_command
from deltaweights.cli.finish import command as finish_command
from deltaweights.cli.make import command as make_command
from deltaweights.cluster.finish import finish_parts
from deltaweights.jobs import options as declared
from deltaweights.jobs.options import FLAGS, Options
from deltaweights.merge.choices import CONTAINERS

BY_NAME = {field.name: field for field in fields(Options)}

KEYWORDS = {
    apply_delta: declared.ApplyOptions,
    make_delta: declared.MakeOptions,
    convert_checkpoint: declared.ConvertOptions,
    export_checkpoint: declared.ExportOptions,
}

COMMANDS = [apply_command, make_command, convert_command, export_command, finish_command]


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=lambda keywords: keywords.__name__)
def test_keyword_arguments_are_fields(keywords: Any) -> None:
    """Every keyword argument of a function is a field of ``Options``, with the same type."""
    assert set(keywords.__annotations__) <= set(BY_NAME)
    for name in keywords.__annotations__:
        assert keywords.__annotations__[name].__forward_arg__ == BY_NAME[name].type


@pytest.mark.parametrize("function", KEYWORDS, ids=lambda function: function.__name__)
def test_functions_refuse_other_keywords(function: Any) -> None:
    """A keyword argument that nobody declared is a ``TypeError``, as for any function."""
    places = ["a", "b", "c"][
        : sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in inspect.signature(function).parameters.values())
    ]
    with pytest.raises(TypeError, match="shard_limit"):
        function(*places, shard_limit=1)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_flags_have_the_defaults_of_the_fields(command: click.Command) -> None:
    """A flag that is not given means what the keyword argument means that is not given."""
    given = command.make_context("deltaweights", [], resilient_parsing=True).params
    shared = set(given) & set(FLAGS) - {"check"}
    assert shared
    assert {name: given[name] for name in shared} == {name: BY_NAME[name].default for name in shared}


def test_apply_has_every_flag() -> None:
    """Each option of the table is a flag of ``apply``, except for those that a part or the finish has no use for."""
    assert {parameter.name for parameter in apply_command.params} >= set(FLAGS)


def test_containers_have_one_spelling() -> None:
    """``--format`` offers exactly the containers that can be written."""
    assert FLAGS["weights"].metadata["choices"] == tuple(CONTAINERS)


def test_finish_has_the_options_of_the_whole_result() -> None:
    """``finish`` takes what ``apply --part`` refuses, by the same names."""
    names = {parameter.name for parameter in finish_command.params} & set(FLAGS)
    assert names == set(inspect.signature(finish_parts).parameters) - {"target", "report"}
