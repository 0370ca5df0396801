"""The plan: every output shard, its tensors, their places and fates, as pure data.

Enters: a matching, options, and what the headers of the inputs say. Leaves: a frozen ``Plan`` and its identity. Never: an open
file, or anything that depends on the machine, the path or the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.manifest.digest import json_digest
from deltaweights.merge.operation import Operation
from deltaweights.merge.rules import Dropped, Match, Matching
from deltaweights.text import Json, compact_json, natural_key

FORMAT, VERSION = "deltaweights-plan", 2

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""The dtypes that sums are made and stored in: torch's name, which people type, to safetensors' name, which files hold."""


@dataclass(frozen=True)
class Options:
    """What was asked for, as far as it changes the result. ``max_shard_size`` counts bytes of tensors."""

    compute_dtype: str = "F16"
    dtype: str = "F16"
    max_shard_size: int = 5_000_000_000


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result: what it is made of, and where in its shard's file it begins."""

    spec: TensorSpec
    match: Match
    offset: int


@dataclass(frozen=True)
class Shard:
    """One output file: its name, its header's bytes (length prefix included), and its tensors in file order."""

    file: str
    header: bytes
    tensors: tuple[PlannedTensor, ...]

    @cached_property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.spec.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class InputFileRecord:
    """One weights file that was opened. ``header_digest`` covers all bytes that say where its tensors are.

    ``checks`` names what is checked of it while it is read.
    """

    name: str
    size: int
    header_digest: str
    checks: tuple[str, ...]


