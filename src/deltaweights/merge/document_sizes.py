"""Upper bounds for the documents of a result, from its plan: what could not be read back is refused before the run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.errors import MalformedInput
from deltaweights.manifest.records import index_bytes
from deltaweights.merge.base_proof import SIZEABLE
from deltaweights.merge.choices import SAFETENSORS
from deltaweights.merge.operation import Fate, Operation
from deltaweights.merge.plan import Plan, PlannedTensor, Shard
from deltaweights.merge.shards import index_name
from deltaweights.util.limits import FRAGMENT, HEADER, INDEX, MANIFEST, MOST_TENSORS, Limit
from deltaweights.util.text import MOST_FOREIGN, compact_json, counted, refuse_excess

DIGEST = len("blake3:") + 64

# Bytes of a row without the tensor's or file's name, and without its shape.
FATE = max(len(fate.value) for fate in Fate)
RESULT_ROW = len('      : {"dtype": "BF16", "shape": , "fate": "", "file": "", "digest": ""},\n') + FATE + DIGEST
INPUT_ROW = len('        : {"dtype": "BF16", "shape": , "digest": ""},\n') + DIGEST
SOURCE, BASE, NAMING = len('"source": , '), len('"base": , '), len('"prefix": , ')
COUNT_ROW = len("        : ,\n")
UNIFORM_ROW = len('      : ["result", "base", "lead"],\n')
FILE_CHECKS = ', "checks": ["header", "crc32", "sha256"]},\n'
FILE_ROW = len('      : {"size": , "header_digest": "", "sha256": ""' + FILE_CHECKS) + 2 * DIGEST + 20
FRAGMENT_ROW = 3 * DIGEST + 900  # a tensor's record in a fragment, when it has every field, each on its own line
MOST_ROWS = 14
"""Rows with a tensor's name: in the result, its source, its base, two inputs, six counts, untested, stored whole, and uniform."""
MOST_FIXED = RESULT_ROW + SOURCE + BASE + 2 * INPUT_ROW + 8 * (COUNT_ROW + 20) + UNIFORM_ROW
MOST_COMMAS = 5 + 1 + 1 + 2 * 2 + 8 + 3
PLAIN_NAMES = re.compile("[A-Za-z0-9_.]*")
REST, REST_SIGNS = 64 * 1024, 1024  # bytes of a manifest, and signs of each kind, besides tensors and files


@lru_cache(maxsize=16)  # one tensor has several rows, one after the other
def _cost(name: str) -> tuple[int, int, int, int]:
    """Return the bytes, braces, brackets and commas of a name as JSON."""
    text = compact_json(name)
    nbytes = len(text) if text.isascii() else len(text.encode())
    return nbytes, text.count("{"), text.count("["), text.count(",")


class DocumentSize:
    """An upper bound of a document's size, in the terms of a ``Limit``."""

    def __init__(self, nbytes: int, signs: int) -> None:
        """Begin with ``nbytes``, and so many ``signs``: objects, lists and commas each."""
        self.bytes = nbytes
        self.objects = self.lists = self.commas = signs

    def add(self, name: str, nbytes: int, *, commas: int, objects: int = 0, lists: int = 0) -> None:
        """Add a row: ``name``, and ``nbytes``, commas, objects and lists besides."""
        self.add_rows(name, 1, nbytes, commas=commas, objects=objects, lists=lists)

    def add_rows(self, name: str, rows: int, nbytes: int, *, commas: int, objects: int = 0, lists: int = 0) -> None:
        """Add rows that each have ``name``, and besides it ``nbytes``, commas, objects and lists all together."""
        name_bytes, braces, brackets, name_commas = _cost(name)
        self.bytes += rows * name_bytes + nbytes
        self.objects += rows * braces + objects
        self.lists += rows * brackets + lists
        self.commas += rows * name_commas + commas

    def exceeds(self, limit: Limit) -> bool:
        """Return whether the document may exceed ``limit``."""
        within = self.bytes <= limit.size and self.objects <= limit.objects and self.lists <= limit.lists
        return not within or self.commas > limit.commas


