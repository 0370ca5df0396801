"""Says how fast a merge would be on other numbers of cores, by simulating its workers with the stage costs measured here.

Enters: processor time per GB by stage (``bench_stages``). Leaves: GB per second. Never: a measurement, or the bandwidth of memory,
which many cores share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle

from bench_stages import REST

from deltaweights.merge.stream import BLOCK, WORKERS_PER_SHARD

IN_ORDER = ("BLAKE3 of the base", "BLAKE3 of the delta", "BLAKE3 of the result", "SHA-256")
"""What takes the blocks of a shard one after the other, each stage on its own (``merge.open_shard``)."""

MODEL = 13.5
"""GB of LLaMA-7B in float16."""


def simulate(costs: Mapping[str, float], workers: int, shards: int, size: float) -> float:
    """Return the seconds of a merge of ``size`` GB in equal shards; ``costs`` are seconds per GB.

    A worker takes the next block as soon as it is free. Its steps in the interpreter exclude each other in all workers, and a stage
    of ``IN_ORDER`` waits for the block before it.
    """
    block = 2 * BLOCK / 1e9
    interpreter = costs[REST] * block
    together = sum(cost for stage, cost in costs.items() if stage not in {*IN_ORDER, REST}) * block
    lock, free = 0.0, [0.0] * workers
    lanes = [dict.fromkeys(IN_ORDER, 0.0) for _ in range(shards)]
    left = [round(size / shards / block)] * shards
    opened = list(range(min(shards, max(1, workers // WORKERS_PER_SHARD))))
    turns = cycle(range(len(opened)))
    while any(left):
        place = next(turns)
        if not left[opened[place]]:  # its shard is finished: the next one is opened
            waiting = [shard for shard in range(shards) if left[shard] and shard not in opened]
            if not waiting:
                continue
            opened[place] = waiting[0]
        shard = opened[place]
        left[shard] -= 1
        worker = free.index(min(free))
        now = lock = max(free[worker], lock) + interpreter
        now += together
        for stage in IN_ORDER:
            now = lanes[shard][stage] = max(now, lanes[shard][stage]) + costs[stage] * block
        free[worker] = now
    return max(free)


def cores(milliseconds: Mapping[str, float]) -> Iterator[str]:
    """Yield the lines of a table, given the milliseconds per GB of ``bench_stages``."""
    costs = {stage: value / 1000 for stage, value in milliseconds.items()}
    inputs = costs.pop("BLAKE3 of the inputs")
    costs |= {"BLAKE3 of the base": inputs / 2, "BLAKE3 of the delta": inputs / 2}
    yield f"simulated with these costs, {MODEL} GB: GB of output per second, which is what the disk has to take"
    yield f"{'workers':>8} {'3 shards':>10} {'14 shards':>10}"
    for workers in (1, 2, 4, 8, 16):
        rates = (MODEL / simulate(costs, workers, shards, MODEL) for shards in (3, 14))
        yield f"{workers:8} " + " ".join(f"{rate:10.2f}" for rate in rates)
