"""Compare two checkpoints, whatever container, sharding and order they are stored in."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.naming import Naming
from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.checkpoint.zipped_folder.unpack import TemporaryUnpacker
from deltaweights.diff.distance import NUMPY, Figures, add_up, comparable
from deltaweights.diff.tensor_pairs import TensorPair, compare_pairs
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.hub.ids import ModelLocation
from deltaweights.hub.locate import HubOptions, located
from deltaweights.manifest.input_manifest import lists_same_tensors, manifest_of
from deltaweights.manifest.records import MANIFEST
from deltaweights.merge.rules import is_buffer
from deltaweights.report import Report
from deltaweights.util.text import natural_key, short_repr
from deltaweights.util.workers import resolve_workers


@dataclass(frozen=True, kw_only=True)
class DifferingTensor:
    """A tensor of the same shape in both whose dtype or bits differ; ``dtypes`` are those of A and B.

    ``elements`` counts those that differ: in any bit, or, if the dtypes differ, in value. ``bits`` counts the bits that differ;
    None if the dtypes differ. ``nonfinite`` counts the differing elements of which at least one is NaN or infinite. All others make
    ``max_abs``, the largest difference, and ``relative_norm``, the 2-norm of the differences divided by that of the finite elements
    of A: 0 if none of them differs in value, None if the norm of A is 0.

    A figure is also None if it has no meaning or does not fit float64: for dtypes without arithmetic (float8, bool, complex),
    64-bit integers against another dtype, squares beyond 1e308. All are None if manifests were trusted.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    elements: int | None = None
    bits: int | None = None
    max_abs: float | None = None
    relative_norm: float | None = None
    nonfinite: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReshapedTensor:
    """A tensor whose shapes in A and B differ."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the weights, or the buffers, of two checkpoints compare, in natural order; ``identical`` is a count."""

    identical: int
    differing: tuple[DifferingTensor, ...]
    other_shape: tuple[ReshapedTensor, ...]
    only_in_a: tuple[TensorSpec, ...]
    only_in_b: tuple[TensorSpec, ...]

    @property
    def different(self) -> int:
        """How many tensors differ or are in one checkpoint only."""
        return len(self.differing) + len(self.other_shape) + len(self.only_in_a) + len(self.only_in_b)


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """How two checkpoints compare. ``bytes`` counts those of A's weights; ``weights_read`` is False if manifests were trusted.

    ``identical`` is about ``tensors`` only: ``buffers`` (rotary ``inv_freq``) are compared, too, but current loaders recompute
    them, and not all writers save them. ``same_kind`` is False if no tensor has the same name and shape in both.

    Where A and B are named differently, by a wrapper or by transformers, tensors have their names in the model, and ``naming`` says
    how they are named in A and in B; None where they have those on disk.
    """

    a: str
    b: str
    identical: bool
    same_kind: bool
    weights_read: bool
    bytes: int
    tensors: Comparison
    buffers: Comparison
    naming: tuple[Naming, Naming] | None = None

    def __repr__(self) -> str:
        return short_repr(self, a=self.a, b=self.b, identical=self.identical, weights_read=self.weights_read)


