"""Commands whose help shows the options in sections, and examples at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

SECTIONS = ("Inputs", "Output", "Hub", "Checks", "Running", "Logging")
"""The sections of a help page, in their order."""

WIDEST_NAMES = 26
"""What an option and its value may take before their description; where they are longer, it begins on the next line."""


class SectionOption(click.Option):
    """An option that the help lists in its ``section``, one of ``SECTIONS``."""

    def __init__(self, *arguments: Any, section: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.section = section


def flag(section: str, *names: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return ``click.option(*names, **options)`` with a section."""
    return click.option(*names, cls=SectionOption, section=section, **options)


class Command(click.Command):
    """A command with ``examples``: command lines, which are shown as they are."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections that have options; those of click itself, such as ``--help``, are in the last."""
        rows: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for each in self.get_params(ctx):
            row = each.get_help_record(ctx) if isinstance(each, click.Option) else None
            if row is not None:
                rows[getattr(each, "section", SECTIONS[-1])].append(row)
        width = min(max(len(names) for section in rows.values() for names, _ in section), WIDEST_NAMES)
        for section, mine in rows.items():
            if mine:
                with formatter.section(section):
                    formatter.write_dl([(names.ljust(width), text) for names, text in mine], col_max=width)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)


class CommandGroup(Command, click.Group):
    """A group of commands with ``examples``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write command lines below a heading; none is wrapped, so that it can be copied."""
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
