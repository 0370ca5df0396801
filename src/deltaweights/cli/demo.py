"""``deltaweights demo``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.terminal import TerminalReport
from deltaweights.cli.values import FOLDER
from deltaweights.errors import TargetBusy, printable
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted, shell_quoted

NEXT = """\
With real weights (13.5 GB of free disk, and 27 GB in the Hub's cache, which --stream does without):
  deltaweights apply llava-med-7b --target llava-med-7b
  deltaweights verify llava-med-7b
With what you hold already: add --base /path/to/llama-7b, --delta /path/to/llava-med-7b-delta, or both.
LLaVA-Med is for research use only; it is not for clinical care or any clinical decision."""


EXAMPLES = (
    "deltaweights demo",
    "deltaweights demo --keep demo",
)


@click.command("demo", cls=Command, examples=EXAMPLES)
@flag("Output", "--keep", metavar="DIR", type=FOLDER, help="Make the files in this new folder, and leave them there.")
def command(keep: str | None) -> None:
    """Run the whole job on a tiny generated pair.

    Makes a base and a delta with the structure of LLaVA-Med's, merges them, and verifies the result.
    """
    if keep is not None:
        folder = Path(keep)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            remedy = "name a new folder"
            raise TargetBusy("there are files already", where=folder, remedy=remedy)
        _demo(folder)
        return
    folder = Path(tempfile.mkdtemp(prefix="deltaweights-demo-"))
    try:
        _demo(folder)
        click.echo(f"\n{printable(str(folder))} is removed again; --keep DIR leaves the files to look at.")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _demo(folder: Path) -> None:
    from deltaweights.jobs.apply import apply_delta  # noqa: PLC0415  (slow to load: not for --help)
    from deltaweights.jobs.demo import check_by_libraries, make_pair  # noqa: PLC0415
    from deltaweights.manifest.proof_text import proof_line  # noqa: PLC0415
    from deltaweights.manifest.verify import verify  # noqa: PLC0415

    click.echo("1. A tiny base, and a delta with the structure of microsoft/llava-med-7b-delta:")
    base, delta = make_pair(folder)
    target = folder / "merged"
    _list(base)
    _list(delta)
    click.echo()
    places = f"--base {shell_quoted(base)} --delta {shell_quoted(delta)} --target {shell_quoted(target)}"
    click.echo(f"2. deltaweights apply {places}")
    result = apply_delta(base, delta, target, report=TerminalReport("deltaweights", quiet=False))
    click.echo(printable(f"target          {result.target}"))
    click.echo(f"content digest  {result.content_digest}")
    click.echo(f"tensors         {result.tensors} ({result.parameters:,} parameters, {human_bytes(result.bytes)})")
    click.echo(f"base            {proof_line(result.proof)}")
    _list(target)
    click.echo()
    click.echo(f"3. deltaweights verify {shell_quoted(target)} --expect {result.content_digest}")
    checked = verify(target, expect=result.content_digest)
    checked.raise_if_failed()
    click.echo(f"verified        {counted(checked.files, 'file')}, content digest recomputed from the bytes")
    click.echo()
    click.echo("4. The same by others: read by the safetensors library, added by numpy")
    click.echo(f"identical       {counted(check_by_libraries(target), 'tensor')}")
    click.echo(f"\n{NEXT}")


def _list(folder: Path) -> None:
    click.echo(printable(f"   {folder}/"))
    for path in sorted(folder.iterdir()):
        click.echo(f"     {path.name:40} {human_bytes(path.stat().st_size):>10}")
