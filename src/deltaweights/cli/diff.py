"""``deltaweights diff``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from deltaweights.cli.options import hub_of, hub_options, stream_option
from deltaweights.cli.results import print_json
from deltaweights.cli.terminal import TerminalReport
from deltaweights.diff.compare import Comparison, DifferingTensor, DiffReport, diff_checkpoints
from deltaweights.errors import CheckFailed, printable
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted


@click.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--trust-manifests", is_flag=True, help="Compare what two manifest.json state; read no weights where both have one."
)
@hub_options
@stream_option
@click.option("--workers", type=click.IntRange(min=1), help="Threads [default: one per processor, 2 to 8].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Only the result, and errors.")
def command(
    a: str, b: str, *, trust_manifests: bool, workers: int | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Compare two checkpoints, tensor by tensor.

    Container, sharding and order do not matter, names, shapes, dtypes and every bit do. Rotary inv_freq buffers are listed apart
    and do not count: current loaders recompute them. Exit 0: identical; 3: a file is damaged, by the checksums in it; 6: different.
    """
    terminal, hub = TerminalReport("deltaweights", quiet=quiet), hub_of(options)
    report = diff_checkpoints(a, b, workers=workers, trust_manifests=trust_manifests, hub=hub, report=terminal)
    if as_json:
        print_json(asdict(report))
    else:
        for line in _lines(report):
            click.echo(printable(line))
    if not report.identical:
        raise CheckFailed(f"not the same weights as {a}", where=b, found=f"{_extent(report.tensors)} different")


def _lines(report: DiffReport) -> Iterator[str]:
    tensors, buffers = report.tensors, report.buffers
    how = "" if report.weights_read else ", as the manifests state; no weights were read"
    if report.identical:
        yield f"identical: {counted(tensors.identical, 'tensor')}, {human_bytes(report.bytes)}{how}"
    elif report.same_kind:
        yield f"different: {_extent(tensors)}{how}"
    else:
        in_a, in_b = (len(tensors.other_shape) + len(only) for only in (tensors.only_in_a, tensors.only_in_b))
        counts = f"{counted(in_a, 'tensor')} in A, {in_b:,} in B"
        yield f"not the same kind of model: no tensor has the same name and shape in both ({counts})"
    yield from _comparison(tensors)
    if buffers.identical + buffers.different:
        yield f"buffers, which do not count: {buffers.identical:,} identical, {buffers.different:,} different"
        yield from _comparison(buffers)


def _extent(tensors: Comparison) -> str:
    return f"{tensors.different:,} of {counted(tensors.identical + tensors.different, 'tensor')}"


def _comparison(found: Comparison) -> Iterator[str]:
    # Names last, so that a long one moves no column.
    if found.differing:
        yield f"{'elements':>16}{'bits':>16}{'max abs':>11}{'rel. norm':>11}  differing tensor"
    for tensor in found.differing:
        counts = "".join(f"{'-' if n is None else format(n, ','):>16}" for n in (tensor.elements, tensor.bits))
        sizes = "".join(f"{'-' if x is None else format(x, '.3g'):>11}" for x in (tensor.max_abs, tensor.relative_norm))
        yield f"{counts}{sizes}  {_what(tensor)}"
    for reshaped in found.other_shape:
        one, other = (f"{dtype} {list(shape)}" for dtype, shape in zip(reshaped.dtypes, reshaped.shapes, strict=True))
        yield f"  other shape  {reshaped.name}: {one} in A, {other} in B"
    for where, specs in (("A", found.only_in_a), ("B", found.only_in_b)):
        for spec in specs:
            yield f"  only in {where}    {spec.name}: {spec}"


def _what(tensor: DifferingTensor) -> str:
    dtypes = tensor.dtypes[0] if tensor.dtypes[0] == tensor.dtypes[1] else " and ".join(tensor.dtypes)
    strange = f", {tensor.nonfinite:,} NaN or infinite" if tensor.nonfinite else ""
    return f"{tensor.name}: {dtypes} {list(tensor.shape)}{strange}"
