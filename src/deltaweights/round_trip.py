"""Whether a delta was made from a base, told from their weights alone: the round trip, without a merge.

Enters: two paths. Leaves: a ``BaseReport``. Never: a byte written (but for archives that must be unpacked), or all blocks read
when a sample was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil

from deltaweights.checkpoint.archived.scratch import Scratch
from deltaweights.errors import CheckFailed, Mismatch, UsageError
from deltaweights.health import doubt_of
from deltaweights.hub.ids import Given, PathLike
from deltaweights.hub.locate import HubOptions
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
from deltaweights.pair import Pair, compute_dtype_of, find_recipe, open_pair
from deltaweights.report import Report
from deltaweights.text import natural_key
from deltaweights.work import share_out, workers_of


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

    Recipe, ``compute_dtype`` and ``device`` are those of ``apply_delta``. Raises ``UsageError``, ``MalformedInput``,
    ``Mismatch`` when headers or hashes refute it, and ``InputOutputError``; what the weights say is in the report.
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
        Scratch() as scratch,
        open_pair(
            Operation.APPLY, base, delta, recipe=named, hub=hub, allow=None, unpacker=scratch, report=report
        ) as pair,
        kernels_on(device) as make_kernels,
    ):
        compute = compute_dtype_of(compute_dtype, pair.recipe)
        proofs = _prove(pair, DTYPES[compute], sample, make_kernels, count, report)
        for checkpoint in (pair.base, pair.lead):
            checkpoint.check_unchanged()
        return BaseReport(
            base=str(pair.base.path),
            delta=str(pair.lead.path),
            recipe=pair.recipe.name if pair.recipe else None,
            compute_dtype=compute,
            stated=pair.stated,
            sample=sample,
            proof=proof_of(proofs),
        )


def _prove(
    pair: Pair, compute: str, sample: float, make_kernels: Callable[[], Kernels], workers: int, report: Report
) -> dict[str, Proof]:
    """Return what each tensor's blocks say."""
    lock, proofs = threading.Lock(), dict[str, Proof]()

    def make_bench() -> Workbench:
        return Workbench(make_kernels(), Task(Operation.APPLY, compute, compute, check=True), BLOCK)

    def prove(bench: Workbench, block: Block) -> Iterator[int]:
        read_block(block, bench, pair.base.tensors, pair.lead.tensors)
        match = block.tensor.match
        base_dtype = match.base.dtype if match.base else None
        outcome = bench.combine(block.stop - block.start, match.lead.dtype, base_dtype, block.runs)
        with lock:
            found = outcome.tally.proof or Proof()
            proofs[match.lead.name] = proofs.get(match.lead.name, Proof()) + found
        yield (block.stop - block.start) * match.lead.item_size

    blocks = list(_sampled(_blocks(pair), sample))
    total = sum((block.stop - block.start) * block.tensor.match.lead.item_size for block in blocks)
    share_out(iter(blocks), make_bench, prove, workers=workers, report=report, doing="checking the base", total=total)
    return {match.lead.name: proofs[match.lead.name] for match in pair.matching.matches if match.lead.name in proofs}


def _blocks(pair: Pair) -> Iterator[Block]:
    """Yield the blocks of what is added, in an order that no container decides; all new rows say nothing of the base."""
    matches = sorted(pair.matching.matches, key=lambda match: natural_key(match.lead.name))
    added = tuple(PlannedTensor(match.lead, match, 0) for match in matches if match.base)
    return (block for block in blocks_of(added, BLOCK) if block.runs)


def _sampled(blocks: Iterator[Block], sample: float) -> Iterator[Block]:
    """Yield the share ``sample`` of the blocks, at even distances, and at least one."""
    return (block for number, block in enumerate(blocks) if ceil((number + 1) * sample) > ceil(number * sample))