def refuse_unreadable(plan: Plan, where: str) -> None:
    """Raise ``MalformedInput`` if a document about the result may exceed what its reader accepts; ``where`` is the primary."""
    tensors = plan.tensors
    if len(tensors) > MOST_TENSORS:
        found, expected, remedy = len(tensors), f"at most {MOST_TENSORS:,}", "no reader of checkpoints takes as many"
        raise MalformedInput("too many tensors", where=where, found=f"{found:,}", expected=expected, remedy=remedy)
    rough = _rough(plan)
    if (rough is None or rough.manifest.exceeds(MANIFEST)) and _manifest(plan).exceeds(MANIFEST):
        raise _refusal("manifest.json", tensors, where, MANIFEST)
    for shard in plan.shards:
        if (rough is None or rough.fragment.exceeds(FRAGMENT)) and _fragment(shard).exceeds(FRAGMENT):
            raise _refusal(f"the record of {shard.file}", shard.tensors, where, FRAGMENT)
        fits = rough is not None and not rough.header(shard).exceeds(HEADER)
        if plan.options.container == SAFETENSORS and not fits and not _header_is_readable(shard):
            raise _refusal(f"the header of {shard.file}", shard.tensors, where, HEADER)
    if len(plan.shards) > 1:
        try:
            weight_map = {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors}
            refuse_excess(index_bytes(weight_map, plan.nbytes, plan.parameters), INDEX)
        except ValueError:
            raise _refusal(index_name(plan.options.container), tensors, where, INDEX) from None


@dataclass(frozen=True)
class _Rough:
    """Bounds above the bounds, without a look at each tensor; ``axes`` are the most that one has."""

    manifest: DocumentSize
    fragment: DocumentSize
    axes: int

    def header(self, shard: Shard) -> DocumentSize:
        """Return the size of a shard's header."""
        count = len(shard.tensors)
        size = DocumentSize(shard.tensors[0].offset - 8, 2)
        size.objects, size.lists, size.commas = count + 2, 2 * count, count * (max(self.axes, 1) + 3)
        return size


def _rough(plan: Plan) -> _Rough | None:
    """Return sizes that are too large rather than too small; None where names have signs that JSON or a limit counts.

    They settle it for all but the strangest plans, in a fraction of the time: there may be 100,000 tensors.
    """
    specs = [spec for tensor in plan.tensors for spec in (tensor.spec, tensor.match.primary, tensor.match.base) if spec]
    names = [spec.name for spec in specs]
    names += [name for tensor in plan.tensors if (name := tensor.match.base_name) is not None]
    if PLAIN_NAMES.fullmatch("".join(names)) is None:
        return None
    count, longest = len(plan.tensors), max(map(len, names)) + 2
    axes = max(len(spec.shape) for spec in specs)
    shape = max(_length(spec) for spec in specs)
    file = max(len(shard.file) for shard in plan.shards)
    manifest = _without_tensors(plan)
    manifest.bytes += count * (MOST_ROWS * longest + MOST_FIXED + 3 * shape + file)
    manifest.objects += 3 * count
    manifest.lists += 4 * count
    manifest.commas += count * (3 * axes + MOST_COMMAS)
    fragment = DocumentSize(REST + count * (longest + FRAGMENT_ROW), REST_SIGNS)
    fragment.objects, fragment.lists, fragment.commas = (
        REST_SIGNS + count,
        REST_SIGNS + 2 * count,
        REST_SIGNS + 19 * count,
    )
    return _Rough(manifest, fragment, axes)


