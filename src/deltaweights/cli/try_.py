"""``deltaweights try``."""

from __future__ import annotations

import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.options import json_option, quiet_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.terminal import TerminalReport
from deltaweights.cli.values import FOLDER
from deltaweights.util.text import counted

NOTICE = "for research use only; not for clinical care or for any clinical decision"

DTYPES = click.Choice(["auto", "float16", "bfloat16", "float32"])


EXAMPLES = (
    "deltaweights try merged-hf",
    "deltaweights try merged-hf --image cell.png --prompt 'What is this?'",
)


@click.command("try", cls=Command, examples=EXAMPLES)
@click.argument("folder", metavar="DIR", type=FOLDER)
@flag(
    "Inputs",
    "--image",
    "images",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An image to ask about; may be repeated.",
)
@flag("Inputs", "--prompt", metavar="TEXT", help='The question [default: "What is shown in this image?", or "Hello"].')
@flag(
    "Running",
    "--max-new-tokens",
    metavar="N",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Most tokens of the answer.",
)
@flag(
    "Running",
    "--dtype",
    type=DTYPES,
    default="auto",
    show_default=True,
    help="Dtype to run in; auto: that of the stored weights.",
)
@flag("Running", "--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@flag("Inputs", "--conversation", metavar="NAME", help="A conversation format of the model's chat template.")
@json_option
@quiet_option
def command(
    folder: str, *, prompt: str | None, images: tuple[Path, ...], as_json: bool, quiet: bool, **options: Any
) -> None:
    """Load a checkpoint with transformers and print its answer to one question.

    The answer is decoded greedily, without sampling, so it is the same each time. Weights go to GPUs, then to main memory; what
    fits in neither is read from the disk as it is needed.
    """
    from deltaweights.inference.answer import answer  # noqa: PLC0415  (slow to load, so not for --help)

    gc.enable()  # the modules of a network form reference cycles, which hold gigabytes
    terminal = TerminalReport("deltaweights", quiet=quiet)
    given = answer(folder, prompt, images, report=terminal, **options)
    terminal.warn(NOTICE)
    print_outcome({**asdict(given), "notice": NOTICE}, given.text.split("\n"), as_json=as_json)
    if not as_json:
        tokens, speed = counted(given.tokens, "token"), f"{given.tokens_per_second:.3g} tokens per second"
        terminal.note(f"{given.model_class} on {given.placement}: {tokens} in {given.seconds:.1f} s, {speed}")
