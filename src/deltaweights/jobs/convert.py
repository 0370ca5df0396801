"""The same weights in another layout or container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.jobs.options import Options
from deltaweights.jobs.request import Request, make_request
from deltaweights.jobs.result import Published
from deltaweights.jobs.run import run
from deltaweights.merge.choices import TRANSFORMERS
from deltaweights.merge.operation import Operation
from deltaweights.report import Report

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from deltaweights.jobs.options import ConvertOptions, ExportOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class ConvertResult(Published):
    """The same weights in the folder ``target``."""

    target: str


def convert_checkpoint(
    base: ModelLocation, target: PathLike, *, report: Report | None = None, **options: Unpack[ConvertOptions]
) -> ConvertResult:
    """Write the checkpoint at ``base``, in Meta's format or any other that can be read, as a Hugging Face folder at ``target``.

    Weights keep their bits, unless ``dtype`` (float16, bfloat16 or float32) is given. From Meta's format, config.json is written,
    and tokenizer files if ``tokenizer.model`` is beside the weights; from others they are copied. The other options are those of
    ``apply_delta``.

    Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``, ``TargetBusy``, and ``CheckFailed`` (``strict``,
    or when ``base`` differs from its own manifest).

    >>> from deltaweights import convert_checkpoint
    >>> convert_checkpoint("base", "base-bf16", dtype="bfloat16").status
    'converted'
    """
    return copy(convert_request(base, target, **options), report or Report())


def export_checkpoint(
    merged: ModelLocation, target: PathLike, *, report: Report | None = None, **options: Unpack[ExportOptions]
) -> ConvertResult:
    """Write the merged checkpoint at ``merged`` in the layout of current transformers at ``target``.

    The weights are those of ``apply_delta`` with ``layout="transformers"``. ``recipe`` and ``recipe_file`` say which model it
    is, if its manifest does not. The other options are those of ``apply_delta``. A merge whose manifest says that its base is
    refuted is exported only with ``allow_unproved_base``.

    Raises as ``convert_checkpoint`` does, and ``CheckFailed`` with ``check``.

    >>> from deltaweights import export_checkpoint
    >>> export_checkpoint("merged", "exported").status
    'exported'
    """
    return copy(export_request(merged, target, **options), report or Report())


def convert_request(
    base: ModelLocation, target: PathLike, *, dry_run: bool = False, **options: Unpack[ConvertOptions]
) -> Request:
    """Return the checked request of ``convert_checkpoint``. Raises as ``make_request`` does."""
    return make_request(Operation.CONVERT, None, base, target, Options(**options), dry_run=dry_run)


def export_request(
    merged: ModelLocation, target: PathLike, *, dry_run: bool = False, **options: Unpack[ExportOptions]
) -> Request:
    """Return the checked request of ``export_checkpoint``. Raises as ``make_request`` does."""
    asked = Options(layout=TRANSFORMERS, **options)
    return make_request(Operation.EXPORT, None, merged, target, asked, dry_run=dry_run)


def copy(request: Request, report: Report) -> ConvertResult:
    """Run a request of ``convert_request`` or ``export_request``."""
    return run(
        request, report, lambda prepared, done: ConvertResult(target=str(prepared.location.target), **vars(done))
    )
