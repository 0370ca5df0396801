"""A checkpoint in another layout or container, tensor by tensor the same.

Enters: a path. Leaves: a Hugging Face folder of safetensors with manifest and checksums. Never: a number that is changed, unless
another dtype was asked for.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from deltaweights.checkpoint.companions import NOTICE_NAME, NOTICE_OF_A_COPY, Companions, read_companions
from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.meta.config import meta_companions
from deltaweights.checkpoint.meta.llama import CONTAINER
from deltaweights.errors import UsageError
from deltaweights.hashing import hashes_of
from deltaweights.hub.ids import Given, PathLike, Source
from deltaweights.hub.locate import HubOptions, located, paths_among
from deltaweights.job import Published, Settings, perform
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import DTYPES, Companion, Options, make_plan
from deltaweights.merge.rules import Matching, copies
from deltaweights.naming import identify
from deltaweights.prepare import Prepared, record_of
from deltaweights.report import Report
from deltaweights.sizes import parse_size
from deltaweights.staging.place import locate, refuse_foreign, refuse_inputs
from deltaweights.staging.unpacking import Unpacking
from deltaweights.work import workers_of

TORCH_NAMES = {code: name for name, code in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class ConvertResult(Published):
    """The same weights in the folder ``target``."""

    target: str


def convert_checkpoint(
    base: Given,
    target: PathLike,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    hash_inputs: bool = False,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> ConvertResult:
    """Write the checkpoint at ``base``, in Meta's format or any other that can be read, as a Hugging Face folder at ``target``.

    Weights keep their bits, unless ``dtype`` (float16, bfloat16 or float32) asks for others. From Meta's format, config.json
    and, where ``tokenizer.model`` lies beside the weights, tokenizer files are written; from others they are copied. The other
    options are those of ``apply_delta``.

    Raises ``UsageError``, ``MalformedInput``, ``Mismatch``, ``InputOutputError``, ``TargetBusy``, and ``CheckFailed`` (``strict``).
    """
    began = time.monotonic()
    report = Report() if report is None else report
    settings = Settings("cpu", workers_of(workers), overwrite, strict)
    opener = partial(
        prepare_copy,
        base,
        target,
        dtype=dtype,
        max_shard_size=max_shard_size,
        hub=hub,
        hash_workers=settings.workers if hash_inputs else None,
        overwrite=overwrite,
        report=report,
    )
    job, published = perform(opener, settings, report, began)
    return ConvertResult(target=str(job.place.target), **vars(published))


@contextmanager
def prepare_copy(
    base: Given,
    target: PathLike,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    hub: HubOptions | None = None,
    hash_workers: int | None = None,
    overwrite: bool | None = None,
    report: Report | None = None,
) -> Iterator[Prepared]:
    """Open a checkpoint and plan its copy; ``hash_workers`` and ``overwrite`` are as for ``prepare``.

    Raises as ``convert_checkpoint`` does.
    """
    operation, report = Operation.CONVERT, Report() if report is None else report
    for role, given in (("base", base), ("target", target)):
        if not isinstance(given, Source) and not os.fspath(given):
            raise UsageError(f"{role} is an empty path", remedy="is a variable unset?")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError("unknown dtype", found=dtype, expected=", ".join(DTYPES))
    limit, place = parse_size(max_shard_size, "max shard size"), locate(target)
    refuse_inputs(place, paths_among([base]))
    if overwrite is not None:
        refuse_foreign(place, overwrite=overwrite)
    with (
        Unpacking(place) as unpacking,
        located([("base", base)], hub, report) as (at,),
        open_checkpoint(at, "base", unpacking, report) as source,
    ):
        place.refuse_opened(weights.file.path for weights in source.files)
        matching = copies(source.tensors, operation)
        for text in source.notes:
            report.warn(text)
        hashes = hashes_of({"base": source}, hash_workers, report)
        report.note(f"{'base':15} {identify(source, hashes.files['base'], read=hashes.read).text}")
        stored = DTYPES[dtype] if dtype is not None else _dtype_of(matching)
        companions = _companions(source, matching, TORCH_NAMES[stored])
        plan = make_plan(
            matching,
            Options(stored, stored, limit),
            None,
            record_of(source, matching.dropped_lead),
            [Companion(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in companions.files.items()],
            operation,
        )
        yield Prepared({"base": source}, hashes, None, companions, plan, place, unpacking)


def _dtype_of(matching: Matching) -> str:
    """Return the one dtype of all weights. Raises ``UsageError`` when they have several, or one that is not written."""
    found = sorted({match.lead.dtype for match in matching.matches})
    if len(found) > 1 or found[0] not in TORCH_NAMES:
        expected = ", ".join(DTYPES)
        raise UsageError(
            "which dtype is wanted is not clear", found=" and ".join(found), expected=expected, remedy="say --dtype"
        )
    return found[0]


def _companions(source: Checkpoint, matching: Matching, dtype: str) -> Companions:
    if source.container == CONTAINER:
        specs = {match.lead.name: match.lead for match in matching.matches}
        files = meta_companions(source.directory, specs, dtype)
        return Companions({NOTICE_NAME: NOTICE_OF_A_COPY.encode(), **files}, ())
    if source.alone:
        return Companions({NOTICE_NAME: NOTICE_OF_A_COPY.encode()}, ())
    return read_companions(source.directory, source.names, dtype, "base", NOTICE_OF_A_COPY)
