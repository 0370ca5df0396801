"""``deltaweights diff``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.options import hub_of, hub_options, json_option, option, quiet_option, stream_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.terminal import TerminalReport
from deltaweights.cli.values import MODEL
from deltaweights.diff.compare import Comparison, DifferingTensor, DiffReport, diff_checkpoints
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

EXAMPLES = (
    "deltaweights diff merged other-merge",
    "deltaweights diff merged ORG/NAME --trust-manifests",
)


@click.command("diff", cls=Command, examples=EXAMPLES)
@click.argument("a", metavar="A", type=MODEL)
@click.argument("b", metavar="B", type=MODEL)
@flag(
    "Checks",
    "--trust-manifests",
    is_flag=True,
    help="Compare what two manifest.json state; read no weights where both have one.",
)
@hub_options
@stream_option
@option("workers")
@json_option
@quiet_option
def command(a: str, b: str, *, as_json: bool, quiet: bool, **options: Any) -> None:
    """Compare two checkpoints, tensor by tensor.

    Container, sharding and order do not matter; names, shapes, dtypes and every bit do. Of names, what a wrapper put before all of
    them (module.) and the layout of transformers' LLaVA do not count, and are said. Rotary inv_freq buffers are listed separately
    and do not count: current loaders recompute them. Exit 0: identical; 3: a file does not match the checksums in it; 6: different.
    """
    terminal = TerminalReport("deltaweights", quiet=quiet)
    report = diff_checkpoints(a, b, hub=hub_of(options), report=terminal, **options)
    print_outcome(asdict(report), _lines(report), as_json=as_json)
    if not report.identical:
        found, code = f"{_extent(report.tensors)} different", ErrorCode.DIFFERENT
        raise CheckFailed(f"not the same weights as {a}", where=b, found=found, code=code)


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
    for where, naming in zip("AB", report.naming or (), strict=False):
        if naming.text:
            yield f"compared by the names in the model: in {where}, {naming.text}"
    yield from _comparison(tensors)
    if buffers.identical + buffers.different:
        yield f"buffers, which do not count: {buffers.identical:,} identical, {buffers.different:,} different"
        yield from _comparison(buffers)


def _extent(tensors: Comparison) -> str:
    return f"{tensors.different:,} of {counted(tensors.identical + tensors.different, 'tensor')}"


def _comparison(found: Comparison) -> Iterator[str]:
    # Names last, so that a long one does not shift the columns.
    if found.differing:
        yield f"{'elements':>16}{'bits':>16}{'max abs':>11}{'rel. norm':>11}  differing tensor"
    for tensor in found.differing:
        counts = "".join(f"{'-' if n is None else format(n, ','):>16}" for n in (tensor.elements, tensor.bits))
        sizes = "".join(f"{'-' if x is None else format(x, '.3g'):>11}" for x in (tensor.max_abs, tensor.relative_norm))
        yield f"{counts}{sizes}  {_description(tensor)}"
    for reshaped in found.other_shape:
        one, other = (f"{dtype} {list(shape)}" for dtype, shape in zip(reshaped.dtypes, reshaped.shapes, strict=True))
        yield f"  other shape  {reshaped.name}: {one} in A, {other} in B"
    for where, specs in (("A", found.only_in_a), ("B", found.only_in_b)):
        yield from (f"  only in {where}    {spec.name}: {spec}" for spec in specs)


def _description(tensor: DifferingTensor) -> str:
    dtypes = tensor.dtypes[0] if tensor.dtypes[0] == tensor.dtypes[1] else " and ".join(tensor.dtypes)
    nonfinite = f", {tensor.nonfinite:,} NaN or infinite" if tensor.nonfinite else ""
    return f"{tensor.name}: {dtypes} {list(tensor.shape)}{nonfinite}"
