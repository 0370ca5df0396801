"""How large the documents of a result will be at most, known from its plan: what could not be read back is not begun.

Enters: a plan. Leaves: nothing, or ``MalformedInput``. Never: a bound that a document can pass, whatever is found in the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.errors import MalformedInput
from deltaweights.manifest.records import index_bytes
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import InputRecord, Plan, PlannedTensor, Shard
from deltaweights.merge.shards import SAFETENSORS, index_name
from deltaweights.util.limits import FRAGMENT, HEADER, INDEX, MANIFEST, MOST_TENSORS, Limit
from deltaweights.util.text import MOST_FOREIGN, compact_json, counted, refuse_excess

DIGEST = len("blake3:") + 64

RESULT_ROW = len('      : {"dtype": "BF16", "shape": , "fate": "add_zero_rows", "file": "", "digest": ""},\n') + DIGEST
INPUT_ROW = len('        : {"dtype": "BF16", "shape": , "digest": ""},\n') + DIGEST
SOURCE = len('"source": , ')
COUNT_ROW = len("        : ,\n")
UNIFORM_ROW = len('      : ["result", "base", "lead"],\n')
FILE_ROW = (
    len('      : {"size": , "header_digest": "", "sha256": "", "checks": ["header", "crc32", "sha256"]},\n')
    + 2 * DIGEST
    + 20
)
FRAGMENT_ROW = 3 * DIGEST + 900
"""Of a tensor's record in a fragment, when it has every field, each on a line of its own."""

REST, SIGNS = 64 * 1024, 1024
"""Bytes of a manifest, and signs of each kind in it, besides tensors and files."""


@lru_cache(maxsize=16)  # a name stands in one row after the other
def _cost(name: str) -> tuple[int, int, int, int]:
    """Return the bytes, braces, brackets and commas of a name as JSON has it."""
    text = compact_json(name)
    nbytes = len(text) if text.isascii() else len(text.encode())
    return nbytes, text.count("{"), text.count("["), text.count(",")


class Size:
    """What a document holds at most, in the terms of a ``Limit``: ``nbytes`` and ``signs`` of each kind to begin with."""

    def __init__(self, nbytes: int, signs: int) -> None:
        self.bytes = nbytes
        self.objects = self.lists = self.commas = signs

    def add(self, name: str, nbytes: int, *, commas: int, objects: int = 0, lists: int = 0, times: int = 1) -> None:
        """Add a row, so many ``times``: ``name``, and ``nbytes`` and signs besides."""
        of_name, braces, brackets, more = _cost(name)
        self.bytes += times * (of_name + nbytes)
        self.objects += times * (braces + objects)
        self.lists += times * (brackets + lists)
        self.commas += times * (more + commas)

    def passes(self, limit: Limit) -> bool:
        """Tell whether there may be more than ``limit`` allows."""
        within = self.bytes <= limit.size and self.objects <= limit.objects and self.lists <= limit.lists
        return not within or self.commas > limit.commas


def refuse_unreadable(plan: Plan, where: str) -> None:
    """Raise ``MalformedInput`` when a document about the result would hold more than its reader takes; ``where`` is the primary."""
    tensors = plan.tensors
    if len(tensors) > MOST_TENSORS:
        expected, remedy = f"at most {MOST_TENSORS:,}", "no reader of checkpoints takes as many"
        raise MalformedInput(
            "too many tensors", where=where, found=f"{len(tensors):,}", expected=expected, remedy=remedy
        )
    if _manifest(plan).passes(MANIFEST):
        raise _refusal("manifest.json", tensors, where, MANIFEST)
    for shard in plan.shards:
        if _fragment(shard).passes(FRAGMENT):
            raise _refusal(f"the record of {shard.file}", shard.tensors, where, FRAGMENT)
        if plan.options.container == SAFETENSORS and not _header_is_read(shard):
            raise _refusal(f"the header of {shard.file}", shard.tensors, where, HEADER)
    if len(plan.shards) > 1:
        try:
            weight_map = {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors}
            refuse_excess(index_bytes(weight_map, plan.nbytes, plan.parameters), INDEX)
        except ValueError:
            raise _refusal(index_name(plan.options.container), tensors, where, INDEX) from None


