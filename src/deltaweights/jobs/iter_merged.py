"""base + delta, tensor by tensor in memory: nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.errors import UsageError
from deltaweights.hub.ids import ModelLocation
from deltaweights.inference.torch_tensors import as_tensor
from deltaweights.jobs.apply import apply_request
from deltaweights.jobs.judgement import judge_records
from deltaweights.jobs.planned_result import planned_result
from deltaweights.jobs.prepare import Prepared, prepare
from deltaweights.jobs.request import Request
from deltaweights.jobs.stream import check_unread
from deltaweights.merge.arithmetic import BlockCombiner, Kernels
from deltaweights.merge.blocks import blocks_of
from deltaweights.merge.choices import TORCH_NAMES
from deltaweights.merge.device import kernels_on
from deltaweights.merge.new_rows import new_row_operands
from deltaweights.merge.plan import PlannedTensor
from deltaweights.merge.stream import combine_block, task_of
from deltaweights.merge.tensor_recorder import TensorRecorder
from deltaweights.report import Report
from deltaweights.util.extras import require

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from deltaweights.jobs.options import MergeOptions

NUMPY, TORCH = "numpy", "torch"
NUMPY_DTYPES = {"F16": "<f2", "F32": "<f4"}
TO_KEEP_BF16 = 'give framework="torch", or dtype="float32"'


def iter_merged(
    base: ModelLocation | None,
    delta: ModelLocation | None,
    *,
    framework: str = NUMPY,
    report: Report | None = None,
    **options: Unpack[MergeOptions],
) -> Iterator[tuple[str, Any]]:
    """Yield each tensor of ``base + delta`` as ``(name, tensor)``, in the order of ``apply_delta``'s shards; write nothing.

    Names, dtypes, shapes and bits are those of the weights that ``apply_delta`` would write with the same arguments. One tensor is
    in memory at a time, beside a few blocks; it belongs to the caller. ``framework`` is "numpy" (float16 and float32 arrays) or
    "torch" (tensors on the CPU, bfloat16 too). Other options are those of ``apply_delta`` that have a meaning without a target.

    A base that samples refute ends before the first tensor. The rest of the proof is complete only with the last one: what it
    refutes is raised after that, so do not use the tensors before the iteration has ended without an error. Closing the iterator
    closes all files.

    Raises what ``apply_delta`` raises; ``UsageError`` also for bfloat16 in numpy, which has no such dtype.

    >>> from deltaweights import iter_merged
    >>> norms = {name: float((array.astype("float32") ** 2).sum()) for name, array in iter_merged("base", "delta")}
    """
    if framework not in {NUMPY, TORCH}:
        raise UsageError("unknown framework", found=framework, expected=f"{NUMPY}, {TORCH}")
    if framework == TORCH:
        require("gpu", 'framework="torch"')
    # Checked now, not at the first tensor: a typo should not wait.
    request = apply_request(base, delta, Path("merged"), **options)
    return _iterate(request, framework, report or Report())


def _iterate(request: Request, framework: str, report: Report) -> Iterator[tuple[str, Any]]:
    with (
        TemporaryDirectory(prefix="deltaweights-") as folder,  # for members of archives that must be unpacked
        prepare(request.at(Path(folder) / "merged"), report) as prepared,
    ):
        for name, data, spec in merged_tensors(prepared, framework, report):
            yield name, _array(data, spec) if framework == NUMPY else as_tensor(data, spec)


def merged_tensors(prepared: Prepared, framework: str, report: Report) -> Iterator[tuple[str, bytearray, TensorSpec]]:
    """Yield name, bytes and spec of each tensor of a prepared merge; judge them all at the end."""
    plan = prepared.plan
    tensors = [tensor for shard in plan.shards for tensor in shard.tensors]
    for tensor in tensors if framework == NUMPY else ():
        if tensor.spec.dtype not in NUMPY_DTYPES:
            name = TORCH_NAMES.get(tensor.spec.dtype, tensor.spec.dtype)
            raise UsageError(f"numpy has no {name}", tensor=tensor.spec.name, remedy=TO_KEEP_BF16)
    check_unread(prepared)
    report.begin(plan.operation.doing, plan.nbytes)
    try:
        with kernels_on(prepared.request.options.device) as make_kernels:
            merge = _Merge(prepared, make_kernels(), tensors)
            done = 0
            for tensor in tensors:
                yield tensor.spec.name, merge.run(tensor), tensor.spec
                done += tensor.spec.nbytes
                report.progress(done)
    finally:
        report.end()
    for checkpoint in prepared.checkpoints.values():
        checkpoint.check_unchanged()
    records = {record.name: record for record in merge.recorder.records()}
    judge_records(planned_result(prepared), records, prepared.request.options, report)


class _Merge:
    """Combines whole tensors in memory, and records what was found in them."""

    def __init__(self, prepared: Prepared, kernels: Kernels, tensors: list[PlannedTensor]) -> None:
        plan, block = prepared.plan, prepared.request.resources.block
        self._base, self._primary, self._block = prepared.base_tensors, prepared.primary_tensors, block
        self._combiner = BlockCombiner(kernels, task_of(plan), block)
        self._new_rows = new_row_operands(tensors, self._base, plan.options.compute_dtype, block, lambda: kernels)
        self.recorder = TensorRecorder(self._base, self._primary)

    def run(self, tensor: PlannedTensor) -> bytearray:
        """Return the bytes of a merged tensor."""
        merged = bytearray(tensor.spec.nbytes)
        for block in blocks_of([tensor], self._block):
            sources, result = combine_block(block, self._combiner, self._base, self._primary, self._new_rows)
            begin = block.start * tensor.spec.item_size
            merged[begin : begin + len(result.data)] = result.data
            self.recorder.add(block, *sources, result)
        return merged


def _array(data: bytearray, spec: TensorSpec) -> Any:
    import numpy as np  # noqa: PLC0415

    return np.frombuffer(data, NUMPY_DTYPES[spec.dtype]).reshape(spec.shape)
