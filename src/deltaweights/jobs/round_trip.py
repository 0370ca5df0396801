"""The round trip of blocks that are read for it alone, without a merge: all, a share, or the samples that a plan needs anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil

from deltaweights.checkpoint.samples import SAMPLE, SAMPLES, sample_places
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.jobs.inputs import Inputs
from deltaweights.manifest.tally import Proof
from deltaweights.merge.arithmetic import BlockCombiner, Kernels, Task
from deltaweights.merge.blocks import Block, base_part, blocks_of
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import PlannedTensor
from deltaweights.merge.stream import read_block
from deltaweights.util.text import natural_key

MOST_SAMPLED = 1024
"""Tensors that are sampled before a merge, evenly spaced: it must not take longer where there are very many."""


@dataclass(frozen=True)
class ProvedBlock:
    """The bytes of a block, of delta and base, valid until the next one is read, and what they say."""

    delta: memoryview
    base: memoryview
    proof: Proof


def bench_of(kernels: Kernels, compute: str, block: int) -> BlockCombiner:
    """Return what proves blocks of at most ``block`` elements in the dtype ``compute``."""
    return BlockCombiner(kernels, Task(Operation.APPLY, compute, compute, check=True), block)


def prove_block(block: Block, bench: BlockCombiner, inputs: Inputs) -> ProvedBlock:
    """Read a block and prove it; without a row of the base there is nothing to prove. Raises ``InputOutputError``."""
    match, base = block.tensor.match, inputs.base
    delta_data, base_data = read_block(block, bench, {} if base is None else base.tensors, inputs.primary.tensors)
    proof = None
    if block.runs and match.base is not None:
        count = block.stop - block.start
        proof = bench.combine(count, match.primary.dtype, match.base.dtype, block.runs).tally.proof
    return ProvedBlock(delta_data, base_data, proof or Proof())


def added(inputs: Inputs) -> list[PlannedTensor]:
    """Return the tensors that have a base, in an order that does not depend on the container."""
    matches = sorted(inputs.matching.matches, key=lambda match: natural_key(match.primary.name))
    return [PlannedTensor(match.primary, match, 0) for match in matches if match.base]


def share_of_blocks(inputs: Inputs, sample: float, size: int) -> Iterator[Block]:
    """Yield the share ``sample`` of the blocks that have rows of the base, evenly spaced, and at least one."""
    blocks = (block for block in blocks_of(added(inputs), size) if block.runs)
    return (block for number, block in enumerate(blocks) if ceil((number + 1) * sample) > ceil(number * sample))


def prove_samples(inputs: Inputs, kernels: Kernels) -> dict[str, Proof]:
    """Return the proof of each tensor's samples. They are those of the plan, so that they are read, or fetched, already."""
    bench = bench_of(kernels, inputs.compute, SAMPLES * SAMPLE)
    tensors = added(inputs)
    some = tensors[:: -(-len(tensors) // MOST_SAMPLED) or 1]
    return {
        tensor.spec.name: sum((prove_block(block, bench, inputs).proof for block in blocks), Proof())
        for tensor in some
        if (blocks := list(_sampled_blocks(tensor, inputs.primary.tensors[tensor.spec.name])))
    }


def _sampled_blocks(planned: PlannedTensor, delta: LazyTensor) -> Iterable[Block]:
    """Yield the samples of a delta's tensor, as far as they have rows of the base."""
    starts, length = sample_places(delta)
    item = planned.spec.item_size
    for start in starts:
        first, stop = start // item, (start + length) // item
        base_start, base_stop, runs = base_part(planned.match, first, stop)
        if runs and first < stop:
            place = base_start, base_stop, runs
            yield Block(planned, first, stop, 0, False, *place, last_of_tensor=False)