@dataclass(frozen=True)
class InputRecord:
    """One input checkpoint: its files, a digest of samples of each tensor, and what of it has no part in the result."""

    container: str
    files: tuple[InputFileRecord, ...]
    tensors: dict[str, TensorSpec]
    samples: dict[str, str]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Companion:
    """A file that is copied beside the weights, or made by us: its name in the target, size and sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class RecipeRecord:
    """By which recipe a delta is applied, and the digest of what it decides. ``adds_up`` says that it wants the result's sum."""

    name: str
    digest: str
    adds_up: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of the result.

    With ``check``, the base of what is added is proved, and a delta that is made is tried: the manifest says what was found.
    """

    options: Options
    shards: tuple[Shard, ...]
    companions: tuple[Companion, ...]
    base: InputRecord | None
    lead: InputRecord
    operation: Operation = Operation.APPLY
    check: bool = False
    recipe: RecipeRecord | None = None

    @cached_property
    def document(self) -> dict[str, Json]:
        """The plan as JSON; from inputs that are what it says, two plans with one document give the same bytes."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "options": vars(self.options),
            "shards": [{"file": shard.file, "tensors": _shard_document(shard)} for shard in self.shards],
            "companions": [vars(companion) for companion in self.companions],
            **{role: _input_document(record) for role, record in self.inputs.items()},
            "check": self.check,
            **({"recipe": {"name": self.recipe.name, "digest": self.recipe.digest}} if self.recipe else {}),
        }

    @cached_property
    def identity(self) -> str:
        """``plan1:`` and the digest of the document."""
        return json_digest("plan1", self.document)

    @property
    def inputs(self) -> dict[str, InputRecord]:
        """The inputs by what they are called, the base first."""
        return ({"base": self.base} if self.base else {}) | {self.operation.lead: self.lead}

    @property
    def adds_up(self) -> bool:
        """Whether the sum of the result's elements is wanted."""
        return self.recipe is not None and self.recipe.adds_up

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Elements of all tensors of the result."""
        return sum(tensor.spec.count for tensor in self.tensors)

    @property
    def tensors(self) -> list[PlannedTensor]:
        """All tensors of the result, in order."""
        return [tensor for shard in self.shards for tensor in shard.tensors]


def _shard_document(shard: Shard) -> dict[str, Json]:
    return {
        tensor.spec.name: {
            "dtype": tensor.spec.dtype,
            "shape": list(tensor.spec.shape),
            "fate": tensor.match.fate.value,
            "offset": tensor.offset,
        }
        for tensor in shard.tensors
    }


def _input_document(record: InputRecord) -> dict[str, Json]:
    return {
        "container": record.container,
        "files": [vars(file) for file in record.files],
        "tensors": {
            name: {"dtype": spec.dtype, "shape": list(spec.shape), "sample": record.samples[name]}
            for name, spec in sorted(record.tensors.items())
        },
        "dropped": {dropped.spec.name: dropped.reason for dropped in record.dropped},
    }


def make_plan(
    matching: Matching,
    options: Options,
    base: InputRecord | None,
    lead: InputRecord,
    companions: Iterable[Companion],
    operation: Operation = Operation.APPLY,
    *,
    check: bool = False,
    recipe: RecipeRecord | None = None,
) -> Plan:
    """Put the matched tensors in order and into shards, and return the whole as a plan."""
    matches = sorted(matching.matches, key=lambda match: natural_key(match.lead.name))
    results = [TensorSpec(match.lead.name, options.dtype, match.lead.shape) for match in matches]
    cuts = shard_cuts([spec.nbytes for spec in results], options.max_shard_size)
    shards = []
    for number, (first, last) in enumerate(pairwise(cuts), start=1):
        header = safetensors_header(results[first:last])
        shards.append(
            Shard(shard_name(number, len(cuts) - 1), header, _place(matches[first:last], results[first:last], header))
        )
    ordered = tuple(sorted(companions, key=lambda companion: companion.name))
    return Plan(options, tuple(shards), ordered, base, lead, operation, check, recipe)


def _place(matches: Sequence[Match], results: Sequence[TensorSpec], header: bytes) -> tuple[PlannedTensor, ...]:
    offset = len(header)
    placed = []
    for match, spec in zip(matches, results, strict=True):
        placed.append(PlannedTensor(spec, match, offset))
        offset += spec.nbytes
    return tuple(placed)


def shard_name(number: int, total: int) -> str:
    """Return the Hugging Face name of shard ``number`` (from 1) of ``total``."""
    return "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"


def shard_cuts(sizes: Sequence[int], limit: int) -> list[int]:
    """Cut a row of tensors into shards of even size; return the cuts, from 0 to ``len(sizes)``.

    First fit under ``limit`` says how many shards are needed; the smallest limit that needs no more makes them even. A
    tensor larger than the limit stands alone. Sizes and limit are in bytes.
    """
    fewest = len(_first_fit(sizes, limit))
    low, high = 0, limit
    while low < high:
        middle = (low + high) // 2
        if len(_first_fit(sizes, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return [0, *_first_fit(sizes, low)]


def _first_fit(sizes: Sequence[int], limit: int) -> list[int]:
    """Return the index after the last tensor of each shard, starting a new shard when the next tensor would pass ``limit``."""
    ends: list[int] = []
    filled = 0
    for index, size in enumerate(sizes):
        if index and filled + size > limit:
            ends.append(index)
            filled = 0
        filled += size
    return [*ends, len(sizes)]


def safetensors_header(specs: Iterable[TensorSpec]) -> bytes:
    """Return the header of a safetensors file that holds ``specs`` one after the other: length prefix, JSON, padding to 8 bytes.

    ``__metadata__`` is exactly ``{"format":"pt"}``: the library keeps it in a hash map, so more keys would have no fixed order.
    """
    header: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec.nbytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = compact_json(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def fates(plan: Plan) -> dict[str, int]:
    """Return how many tensors have each fate, dropped ones last."""
    counts = dict.fromkeys((fate.value for fate in plan.operation.usual_fates), 0)
    counts |= Counter(tensor.match.fate.value for tensor in plan.tensors)
    return counts | {"dropped": sum(len(record.dropped) for record in plan.inputs.values())}