def diff_checkpoints(
    a: ModelLocation,
    b: ModelLocation,
    *,
    workers: int | None = None,
    trust_manifests: bool = False,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> DiffReport:
    """Compare the checkpoints at ``a`` and ``b`` tensor by tensor; each is a folder, an index, or one weights file.

    With ``trust_manifests``, the digests in the two ``manifest.json`` are compared instead of weights; if either has none that
    describes its weights, the weights are read. Raises ``InputOutputError`` when something cannot be read or changes meanwhile,
    ``MalformedInput`` when a file breaks its format or does not match a checksum that it records, ``UsageError`` when ``workers``
    is less than 1.

    >>> from deltaweights import diff_checkpoints
    >>> diff_checkpoints("base", "base").identical
    True
    """
    count, report = resolve_workers(workers), report or Report()
    with (
        TemporaryUnpacker() as scratch,
        located([("first checkpoint", a), ("second checkpoint", b)], hub, report) as (one_at, other_at),
        open_checkpoint(one_at, "first checkpoint", scratch, report) as one,
        open_checkpoint(other_at, "second checkpoint", scratch, report) as other,
    ):
        for note in (*one.notes, *other.notes):
            report.note(note)
        naming = _naming_of(one, other)
        a_tensors, b_tensors = (each.tensors if naming is None else each.model_tensors for each in (one, other))
        pairs = {
            name: TensorPair(tensor, b_tensors[name])
            for name, tensor in a_tensors.items()
            if name in b_tensors and tensor.spec.shape == b_tensors[name].spec.shape
        }
        digests = _digests_of_both(one, other, report) if trust_manifests else None
        if digests is None:
            loose = [tensor for file in (*one.files, *other.files) for tensor in file.extra_checksums]
            differing = _read_and_compare(pairs, loose, count, report)
        else:
            report.note("no weights were read: the digests in the manifests are compared")
            differing = _compare_digests(pairs, digests)
        for checkpoint in (one, other):
            checkpoint.check_unchanged()
        tensors, buffers = (_sort(a_tensors, b_tensors, differing, pairs, buffers=wanted) for wanted in (False, True))
        return DiffReport(
            a=str(one.path),
            b=str(other.path),
            identical=tensors.different == 0,
            same_kind=tensors.different == 0 or tensors.identical + len(tensors.differing) > 0,
            weights_read=digests is None,
            bytes=sum(t.spec.nbytes for name, t in one.tensors.items() if not is_buffer(name)),
            tensors=tensors,
            buffers=buffers,
            naming=naming,
        )


def _read_and_compare(
    pairs: Mapping[str, TensorPair], loose: list[LazyTensor], workers: int, report: Report
) -> dict[str, DifferingTensor]:
    """Return the pairs that differ, by the bytes; ``loose`` are read only for the checksums that files record of them."""
    compare_pairs(list(pairs.values()), loose, workers, report)
    return {name: _figures_of(name, pair) for name, pair in pairs.items() if pair.parts or not pair.same_dtype}


def _compare_digests(
    pairs: Mapping[str, TensorPair], digests: tuple[Mapping[str, str], Mapping[str, str]]
) -> dict[str, DifferingTensor]:
    """Return the pairs that differ, by what the two manifests state of them."""
    of_a, of_b = digests
    return {
        name: DifferingTensor(name=name, shape=pair.one.spec.shape, dtypes=pair.dtypes)
        for name, pair in pairs.items()
        if not pair.same_dtype or of_a[pair.one.spec.name] != of_b[pair.other.spec.name]
    }


def _naming_of(one: Checkpoint, other: Checkpoint) -> tuple[Naming, Naming] | None:
    """Return how the names on disk lead to those in the model; None where they are as good, and those that the user sees."""
    alike = one.naming == other.naming and (not one.naming.layout or one.tensors.keys() == other.tensors.keys())
    return None if alike else (one.naming, other.naming)


def _digests_of_both(
    one: Checkpoint, other: Checkpoint, report: Report
) -> tuple[Mapping[str, str], Mapping[str, str]] | None:
    """Return the tensor digests that both manifests state; None where one of them cannot be trusted."""
    try:
        return _stated_digests(one), _stated_digests(other)
    except (InputOutputError, MalformedInput) as error:
        report.note(f"the weights are read, since there are not two manifests to trust: {error}")
        return None


def _sort(
    one: Mapping[str, LazyTensor],
    other: Mapping[str, LazyTensor],
    differing: dict[str, DifferingTensor],
    pairs: Container[str],
    *,
    buffers: bool,
) -> Comparison:
    names = sorted(one.keys() | other.keys(), key=natural_key)
    names = [name for name in names if is_buffer(name) == buffers]
    a, b = ({name: _named(name, tensor.spec) for name, tensor in tensors.items()} for tensors in (one, other))
    return Comparison(
        identical=len([name for name in names if name in pairs and name not in differing]),
        differing=tuple(differing[name] for name in names if name in differing),
        other_shape=tuple(
            ReshapedTensor(name=name, shapes=(a[name].shape, b[name].shape), dtypes=(a[name].dtype, b[name].dtype))
            for name in names
            if name in a and name in b and name not in pairs
        ),
        only_in_a=tuple(a[name] for name in names if name not in b),
        only_in_b=tuple(b[name] for name in names if name not in a),
    )


def _named(name: str, spec: TensorSpec) -> TensorSpec:
    return spec if spec.name == name else replace(spec, name=name)


def _figures_of(name: str, pair: TensorPair) -> DifferingTensor:
    spec, dtypes = pair.one.spec, pair.dtypes
    if not comparable(*dtypes):
        return DifferingTensor(name=name, shape=spec.shape, dtypes=dtypes)
    total, has_numbers = add_up(list(pair.parts.values())), dtypes[0] in NUMPY
    return DifferingTensor(
        name=name,
        shape=spec.shape,
        dtypes=dtypes,
        elements=total.elements,
        bits=total.bits if pair.same_dtype else None,
        max_abs=_finite(total.max_abs) if has_numbers else None,
        relative_norm=_relative_norm(total) if has_numbers else None,
        nonfinite=total.nonfinite if has_numbers else None,
    )


def _relative_norm(total: Figures) -> float | None:
    if not total.squares:
        return 0.0
    return _finite(math.sqrt(total.squares) / math.sqrt(total.norm)) if 0 < total.norm < math.inf else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _stated_digests(checkpoint: Checkpoint) -> dict[str, str]:
    manifest = manifest_of(checkpoint)
    if not lists_same_tensors(manifest, checkpoint):
        where = checkpoint.directory.path / MANIFEST
        raise MalformedInput("the manifest lists other tensors than the checkpoint has", where=where)
    return {name: digest for name, (_dtype, _shape, digest) in manifest.tensors.items()}
