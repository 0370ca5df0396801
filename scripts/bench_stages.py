"""Tells where the processor time of a merge goes: one worker, the real command, each stage timed around the function that does it.

Enters: a pair. Leaves: milliseconds of processor time per GB of output, by stage. Never: a stage that is not part of the merge:
what no stage accounts for is the interpreter's and is shown as such.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial, wraps
from multiprocessing import get_context
from pathlib import Path
from typing import Any

STAGES = (
    "read",
    "add and prove",
    "look for NaN and infinity",
    "BLAKE3 of the result",
    "BLAKE3 of the inputs",
    "look for one number",
    "SHA-256",
    "write",
    "start writing back",
    "flush",
)
NUMPY_AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
REST = "interpreter, and the rest"


class Clock:
    """Processor time by stage. A stage within another one is counted once, as itself. For one thread that works."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` such that its calls count as ``stage``."""

        @wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            before, self._inner = self._inner, 0.0
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                took = time.thread_time() - began
                self.seconds[stage] += took - self._inner
                self._inner = before + took

        return wrapper

    def time_methods(self, owner: Any, stage: str, *names: str) -> None:
        """Count the calls of these functions of ``owner`` as ``stage``."""
        for name in names:
            setattr(owner, name, self.timed(stage, getattr(owner, name)))


class TimedHasher:
    """A hasher whose updates count as a stage."""

    def __init__(self, hasher: Any, stage: str, clock: Clock) -> None:
        self.update = clock.timed(stage, hasher.update)
        self.hexdigest = clock.timed(stage, hasher.hexdigest)


def install(clock: Clock) -> None:
    """Put ``clock`` around what the stream calls."""
    from deltaweights.checkpoint import tensors  # noqa: PLC0415  (in the measured process alone)
    from deltaweights.manifest import digest  # noqa: PLC0415
    from deltaweights.merge import kernels_cpu, stream, tensor_recorder, writer  # noqa: PLC0415

    clock.time_methods(tensors.ContiguousSource, "read", "read_into")
    clock.time_methods(kernels_cpu.CpuKernels, "look for NaN and infinity", "all_finite")
    clock.time_methods(kernels_cpu.CpuKernels, "add and prove", "add", "prove_base", "add_proved")
    clock.time_methods(tensor_recorder.UniformCheck, "look for one number", "add")
    clock.time_methods(writer.ShardWriter, "write", "write")
    clock.time_methods(writer.ShardWriter, "start writing back", "start_writeback")
    clock.time_methods(writer, "flush", "flush")
    hasher = digest.tensor_hasher
    vars(tensor_recorder)["tensor_hasher"] = lambda: TimedHasher(hasher(), "BLAKE3 of the result", clock)
    vars(digest)["tensor_hasher"] = lambda: TimedHasher(hasher(), "BLAKE3 of the inputs", clock)
    clock.time_methods(stream.Stream, REST, "_stream_blocks")
    sha256 = hashlib.sha256
    vars(writer)["hashlib"] = type("hashlib", (), {"sha256": lambda: TimedHasher(sha256(), "SHA-256", clock)})


def measure(base: Path, delta: Path, target: Path, *, hides: str) -> dict[str, float]:
    """Return seconds of processor time by stage of one merge, in this process."""
    from deltaweights import apply_delta  # noqa: PLC0415  (in the measured process alone)

    if hides == "avx512":
        hide_avx512()
    if hides == "library":
        from deltaweights.merge import compiled  # noqa: PLC0415  (see above)

        compiled.LIBRARY = Path("nowhere")
    clock = Clock()
    install(clock)
    apply_delta(base, delta, target, workers=1)
    return dict(clock.seconds)


def hide_avx512() -> None:
    """Have numkong compute as on a processor without AVX-512. BLAKE3 cannot be told; numpy reads its variable as it starts."""
    import numkong  # noqa: PLC0415  (in the measured process alone)

    for name in ("skylake", "icelake", "genoa", "turin", "sapphire", "sapphireamx"):
        if numkong.get_capabilities().get(name):
            numkong.disable_capability(name)


def stages(base: Path, delta: Path, target: Path, count: int, *, hides: str) -> dict[str, float]:
    """Return milliseconds of processor time per GB of output by stage: medians of ``count`` merges, after one for warming up."""
    size = sum(path.stat().st_size for path in delta.iterdir())
    do = partial(measure, base, delta, target, hides=hides)
    if hides == "avx512":  # inherited by the measured process, in which numpy is yet to start
        os.environ["NPY_DISABLE_CPU_FEATURES"] = NUMPY_AVX512
    runs = []
    for number in range(count + 1):
        shutil.rmtree(target, ignore_errors=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found = process.submit(do).result()
        if number:
            runs.append(found)
    shutil.rmtree(target, ignore_errors=True)
    return {stage: statistics.median(run.get(stage, 0.0) for run in runs) / size * 1e12 for stage in (*STAGES, REST)}


def stage_table(milliseconds: Mapping[str, float]) -> Iterator[str]:
    """Yield the lines of a table."""
    total = sum(milliseconds.values())
    yield "one worker: milliseconds of processor time per GB of output, medians"
    yield f"{'':28} {'ms per GB':>9}  {'share':>5}"
    for stage, value in milliseconds.items():
        yield f"{stage:28} {value:9.0f}  {value / total:5.0%}"
    yield f"{'all':28} {total:9.0f}"
