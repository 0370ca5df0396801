"""The plan: every output shard, its tensors, their places and fates, as pure data.

Enters: a matching, options, and what the headers of the inputs say. Leaves: a frozen ``Plan`` and its identity. Never: an open
file, or anything that depends on the machine, the path or the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.manifest.digest import json_digest
from deltaweights.merge.frame import Frame, frame_of
from deltaweights.merge.operation import VISION_TOWER, Operation
from deltaweights.merge.rules import Dropped, Match, Matching
from deltaweights.merge.shards import SAFETENSORS, shard_cuts, shard_name
from deltaweights.util.text import Json, LazyObject, natural_key

FORMAT, VERSION = "deltaweights-plan", 2

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""The dtypes that sums are made and stored in: torch's name, which people type, to safetensors' name, which files hold."""


ORIGINAL, TRANSFORMERS = "original", "transformers"
LAYOUTS = (ORIGINAL, TRANSFORMERS)
"""How tensors are named: as in the input, or as current transformers names them."""


@dataclass(frozen=True)
class Options:
    """What was asked for, as far as it changes the result. ``max_shard_size`` counts bytes of tensors.

    ``layout`` says how tensors are named, "original" or "transformers"; ``container`` is "safetensors" or "torch".
    """

    compute_dtype: str = "F16"
    dtype: str = "F16"
    max_shard_size: int = 5_000_000_000
    layout: str = ORIGINAL
    container: str = SAFETENSORS

    def document(self) -> dict[str, Json]:
        """Return the options as JSON; layout and container only where they are not what they were before there was a choice."""
        usual = {"layout": ORIGINAL, "container": SAFETENSORS}
        return {key: value for key, value in vars(self).items() if usual.get(key) != value}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the result: what it is made of, and where in its shard's file it begins."""

    spec: TensorSpec
    match: Match
    offset: int


@dataclass(frozen=True)
class Shard:
    """One output file: its name, what stands around its tensors, and its tensors in file order."""

    file: str
    frame: Frame = field(repr=False, compare=False)
    tensors: tuple[PlannedTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.frame.size

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)


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
    """One input checkpoint: its files, its tensors by name, and what of it has no part in the result.

    ``samples`` has a digest of samples of each tensor, in the same order. (Not by name: a table costs more than what is in it.)
    """

    container: str
    files: tuple[InputFileRecord, ...]
    tensors: tuple[TensorSpec, ...]
    samples: tuple[str, ...]
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
    primary: InputRecord
    operation: Operation = Operation.APPLY
    check: bool = False
    recipe: RecipeRecord | None = None
    tower: InputRecord | None = None

    @property
    def document(self) -> dict[str, Json]:
        """The plan as JSON, of ``LazyObject``; from inputs that are what it says, two with one document give the same bytes."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "options": self.options.document(),
            "shards": [{"file": shard.file, "tensors": _tensors_of(shard)} for shard in self.shards],
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
        """The inputs by what they are called, the base first, the model that sees last."""
        of_base, of_tower = (
            ({"base": self.base} if self.base else {}),
            ({VISION_TOWER: self.tower} if self.tower else {}),
        )
        return of_base | {self.operation.primary: self.primary} | of_tower

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


def _tensors_of(shard: Shard) -> LazyObject:
    def members() -> Iterator[tuple[str, Json]]:
        for tensor in shard.tensors:
            spec, fate = tensor.spec, tensor.match.fate.value
            yield spec.name, {"dtype": spec.dtype, "shape": list(spec.shape), "fate": fate, "offset": tensor.offset}

    return LazyObject(members)


def _input_document(record: InputRecord) -> dict[str, Json]:
    def tensors() -> Iterator[tuple[str, Json]]:
        for spec, sample in zip(record.tensors, record.samples, strict=True):
            yield spec.name, {"dtype": spec.dtype, "shape": list(spec.shape), "sample": sample}

    return {
        "container": record.container,
        "files": [vars(file) for file in record.files],
        "tensors": LazyObject(tensors),
        "dropped": {dropped.spec.name: dropped.reason for dropped in record.dropped},
    }


def make_plan(
    matching: Matching,
    options: Options,
    base: InputRecord | None,
    primary: InputRecord,
    companions: Iterable[Companion],
    operation: Operation = Operation.APPLY,
    *,
    check: bool = False,
    recipe: RecipeRecord | None = None,
    tower: InputRecord | None = None,
) -> Plan:
    """Put the matched tensors in order and into shards, and return the whole as a plan."""
    matches = sorted(matching.matches, key=lambda match: natural_key(match.name))
    results = [_result_of(match, options.dtype) for match in matches]
    cuts = shard_cuts([spec.nbytes for spec in results], options.max_shard_size)
    shards = []
    for number, (first, last) in enumerate(pairwise(cuts), start=1):
        file, specs = shard_name(number, len(cuts) - 1, options.container), results[first:last]
        frame = frame_of(specs, file, options.container)
        tensors = map(PlannedTensor, specs, matches[first:last], frame.offsets)
        shards.append(Shard(file, frame, tuple(tensors)))
    ordered = tuple(sorted(companions, key=lambda companion: companion.name))
    return Plan(options, tuple(shards), ordered, base, primary, operation, check, recipe, tower)


def _result_of(match: Match, dtype: str) -> TensorSpec:
    same = match.renamed is None and match.primary.dtype == dtype
    return match.primary if same else TensorSpec(match.name, dtype, match.primary.shape)


def fates(plan: Plan) -> dict[str, int]:
    """Return how many tensors have each fate, dropped ones last."""
    counts = dict.fromkeys((fate.value for fate in plan.operation.usual_fates), 0)
    counts |= Counter(tensor.match.fate.value for tensor in plan.tensors)
    return counts | {"dropped": sum(len(record.dropped) for record in plan.inputs.values())}
