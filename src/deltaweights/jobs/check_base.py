"""Whether a delta was made from a base, told from their weights alone: the round trip, without a merge.

Enters: two paths. Leaves: a ``BaseReport``. Never: a byte written (but for archives that must be unpacked), or all blocks read
when a sample was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil

from deltaweights.checkpoint.checksums import refuse_damage, verify_in_pieces
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.checkpoint.zipped_folder.unpack import TemporaryUnpacker
from deltaweights.errors import CheckFailed, Mismatch, UsageError
from deltaweights.hub.ids import Given, PathLike
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.findings import doubt_of
from deltaweights.jobs.inputs import Pair, compute_dtype_of, find_recipe, open_pair
from deltaweights.manifest.findings import ProofRecord
from deltaweights.manifest.tally import Proof
from deltaweights.merge.arithmetic import Kernels, Task, Workbench
from deltaweights.merge.blocks import Block, blocks_of
from deltaweights.merge.device import check_device, kernels_on
from deltaweights.merge.evidence import LEAST_EVIDENCE, Verdict
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import DTYPES, PlannedTensor
from deltaweights.merge.record import proof_of
from deltaweights.merge.stream import BLOCK, read_block
from deltaweights.report import Report
from deltaweights.util.text import natural_key
from deltaweights.util.workers import share_out, workers_of


@dataclass(frozen=True, kw_only=True)
class BaseReport:
    """What the sums say of the base.

    ``stated`` says that the recipe knows in which arithmetic the delta was computed, ``sample`` which share of blocks was looked
    at; ``proof`` is None when nothing is added.
    """

    base: str
    delta: str
    recipe: str | None
    compute_dtype: str
    stated: bool
    sample: float
    proof: ProofRecord | None

    @property
    def proved(self) -> bool:
        """Whether the delta was made from this base."""
        return self.proof is not None and self.proof.verdict == Verdict.PROVED

    def raise_unless_proved(self) -> None:
        """Raise ``Mismatch`` when the base is refuted, ``CheckFailed`` when nothing can be said of it."""
        if self.proved:
            return
        if self.proof is None or self.proof.verdict == Verdict.NO_EVIDENCE:
            moved = self.proof.evidence if self.proof else 0
            raise CheckFailed(
                "neither proved nor refuted", where=self.base, found=f"{moved:,} weights that moved", expected=ENOUGH
            )
        if self.stated or self.proof.verdict == Verdict.VIOLATED:
            raise Mismatch(doubt_of(self.proof), where=self.base, remedy=OTHER_BASE)
        remedy = OTHER_DTYPE if self.proof.verdict == Verdict.OTHER_ARITHMETIC else OTHER_BASE
        raise CheckFailed(doubt_of(self.proof), where=self.base, remedy=remedy)


ENOUGH = f"at least {LEAST_EVIDENCE:,}"
OTHER_BASE = "use the base that the delta was made from"
OTHER_DTYPE = "try --compute-dtype, if you know in which arithmetic the delta was computed"


def check_base(
    base: Given,
    delta: Given,
    *,
    recipe: str | None = None,
    recipe_file: PathLike | None = None,
    compute_dtype: str | None = None,
    sample: float = 1.0,
    device: str = "cpu",
    workers: int | None = None,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> BaseReport:
    """Prove or refute that ``delta`` was made from ``base``; with ``sample``, on that share of the blocks, spread evenly.

    Where all is read, what the files record of the bytes is compared; of a sample it cannot be. Recipe, ``compute_dtype`` and
    ``device`` are those of ``apply_delta``. Raises ``UsageError``, ``MalformedInput``, ``Mismatch`` when headers or hashes refute
    it, and ``InputOutputError``; what the weights say is in the report.
    """
    report = Report() if report is None else report
    if not 0 < sample <= 1:
        raise UsageError("sample is not a share", found=sample, expected="more than 0, at most 1")
    count, named = workers_of(workers), find_recipe(recipe, recipe_file)
    compute_dtype_of(compute_dtype, named)
    check_device(device)
    if sample < 1:
        hub = replace(hub or HubOptions(), stream=True)  # for a share, nobody need fetch the whole
    with (
        TemporaryUnpacker() as scratch,
        open_pair(
            Operation.APPLY, base, delta, recipe=named, hub=hub, allow=None, unpacker=scratch, report=report
        ) as pair,
        kernels_on(device) as make_kernels,
    ):
        compute = compute_dtype_of(compute_dtype, pair.recipe)
        proofs = _prove(pair, DTYPES[compute], sample, make_kernels, count, report)
        for checkpoint in (pair.base, pair.primary):
            checkpoint.check_unchanged()
        return BaseReport(
            base=str(pair.base.path),
            delta=str(pair.primary.path),
            recipe=pair.recipe.name if pair.recipe else None,
            compute_dtype=compute,
            stated=pair.stated,
            sample=sample,
            proof=proof_of(proofs),
        )


def _prove(
    pair: Pair, compute: str, sample: float, make_kernels: Callable[[], Kernels], workers: int, report: Report
) -> dict[str, Proof]:
    """Return what each tensor's blocks say; where all are read, compare the checksums that the files record of them."""
    lock, proofs = threading.Lock(), dict[str, Proof]()
    inputs = pair.base.tensors, pair.primary.tensors

    def make_bench() -> Workbench:
        return Workbench(make_kernels(), Task(Operation.APPLY, compute, compute, check=True), BLOCK)

    def prove(bench: Workbench, job: _Job | LazyTensor) -> Iterator[int]:
        if isinstance(job, LazyTensor):
            yield from verify_in_pieces(job)
            return
        sums = [(tensor, tensor.checksum.start()) if tensor and tensor.checksum else None for tensor in job.whole]
        for block in job.blocks:
            match = block.tensor.match
            primary, base = read_block(block, bench, *inputs)
            for side, data in zip(sums, (base, primary), strict=True):
                if side is not None:
                    side[1].update(data)
            if block.runs:
                base_dtype = match.base.dtype if match.base else None
                outcome = bench.combine(block.stop - block.start, match.primary.dtype, base_dtype, block.runs)
                with lock:
                    found = outcome.tally.proof or Proof()
                    proofs[match.primary.name] = proofs.get(match.primary.name, Proof()) + found
            yield (block.stop - block.start) * match.primary.item_size
        for side in sums:
            if side is not None:
                refuse_damage(*side)

    jobs = [_Job((block,)) for block in _sampled(_blocks(pair), sample)] if sample < 1 else list(_jobs(pair))
    loose = (
        []
        if sample < 1
        else [each for held in (pair.base, pair.primary) for file in held.files for each in file.extra_checksums]
    )
    blocks = (block for job in jobs for block in job.blocks)
    total = sum((block.stop - block.start) * block.tensor.match.primary.item_size for block in blocks)
    total += sum(tensor.spec.nbytes for tensor in loose)
    todo: Iterator[_Job | LazyTensor] = chain(loose, jobs)
    share_out(todo, make_bench, prove, workers=workers, report=report, doing="checking the base", total=total)
    return {
        match.primary.name: proofs[match.primary.name]
        for match in pair.matching.matches
        if match.primary.name in proofs
    }


