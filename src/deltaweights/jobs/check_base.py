"""Check whether a delta was made from a base: the round trip of the proof, without a merge."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from deltaweights.checkpoint.checksums import refuse_damage, verify_in_pieces
from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.checkpoint.zipped_folder.unpack import TemporaryUnpacker
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, Mismatch, UsageError
from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.findings import ORIGINAL_SCRIPT, code_of_doubt, doubt_of
from deltaweights.jobs.inputs import Inputs, open_pair
from deltaweights.jobs.request import InputRequest, compute_dtype_of, find_recipe, needed_recipe, parse_place
from deltaweights.jobs.round_trip import added, bench_of, prove_block, share_of_blocks
from deltaweights.manifest.findings import ProofRecord, Verdict
from deltaweights.manifest.proof_text import MIN_EVIDENCE
from deltaweights.manifest.tally import Proof
from deltaweights.merge.arithmetic import BlockCombiner, Kernels
from deltaweights.merge.base_proof import wider_tensors
from deltaweights.merge.blocks import Block, blocks_of
from deltaweights.merge.choices import TORCH_NAMES
from deltaweights.merge.device import check_device, kernels_on
from deltaweights.merge.operation import Operation
from deltaweights.merge.record import proof_of
from deltaweights.merge.stream import BLOCK
from deltaweights.recipes.hub_sources import delta_source
from deltaweights.report import Report
from deltaweights.util.text import short_repr
from deltaweights.util.workers import resolve_workers, run_parallel


@dataclass(frozen=True, kw_only=True)
class BaseReport:
    """The result of ``check_base``.

    ``stated``: the recipe states the arithmetic of the delta. ``sample``: the share of the blocks that was read. ``proof`` is None
    when nothing is added to the base, or where sums would prove no base: ``powerless`` says why. ``rounded``: how the delta
    seems to have been rounded.
    """

    base: str
    delta: str
    recipe: str | None
    compute_dtype: str
    stated: bool
    sample: float
    proof: ProofRecord | None
    powerless: str = ""
    rounded: str = ""

    def __repr__(self) -> str:
        return short_repr(
            self,
            base=self.base,
            delta=self.delta,
            verdict=self.proof.verdict if self.proof else None,
            sample=self.sample,
        )

    @property
    def proved(self) -> bool:
        """Whether the delta was made from this base."""
        return self.proof is not None and self.proof.verdict == Verdict.PROVED

    def raise_unless_proved(self) -> None:
        """Raise ``Mismatch`` when the base is refuted, ``CheckFailed`` when there is no evidence."""
        if self.proved:
            return
        if self.powerless:
            raise CheckFailed(f"neither proved nor refuted: {self.powerless}", where=self.base)
        if self.proof is None or self.proof.verdict == Verdict.NO_EVIDENCE:
            moved = self.proof.evidence if self.proof else 0
            raise CheckFailed(
                "neither proved nor refuted",
                where=self.base,
                found=f"{moved:,} weights that moved",
                expected=ENOUGH,
                code=ErrorCode.BASE_NOT_PROVED,
            )
        doubt, code = doubt_of(self.proof), code_of_doubt(self.proof)
        if self.proof.whole:
            raise Mismatch(doubt, where=self.delta, remedy=ORIGINAL_SCRIPT, code=code)
        if self.stated or self.proof.refuted:
            raise Mismatch(doubt, where=self.base, remedy=OTHER_BASE, code=code)
        remedy = OTHER_DTYPE if self.proof.verdict == Verdict.OTHER_ARITHMETIC else OTHER_BASE
        raise CheckFailed(doubt, where=self.base, remedy=remedy, code=code)


ENOUGH = f"at least {MIN_EVIDENCE:,}"
OTHER_BASE = "use the base that the delta was made from"
OTHER_DTYPE = "try --compute-dtype, if you know in which arithmetic the delta was computed"


def check_base(
    base: ModelLocation,
    delta: ModelLocation | None = None,
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
    """Prove or refute that ``delta`` was made from ``base``; with ``sample``, from that share of the blocks, evenly spaced.

    A delta that is not given is the recipe's, as in ``apply_delta``.

    Checksums that the files record are compared, unless only a sample is read. Recipe, ``compute_dtype`` and ``device`` are those
    of ``apply_delta``. Raises ``UsageError``, ``MalformedInput``, ``Mismatch`` when headers or hashes refute the base, and
    ``InputOutputError``; the evidence of the weights is in the returned report.

    >>> from deltaweights import check_base
    >>> check_base("base", "delta").proof.verdict
    'no evidence'
    """
    report = report or Report()
    if not 0 < sample <= 1:
        raise UsageError("sample is not a share", found=sample, expected="more than 0, at most 1")
    count, named = resolve_workers(workers), find_recipe(recipe, recipe_file)
    compute_dtype_of(compute_dtype, named)
    check_device(device)
    if sample < 1:
        hub = replace(hub or HubOptions(), stream=True)  # a sample does not need whole files
    request = InputRequest(
        operation=Operation.APPLY,
        base=parse_place("base", base),
        primary=parse_place("delta", delta_source(needed_recipe(named, "delta")) if delta is None else delta),
        recipe=named,
        compute_dtype=compute_dtype,
        hub=hub,
        allow_other_base=None,
    )
    with (
        TemporaryUnpacker() as scratch,
        open_pair(request, scratch, report) as inputs,
        kernels_on(device) as make_kernels,
    ):
        of_base = inputs.base
        assert of_base is not None  # noqa: S101  (this tells mypy)
        proofs = _prove(inputs, of_base, sample, make_kernels, count, report)
        for checkpoint in (of_base, inputs.primary):
            checkpoint.check_unchanged()
        return _report_of(inputs, of_base, sample, proofs)


def _report_of(inputs: Inputs, base: Checkpoint, sample: float, proofs: dict[str, Proof]) -> BaseReport:
    wider = wider_tensors(inputs.matching.matches, inputs.compute)
    return BaseReport(
        base=str(base.path),
        delta=str(inputs.primary.path),
        recipe=inputs.recipe.name if inputs.recipe else None,
        compute_dtype=TORCH_NAMES[inputs.compute],
        stated=inputs.of_base.stated,
        sample=sample,
        proof=None if inputs.powerless else proof_of(proofs, rounded=inputs.of_base.rounded, wider=wider),
        powerless=inputs.powerless,
        rounded=inputs.of_base.rounded,
    )


@dataclass(frozen=True)
class _Batch:
    """Blocks that one worker reads, in order; ``whole`` are the tensors of base and delta if these are all of their blocks."""

    blocks: tuple[Block, ...]
    whole: tuple[LazyTensor | None, LazyTensor | None] = (None, None)

    @property
    def nbytes(self) -> int:
        return sum((block.stop - block.start) * block.tensor.match.primary.item_size for block in self.blocks)


def _batches(inputs: Inputs, base: Checkpoint) -> Iterator[_Batch]:
    """Yield the blocks one by one, or by tensor where a file records a checksum, which needs the bytes in order."""
    for planned in added(inputs):
        match = planned.match
        of_base = base.tensors[match.base.name] if match.base else None
        delta = inputs.primary.tensors[match.primary.name]
        # Blocks without rows of the base are read only for the delta's checksum.
        blocks = [block for block in blocks_of((planned,), BLOCK) if block.runs or delta.checksum]
        if delta.checksum or (of_base is not None and of_base.checksum):
            yield _Batch(tuple(blocks), (of_base, delta))
        else:
            yield from (_Batch((block,)) for block in blocks)


def _prove(
    inputs: Inputs, base: Checkpoint, sample: float, make_kernels: Callable[[], Kernels], workers: int, report: Report
) -> dict[str, Proof]:
    """Return the proof of each tensor. Raises ``MalformedInput`` for bytes that differ from their checksum."""
    loose: list[LazyTensor] = []
    if sample < 1:
        batches = [_Batch((block,)) for block in share_of_blocks(inputs, sample, BLOCK)]
    else:
        batches = list(_batches(inputs, base))
        loose = [tensor for each in (base, inputs.primary) for file in each.files for tensor in file.extra_checksums]
    lock, proofs = threading.Lock(), dict[str, Proof]()

    def make_bench() -> BlockCombiner:
        return bench_of(make_kernels(), inputs.compute, BLOCK)

    def prove(bench: BlockCombiner, batch: _Batch | LazyTensor) -> Iterator[int]:
        if isinstance(batch, LazyTensor):
            yield from verify_in_pieces(batch)
            return
        sums = [(tensor, tensor.checksum.start()) if tensor and tensor.checksum else None for tensor in batch.whole]
        for block in batch.blocks:
            primary = block.tensor.match.primary
            found = prove_block(block, bench, inputs)
            for side, data in zip(sums, (found.base, found.delta), strict=True):
                if side is not None:
                    side[1].update(data)
            if block.runs:
                with lock:
                    proofs[primary.name] = proofs.get(primary.name, Proof()) + found.proof
            yield (block.stop - block.start) * primary.item_size
        for side in sums:
            if side is not None:
                refuse_damage(*side)

    total = sum(batch.nbytes for batch in batches) + sum(tensor.spec.nbytes for tensor in loose)
    todo: Iterator[_Batch | LazyTensor] = chain(loose, batches)
    run_parallel(todo, make_bench, prove, workers=workers, report=report, doing="checking the base", total=total)
    names = (match.primary.name for match in inputs.matching.matches)
    return {name: proofs[name] for name in names if name in proofs}
