"""base + delta = merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.jobs.options import Options
from deltaweights.jobs.request import Request, make_request
from deltaweights.jobs.result import Published
from deltaweights.jobs.run import run
from deltaweights.merge.operation import Operation
from deltaweights.merge.parts import Part
from deltaweights.report import Report

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from deltaweights.jobs.options import ApplyOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class ApplyResult(Published):
    """A merged checkpoint in the folder ``target``."""

    target: str


def apply_delta(
    base: ModelLocation | None,
    delta: ModelLocation | None,
    target: PathLike,
    *,
    report: Report | None = None,
    **options: Unpack[ApplyOptions],
) -> ApplyResult:
    """Add ``delta`` to ``base`` and publish the merged checkpoint at ``target``.

    ``base`` and ``delta`` are folders (Hugging Face's layout or Meta's), index files, weights files (safetensors or torch), zip
    archives of them, or Hub ids (``ORG/NAME``, ``ORG/NAME@REVISION``, ``hf://...``), which are merged while they are downloaded;
    None takes the recipe's.

    - ``recipe`` names a known pair (``deltaweights recipes``); ``recipe_file`` is a recipe file, laid over the named one.
    - ``compute_dtype`` (float16, bfloat16 or float32; default: the recipe's, or float16): both inputs are cast to it and added
      once. ``dtype``: how the result is stored (default: the compute dtype).
    - ``max_shard_size``: maximum bytes of tensors per shard, as a number or text such as ``"5GB"``.
    - ``layout``: "original", or "transformers" for a model that current transformers loads; a LLaVA then includes its
      ``vision_tower`` (a path or a Hub id of CLIP; None for the recipe's). ``weights``: "safetensors", or "bin" for torch files.
    - ``device``: ``cpu``, ``cuda[:N]`` or ``auto``; the bits are the same. ``workers``: number of threads.
    - ``overwrite`` replaces a checkpoint at ``target``. ``strict``: NaN, infinite or uniform weights are an error.
    - ``hash_inputs`` records the sha256 of every input file; ``require_verified`` refuses inputs without one.
    - ``prove``: verify the base by the sums (docs/design.md). A refuted base is an error, mostly before anything is written, and so
      is one that is not proved where the recipe states how the delta was computed, unless ``allow_unproved_base``.
    - ``check`` publishes only what transformers can load; ``read_back`` reads the finished shards and hashes them once more.
    - ``hub``: how to access the Hub.

    The same call continues a killed run. Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``,
    ``TargetBusy``, and ``CheckFailed`` (``strict``, ``check``, ``require_verified``); the target is then unchanged, and finished
    shards stay in staging for the next call.

    >>> from deltaweights import apply_delta
    >>> result = apply_delta("base", "delta", "merged")
    >>> result.status, result.content_digest[:4]
    ('merged', 'dw1:')
    """
    return apply(apply_request(base, delta, target, **options), report or Report())


def apply_request(
    base: ModelLocation | None,
    delta: ModelLocation | None,
    target: PathLike,
    *,
    part: Part | None = None,
    dry_run: bool = False,
    **options: Unpack[ApplyOptions],
) -> Request:
    """Return the checked request of ``apply_delta``. Raises as ``make_request`` does."""
    return make_request(Operation.APPLY, base, delta, target, Options(**options), part=part, dry_run=dry_run)


def apply(request: Request, report: Report) -> ApplyResult:
    """Run a request of ``apply_request``."""
    return run(request, report, lambda prepared, done: ApplyResult(target=str(prepared.location.target), **vars(done)))