@dataclass(frozen=True)
class _Job:
    """Blocks that one worker takes, in order; ``whole`` are the base tensor and the primary's where these are all of theirs."""

    blocks: tuple[Block, ...]
    whole: tuple[LazyTensor | None, LazyTensor | None] = (None, None)


def _jobs(pair: Pair) -> Iterator[_Job]:
    """Yield all blocks of what is added: one by one, or by tensor where a file records its checksum, which needs an order."""
    for tensor in _added(pair):
        match = tensor.match
        whole = pair.base.tensors[match.base.name] if match.base else None, pair.primary.tensors[match.primary.name]
        # Blocks without the base's rows are read for the sake of the primary's checksum alone.
        blocks = [block for block in blocks_of((tensor,), BLOCK) if block.runs or whole[1].checksum]
        if any(each and each.checksum for each in whole):
            yield _Job(tuple(blocks), whole)
        else:
            yield from (_Job((block,)) for block in blocks)


def _added(pair: Pair) -> Iterator[PlannedTensor]:
    """Yield what is added, in an order that no container decides."""
    matches = sorted(pair.matching.matches, key=lambda match: natural_key(match.primary.name))
    return (PlannedTensor(match.primary, match, 0) for match in matches if match.base)


def _blocks(pair: Pair) -> Iterator[Block]:
    """Yield the blocks of what is added; all new rows say nothing of the base."""
    return (block for block in blocks_of(tuple(_added(pair)), BLOCK) if block.runs)


def _sampled(blocks: Iterator[Block], sample: float) -> Iterator[Block]:
    """Yield the share ``sample`` of the blocks, at even distances, and at least one."""
    return (block for number, block in enumerate(blocks) if ceil((number + 1) * sample) > ceil(number * sample))
