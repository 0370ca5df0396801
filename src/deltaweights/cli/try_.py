"""``deltaweights try``."""

from __future__ import annotations

import gc
from dataclasses import asdict
from pathlib import Path

import click

from deltaweights.cli.options import json_option, quiet_option
from deltaweights.cli.results import print_json
from deltaweights.cli.terminal import TerminalReport
from deltaweights.errors import printable
from deltaweights.util.text import counted

NOTICE = "for research use only; not for clinical care or for any clinical decision"


@click.command("try")
@click.argument("folder", metavar="DIR")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An image to ask about; may be given again.",
)
@click.option("--prompt", help='The question [default: "What is shown in this image?", or "Hello"].')
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Most tokens of the answer."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float16", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="Dtype to run in; auto: that of the stored weights.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--conversation", metavar="NAME", help="A form of conversation that the model's template knows.")
@json_option
@quiet_option
def command(
    folder: str,
    *,
    images: tuple[Path, ...],
    prompt: str | None,
    max_new_tokens: int,
    dtype: str,
    device: str,
    conversation: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Load a checkpoint with transformers and print its answer to one question.

    The most likely answer, without sampling, so that it is the same each time. Weights go to GPUs, then to main memory, and what
    fits in neither is read from the disk as it is needed.
    """
    from deltaweights.inference.answer import answer  # noqa: PLC0415  (only who tries needs it)

    gc.enable()  # modules of a network hold each other, and with them gigabytes
    terminal = TerminalReport("deltaweights", quiet=quiet)
    given = answer(
        folder,
        prompt,
        images,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        conversation=conversation,
        report=terminal,
    )
    terminal.warn(NOTICE)
    if as_json:
        print_json({**asdict(given), "notice": NOTICE})
        return
    click.echo("\n".join(map(printable, given.text.split("\n"))))
    speed = (
        f"{counted(given.tokens, 'token')} in {given.seconds:.1f} s, {given.tokens_per_second:.3g} tokens per second"
    )
    terminal.note(f"{given.model_class} on {given.placement}: {speed}")
