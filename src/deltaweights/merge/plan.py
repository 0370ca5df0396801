"""The plan, as pure data: every output shard, its tensors, offsets and fates. It depends on no machine, path or time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from deltaweights.checkpoint.naming import PLAIN, Naming
from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.manifest.digest import json_digest
from deltaweights.merge.choices import ORIGINAL, SAFETENSORS, TORCH_NAMES
from deltaweights.merge.frame import Frame, frame_of
from deltaweights.merge.operation import Operation
from deltaweights.merge.rules import Dropped, Match, Matching
from deltaweights.merge.shards import shard_cuts, shard_name
from deltaweights.util.text import Json, LazyObject, natural_key

FORMAT, VERSION = "deltaweights-plan", 2


@dataclass(frozen=True)
class PlanOptions:
    """The options that change the result; ``layout`` is one of ``LAYOUTS``, ``max_shard_size`` counts bytes of tensors."""

    compute_dtype: str = "F16"
    dtype: str = "F16"
    max_shard_size: int = 5_000_000_000
    layout: str = ORIGINAL
    container: str = SAFETENSORS

    def document(self) -> dict[str, Json]:
        """Return the options as JSON, without a default layout or container: older plans have no such keys."""
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
    """One output file, with its tensors in file order."""

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
    """A weights file; ``header_digest`` covers all bytes that locate its tensors, ``checks`` is what is checked in reading."""

    name: str
    size: int
    header_digest: str
    checks: tuple[str, ...]


@dataclass(frozen=True)
class InputRecord:
    """One input checkpoint: its files, its tensors by name, and those that the result does not use.

    ``samples`` has a digest of samples of each tensor, in the same order. (Not by name: a table costs more than what is in it.)
    ``naming`` says by which names base and primary are matched, if those on disk are not the model's.
    """

    container: str
    files: tuple[InputFileRecord, ...]
    tensors: tuple[TensorSpec, ...]
    samples: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    naming: Naming = PLAIN

    def document(self) -> dict[str, Json]:
        """Return the record as JSON, of lazy objects."""

        def tensors() -> Iterator[tuple[str, Json]]:
            for spec, sample in zip(self.tensors, self.samples, strict=True):
                yield spec.name, {**spec_document(spec), "sample": sample}

        return {
            "container": self.container,
            **self.naming.document,
            "files": [vars(file) for file in self.files],
            "tensors": LazyObject(tensors),
            "dropped": {dropped.spec.name: dropped.reason for dropped in self.dropped},
        }


@dataclass(frozen=True)
class Companion:
    """A file beside the weights, copied or generated: its name in the target, size and sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class RecipeRecord:
    """The recipe of a delta, and the digest of what it decides. ``wants_sum``: it needs the sum of the result's elements."""

    name: str
    digest: str
    wants_sum: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of the result.

    ``inputs`` are by role: the base first, if there is one, then the primary, then the vision tower, if one is needed. With
    ``check``, the base of what is added is proved, and a delta that is made is tried out, and the manifest has the findings.
    """

    options: PlanOptions
    shards: tuple[Shard, ...]
    companions: tuple[Companion, ...]
    inputs: Mapping[str, InputRecord]
    operation: Operation = Operation.APPLY
    check: bool = False
    recipe: RecipeRecord | None = None

    @property
    def document(self) -> dict[str, Json]:
        """The plan as JSON, of lazy objects. Two plans with equal documents give the same bytes from unchanged inputs."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "options": self.options.document(),
            "shards": [{"file": shard.file, "tensors": _tensors_of(shard)} for shard in self.shards],
            "companions": [vars(companion) for companion in self.companions],
            **{role: record.document() for role, record in self.inputs.items()},
            "check": self.check,
            **self.recipe_document,
        }

    @property
    def recipe_document(self) -> dict[str, Json]:
        """The recipe as JSON under its key; empty without one."""
        return {"recipe": {"name": self.recipe.name, "digest": self.recipe.digest}} if self.recipe else {}

    @cached_property
    def identity(self) -> str:
        """``plan1:`` and the digest of the document."""
        return json_digest("plan1", self.document)

    @property
    def wants_sum(self) -> bool:
        """Whether the sum of the result's elements is needed."""
        return self.recipe is not None and self.recipe.wants_sum

    @cached_property
    def restored_dtype(self) -> str:
        """The dtype in which ``apply`` stores the model of a delta that is made: the target's; with a recipe the compute dtype."""
        found = {tensor.match.primary.dtype for tensor in self.tensors}
        one = next(iter(found)) if len(found) == 1 and self.recipe is None else ""
        return one if one in TORCH_NAMES else self.options.compute_dtype

    @cached_property
    def rounded(self) -> frozenset[str]:
        """The tensors of a delta that is made whose target has another dtype than the compute dtype."""
        if self.operation is not Operation.MAKE:
            return frozenset()
        compute = self.options.compute_dtype
        return frozenset(t.spec.name for t in self.tensors if t.match.primary.dtype != compute)

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


def spec_document(spec: TensorSpec) -> dict[str, Json]:
    """Return dtype and shape of a tensor as JSON."""
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def _tensors_of(shard: Shard) -> LazyObject:
    def members() -> Iterator[tuple[str, Json]]:
        for tensor in shard.tensors:
            row = {**spec_document(tensor.spec), "fate": tensor.match.fate.value, "offset": tensor.offset}
            if tensor.match.base_name:
                row["base"] = tensor.match.base_name
            yield tensor.spec.name, row

    return LazyObject(members)


def make_plan(
    matching: Matching,
    options: PlanOptions,
    inputs: Mapping[str, InputRecord],
    companions: Iterable[Companion],
    operation: Operation = Operation.APPLY,
    *,
    check: bool = False,
    recipe: RecipeRecord | None = None,
) -> Plan:
    """Order the matched tensors, cut them into shards, and return the plan; for ``inputs`` see ``Plan``."""
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
    return Plan(options, tuple(shards), ordered, inputs, operation, check, recipe)


def _result_of(match: Match, dtype: str) -> TensorSpec:
    same = match.renamed is None and match.primary.dtype == dtype
    return match.primary if same else TensorSpec(match.name, dtype, match.primary.shape)


def fates(plan: Plan) -> dict[str, int]:
    """Return how many tensors have each fate, dropped ones last."""
    counts = dict.fromkeys((fate.value for fate in plan.operation.usual_fates), 0)
    counts |= Counter(tensor.match.fate.value for tensor in plan.tensors)
    return counts | {"dropped": sum(len(record.dropped) for record in plan.inputs.values())}
