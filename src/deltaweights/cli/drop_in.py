"""``apply-delta`` and ``make-delta``: the command lines of the original scripts, with our options added."""

from __future__ import annotations

from typing import Any

import click

from deltaweights.cli.apply import apply
from deltaweights.cli.log_report import report_for
from deltaweights.cli.make import make
from deltaweights.cli.options import apply_options, make_options

ORIGINAL = ("--base-model-path", "--target-model-path", "--delta-path", "--low-cpu-mem", "--hub-repo-id")
"""The flags of ``python -m llava.model.apply_delta`` and ``make_delta``, and of FastChat's."""

HELP = {"help_option_names": ["-h", "--help"]}


class AbbreviatedCommand(click.Command):
    """Accepts abbreviations of the original flags, as argparse, which the original scripts use, does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        return super().parse_args(ctx, [_spell_out(argument, own) for argument in args])


def _spell_out(argument: str, own: set[str]) -> str:
    flag, equals, value = argument.partition("=")
    matches = [original for original in ORIGINAL if original in own and original.startswith(flag)]
    if len(flag) > 2 and flag.startswith("--") and flag not in own and len(matches) == 1:
        return f"{matches[0]}{equals}{value}"
    return argument


@click.command("apply-delta", cls=AbbreviatedCommand, context_settings=HELP)
@click.option("--base-model-path", "--base", "base", required=True, metavar="PATH", help="The original LLaMA.")
@click.option("--target-model-path", "--target", "target", required=True, metavar="PATH", help="The folder to create.")
@click.option("--delta-path", "--delta", "delta", required=True, metavar="PATH", help="The delta.")
@click.option("--low-cpu-mem", is_flag=True, help="Accepted for old scripts: memory is always low.")
@apply_options
@click.version_option(package_name="deltaweights")
def apply_delta(base: str, target: str, delta: str, *, low_cpu_mem: bool, **options: Any) -> None:
    """Add a delta to its base, with the flags of the original apply_delta scripts.

    Flags may be shortened as there: --base, --base-model, --target, --delta. See also: deltaweights apply --help.
    """
    if low_cpu_mem:
        report = report_for("apply-delta", quiet=options["quiet"])
        report.note("--low-cpu-mem: memory is always low here; the flag changes nothing")
    apply("apply-delta", base, delta, target, **options)


@click.command("make-delta", cls=AbbreviatedCommand, context_settings=HELP)
@click.option("--base-model-path", "--base", "base", required=True, metavar="PATH", help="The base.")
@click.option("--target-model-path", "--target", "target", required=True, metavar="PATH", help="The fine-tuned model.")
@click.option("--delta-path", "--delta", "delta", required=True, metavar="PATH", help="The folder to create.")
@make_options
@click.version_option(package_name="deltaweights")
def make_delta(base: str, target: str, delta: str, **options: Any) -> None:
    """Subtract a base from a model that was fine-tuned from it, with the flags of the original make_delta scripts.

    Flags may be shortened as there: --base, --target, --delta, --hub. See also: deltaweights make --help.
    """
    make("make-delta", base, target, delta, **options)