def _refusal(what: str, tensors: Sequence[PlannedTensor], where: str, limit: Limit) -> MalformedInput:
    lengths = [len(tensor.spec.name) for tensor in tensors]
    mean = sum(lengths) // len(lengths)
    found = f"{counted(len(lengths), 'tensor')} with names of {mean:,} characters on average"
    expected = f"what fits in {limit.size:,} bytes and {limit.commas:,} commas"
    problem, remedy = f"{what} of the result could not be read back", "shorten the names of the tensors"
    return MalformedInput(problem, where=where, found=found, expected=expected, remedy=remedy)


def _manifest(plan: Plan) -> Size:
    size = Size(REST, SIGNS)
    files = [shard.file for shard in plan.shards] + [companion.name for companion in plan.companions]
    records = list(plan.inputs.values())
    for file in [*files, *(file.name for record in records for file in record.files)]:
        size.add(file, FILE_ROW, commas=7, objects=1, lists=1)
    for shard in plan.shards:
        for tensor in shard.tensors:
            _add_tensor(size, tensor, shard.file, plan)
    for record in records:
        _add_dropped(size, record)
    return size


def _add_tensor(size: Size, tensor: PlannedTensor, file: str, plan: Plan) -> None:
    spec, match = tensor.spec, tensor.match
    axes, shape = len(spec.shape), _length(spec)
    size.add(spec.name, RESULT_ROW + shape + len(file), commas=axes + 5, objects=1, lists=1)
    if match.renamed is not None:
        size.add(match.primary.name, SOURCE, commas=1)
    for read in (match.primary, match.base):
        if read is not None:
            size.add(read.name, INPUT_ROW + _length(read), commas=len(read.shape) + 2, objects=1, lists=1)
    # What may be found: NaNs in the result, the primary and the base, an overflow; and what trying a delta or the base gives.
    has_base, is_matrix = match.base is not None, axes > 1
    counts = 2 + 2 * has_base + (plan.check and (has_base or plan.operation is Operation.MAKE))
    size.add(spec.name, COUNT_ROW + len(str(spec.count)), commas=1, times=counts)
    if plan.check and has_base:
        size.add(spec.name, COUNT_ROW, commas=1)  # untested
    if is_matrix:
        size.add(spec.name, UNIFORM_ROW, commas=3, lists=1)


def _add_dropped(size: Size, record: InputRecord) -> None:
    for dropped in record.dropped:
        spec = dropped.spec
        size.add(spec.name, INPUT_ROW + _length(spec), commas=len(spec.shape) + 2, objects=1, lists=1)
        size.add(dropped.reason, 0, commas=0)


def _fragment(shard: Shard) -> Size:
    size = Size(REST, SIGNS)
    for tensor in shard.tensors:
        size.add(tensor.spec.name, FRAGMENT_ROW, commas=18, objects=1, lists=2)
    return size


def _header_is_read(shard: Shard) -> bool:
    """Tell whether our reader takes the header of a safetensors file, whose length the place of the first tensor tells."""
    size = Size(0, 0)
    for tensor in shard.tensors:
        size.add(tensor.spec.name, 0, commas=max(len(tensor.spec.shape), 1) + 3, objects=1, lists=2)
    size.objects += 2  # the header's own, and that of its metadata
    size.bytes = shard.tensors[0].offset - 8  # behind the length
    foreign = size.bytes > MOST_FOREIGN and not all(tensor.spec.name.isascii() for tensor in shard.tensors)
    return not foreign and not size.passes(HEADER)


def _length(spec: TensorSpec) -> int:
    return len(str(list(spec.shape)))
