"""``deltaweights convert``."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.options import (
    copied_dtype_option,
    hub_options,
    option,
    output_options,
    stream_option,
    target_option,
)
from deltaweights.cli.values import BASE_MODEL
from deltaweights.cli.writing import write_checkpoint

EXAMPLES = ("deltaweights convert --base llama/7B --target llama-7b",)


@click.command("convert", cls=Command, examples=EXAMPLES)
@flag(
    "Inputs",
    "--base",
    required=True,
    metavar="PATH|HUB_ID",
    type=BASE_MODEL,
    help="What to convert: Meta's folder, or any other checkpoint.",
)
@target_option
@copied_dtype_option
@option("weights")
@hub_options
@stream_option
@output_options
def command(base: str, target: str, **options: Any) -> None:
    """Write a checkpoint as a Hugging Face folder of safetensors, with manifest and checksums.

    The base may be in Meta's format (consolidated.NN.pth and params.json), of any number of parts: rows are re-ordered and parts
    joined as transformers' conversion does, and configuration and tokenizer files are written. Weights keep their bits.
    """
    from deltaweights.jobs.convert import convert_request, copy  # noqa: PLC0415  (slow to load, so not for --help)

    write_checkpoint("deltaweights", partial(convert_request, base, target), copy, **options)
