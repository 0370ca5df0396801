"""``deltaweights convert``.

Enters: arguments. Leaves: the same weights as a Hugging Face folder, and what it is, on stdout. Never: logic.
"""

from __future__ import annotations

from typing import Any

import click

from deltaweights.cli.job import convert
from deltaweights.cli.options import DTYPE, format_option, hub_options, output_options, stream_option


@click.command("convert")
@click.option("--base", required=True, metavar="PATH", help="What to convert: Meta's folder, or any other checkpoint.")
@click.option("--target", required=True, metavar="PATH", help="The folder to create.")
@click.option("--dtype", type=DTYPE, help="Dtype of the written weights [default: the one that they have].")
@format_option
@hub_options
@stream_option
@output_options
def command(base: str, target: str, **options: Any) -> None:
    """Write a checkpoint as a Hugging Face folder of safetensors, with manifest and checksums.

    The base may be in Meta's format (consolidated.NN.pth and params.json), of any number of parts: rows are re-ordered and parts
    joined as transformers' conversion does, and configuration and tokenizer files are written. Weights keep their bits.
    """
    convert(base, target, **options)
