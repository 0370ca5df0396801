"""The flags of the original scripts: ``apply-delta`` and ``make-delta`` take them, ``apply`` and ``make`` say who does."""

from __future__ import annotations

import click

from deltaweights.cli.command import Command
from deltaweights.errors import UsageError

SHORTER = {
    "--base-model-path": "--base",
    "--target-model-path": "--target",
    "--delta-path": "--delta",
    "--low-cpu-mem": None,
    "--hub-repo-id": "--hub-repo-id",
}
"""The flags of ``python -m llava.model.apply_delta`` and ``make_delta``, and of FastChat's, with our names of them."""


class AbbreviatedCommand(Command):
    """Accepts abbreviations of the original flags, as argparse, which the original scripts use, does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        return super().parse_args(ctx, [_spell_out(argument, own) for argument in args])


def _spell_out(argument: str, own: set[str]) -> str:
    flag, equals, value = argument.partition("=")
    matches = [original for original in SHORTER if original in own and original.startswith(flag)]
    if len(flag) > 2 and flag.startswith("--") and flag not in own and len(matches) == 1:
        return f"{matches[0]}{equals}{value}"
    return argument


class CommandWithDropIn(Command):
    """``apply`` or ``make``: an original flag is refused with the name of the program that takes it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flag = error.option_name
            if flag not in SHORTER:
                raise
            shorter = SHORTER[flag]
            here = f"here it is {shorter}" if shorter else "here leave it out: memory is always low"
            remedy = f"{self.name}-delta takes the flags of the original scripts; {here}"
            raise UsageError(f"deltaweights {self.name} has no option {flag}", remedy=remedy) from None