def _refusal(what: str, tensors: Sequence[PlannedTensor], where: str, limit: Limit) -> MalformedInput:
    mean = sum(len(tensor.spec.name) for tensor in tensors) // len(tensors)
    found = f"{counted(len(tensors), 'tensor')} with names of {mean:,} characters on average"
    expected = f"what fits in {limit.size:,} bytes and {limit.commas:,} commas"
    problem, remedy = f"{what} of the result could not be read back", "shorten the names of the tensors"
    return MalformedInput(problem, where=where, found=found, expected=expected, remedy=remedy)


def _without_tensors(plan: Plan) -> DocumentSize:
    """Return the size of a manifest without the rows of the result's tensors, and of those that they are made of."""
    size = DocumentSize(REST, REST_SIGNS)
    inputs = plan.inputs.values()
    files = [shard.file for shard in plan.shards] + [companion.name for companion in plan.companions]
    for file in [*files, *(file.name for record in inputs for file in record.files)]:
        size.add(file, FILE_ROW, commas=7, objects=1, lists=1)
    for fact in (fact for record in inputs for fact in record.naming.document.values()):
        size.add(fact, NAMING, commas=1)
    for dropped in (dropped for record in inputs for dropped in record.dropped):
        spec = dropped.spec
        size.add(spec.name, INPUT_ROW + _length(spec), commas=len(spec.shape) + 2, objects=1, lists=1)
        size.add(dropped.reason, 0, commas=0)
    return size


def _manifest(plan: Plan) -> DocumentSize:
    size = _without_tensors(plan)
    for shard in plan.shards:
        for tensor in shard.tensors:
            _add_tensor(size, tensor, shard.file, plan)
    return size


def _add_tensor(size: DocumentSize, tensor: PlannedTensor, file: str, plan: Plan) -> None:
    """Add all rows of a tensor; those with its name at once, since there may be 100,000 tensors."""
    spec, match = tensor.spec, tensor.match
    axes, proved = len(spec.shape), plan.check and match.base is not None
    if match.renamed is not None:
        size.add(match.primary.name, SOURCE, commas=1)
    if match.base_name is not None:
        size.add(match.base_name, BASE, commas=1)
    for read in (match.primary, match.base):
        if read is not None:
            size.add(read.name, INPUT_ROW + _length(read), commas=len(read.shape) + 2, objects=1, lists=1)
    counts = 3 if match.base is None else 4  # not finite in the result, the primary or the base; an overflow
    counts += proved or (plan.check and plan.operation is Operation.MAKE)  # violations, or what does not come back
    counts += plan.check and spec.name in plan.rounded  # what is other than in the target
    names = 0
    if proved:
        names += 1  # untested
        names += match.base is not None and match.base.count >= SIZEABLE  # stored whole
    uniform = axes > 1
    rows = 1 + counts + names + uniform
    nbytes = RESULT_ROW + _length(spec) + len(file) + counts * (COUNT_ROW + len(str(spec.count))) + names * COUNT_ROW
    commas = axes + 5 + counts + names + 3 * uniform
    size.add_rows(spec.name, rows, nbytes + UNIFORM_ROW * uniform, commas=commas, objects=1, lists=1 + uniform)


def _fragment(shard: Shard) -> DocumentSize:
    size = DocumentSize(REST, REST_SIGNS)
    for tensor in shard.tensors:
        size.add(tensor.spec.name, FRAGMENT_ROW, commas=19, objects=1, lists=2)
    return size


def _header_is_readable(shard: Shard) -> bool:
    size = DocumentSize(0, 0)
    for tensor in shard.tensors:
        size.add(tensor.spec.name, 0, commas=max(len(tensor.spec.shape), 1) + 3, objects=1, lists=2)
    size.objects += 2  # the header's own, and that of its metadata
    size.bytes = shard.tensors[0].offset - 8  # exactly: the tensors follow the header, whose length takes 8 bytes
    foreign = size.bytes > MOST_FOREIGN and not all(tensor.spec.name.isascii() for tensor in shard.tensors)
    return not foreign and not size.exceeds(HEADER)


def _length(spec: TensorSpec) -> int:
    return len(str(list(spec.shape)))
