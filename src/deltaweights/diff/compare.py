"""Two checkpoints compared, whatever container, sharding and order they are stored in.

Enters: two paths. Leaves: a report of every tensor that is not the same in both, and how far it is apart. Never: trust in
a manifest unasked, or a verdict on bytes that changed while they were read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.checkpoint.zipped_folder.unpack import TemporaryUnpacker
from deltaweights.diff.distance import NUMPY, Figures, add_up, comparable
from deltaweights.diff.read_pairs import Pair, read_pairs
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.hub.ids import Given
from deltaweights.hub.locate import HubOptions, located
from deltaweights.manifest.beside import lists_exactly, manifest_beside
from deltaweights.manifest.manifest import MANIFEST
from deltaweights.merge.rules import is_buffer
from deltaweights.report import Report
from deltaweights.util.text import natural_key
from deltaweights.util.workers import workers_of


@dataclass(frozen=True, kw_only=True)
class DifferingTensor:
    """A tensor of one shape in both whose dtype, or any bit, is not the same; pairs are of the first and the second checkpoint.

    ``elements`` counts those that differ: in any bit, or, when dtypes differ, in value (0 when only the dtype is another).
    ``bits`` counts the bits that differ; None when dtypes do. ``nonfinite`` counts the differing elements of which at least one is
    NaN or infinite; all others make ``max_abs``, the largest difference, and ``relative_norm``, the 2-norm of the differences by
    that of the first tensor's finite elements: 0 when none of them differs in value, None when that norm is 0.

    A figure is also None where it has no meaning or float64 no room: for dtypes without arithmetic (float8, bool, complex), 64-bit
    integers against another dtype, squares beyond 1e308; and all are where manifests were trusted.
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
    """A tensor that has another shape in the second checkpoint than in the first."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the weights, or the buffers, of two checkpoints compare; in natural order. ``identical`` counts."""

    identical: int
    differing: tuple[DifferingTensor, ...]
    other_shape: tuple[ReshapedTensor, ...]
    only_in_a: tuple[TensorSpec, ...]
    only_in_b: tuple[TensorSpec, ...]

    @property
    def different(self) -> int:
        """How many tensors are not the same in both."""
        return len(self.differing) + len(self.other_shape) + len(self.only_in_a) + len(self.only_in_b)


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """How two checkpoints compare. ``bytes`` counts those of A's weights; ``weights_read`` is False where manifests were trusted.

    ``identical`` speaks of ``tensors`` alone: ``buffers`` (rotary ``inv_freq``) are compared, too, but current loaders recompute
    them, and writers of checkpoints keep or drop them as they like. ``same_kind`` is False when no tensor has the same name and
    shape in both.
    """

    a: str
    b: str
    identical: bool
    same_kind: bool
    weights_read: bool
    bytes: int
    tensors: Comparison
    buffers: Comparison


def diff_checkpoints(
    a: Given,
    b: Given,
    *,
    workers: int | None = None,
    trust_manifests: bool = False,
    hub: HubOptions | None = None,
    report: Report | None = None,
) -> DiffReport:
    """Compare the checkpoints at ``a`` and ``b`` tensor by tensor; each is a folder, an index, or one weights file.

    With ``trust_manifests``, digests that two ``manifest.json`` state are compared instead of weights; where one has none that
    describes its weights, they are read. Raises ``InputOutputError`` when something cannot be read or changes meanwhile,
    ``MalformedInput`` when a file breaks its format or its bytes are not those that it records a checksum of, ``UsageError`` when
    no worker may work.
    """
    count, report = workers_of(workers), report or Report()
    with (
        TemporaryUnpacker() as scratch,
        located([("first checkpoint", a), ("second checkpoint", b)], hub, report) as (one_at, other_at),
        open_checkpoint(one_at, "first checkpoint", scratch, report) as one,
        open_checkpoint(other_at, "second checkpoint", scratch, report) as other,
    ):
        for note in (*one.notes, *other.notes):
            report.note(note)
        digests = _stated_digests(one, other, report) if trust_manifests else None
        pairs = {
            name: Pair(tensor, other.tensors[name])
            for name, tensor in one.tensors.items()
            if name in other.tensors and tensor.spec.shape == other.tensors[name].spec.shape
        }
        if digests is None:
            loose = [
                tensor for checkpoint in (one, other) for file in checkpoint.files for tensor in file.extra_checksums
            ]
            read_pairs(list(pairs.values()), loose, count, report)
            differing = {
                name: _outcome(pair) for name, pair in pairs.items() if pair.parts or pair.dtypes[0] != pair.dtypes[1]
            }
        else:
            report.note("no weights were read: their digests are compared as the manifests state them")
            differing = {
                name: DifferingTensor(name=name, shape=pair.one.spec.shape, dtypes=pair.dtypes)
                for name, pair in pairs.items()
                if pair.dtypes[0] != pair.dtypes[1] or digests[0][name] != digests[1][name]
            }
        for checkpoint in (one, other):
            checkpoint.check_unchanged()
        tensors, buffers = (_sort(one, other, differing, pairs, buffers=wanted) for wanted in (False, True))
        return DiffReport(
            a=str(one.path),
            b=str(other.path),
            identical=tensors.different == 0,
            same_kind=tensors.different == 0 or tensors.identical + len(tensors.differing) > 0,
            weights_read=digests is None,
            bytes=sum(t.spec.nbytes for name, t in one.tensors.items() if not is_buffer(name)),
            tensors=tensors,
            buffers=buffers,
        )


def _sort(
    one: Checkpoint,
    other: Checkpoint,
    differing: dict[str, DifferingTensor],
    pairs: dict[str, Pair],
    *,
    buffers: bool,
) -> Comparison:
    """Put the weights, or the buffers, of both checkpoints under their headings."""
    names = sorted(one.tensors.keys() | other.tensors.keys(), key=natural_key)
    names = [name for name in names if is_buffer(name) == buffers]
    a, b = ({name: tensor.spec for name, tensor in checkpoint.tensors.items()} for checkpoint in (one, other))
    return Comparison(
        identical=sum(name in pairs and name not in differing for name in names),
        differing=tuple(differing[name] for name in names if name in differing),
        other_shape=tuple(
            ReshapedTensor(name=name, shapes=(a[name].shape, b[name].shape), dtypes=(a[name].dtype, b[name].dtype))
            for name in names
            if name in a and name in b and name not in pairs
        ),
        only_in_a=tuple(a[name] for name in names if name not in b),
        only_in_b=tuple(b[name] for name in names if name not in a),
    )


def _outcome(pair: Pair) -> DifferingTensor:
    """Return what is to be said of a pair that was read and is not the same."""
    spec, dtypes = pair.one.spec, pair.dtypes
    if not comparable(*dtypes):
        return DifferingTensor(name=spec.name, shape=spec.shape, dtypes=dtypes)
    total, same, numbers = add_up(list(pair.parts.values())), dtypes[0] == dtypes[1], dtypes[0] in NUMPY
    return DifferingTensor(
        name=spec.name,
        shape=spec.shape,
        dtypes=dtypes,
        elements=total.elements,
        bits=total.bits if same else None,
        max_abs=_finite(total.max_abs) if numbers else None,
        relative_norm=_relative(total) if numbers else None,
        nonfinite=total.nonfinite if numbers else None,
    )


def _relative(total: Figures) -> float | None:
    if not total.squares:
        return 0.0
    known = 0 < total.norm < math.inf
    return _finite(math.sqrt(total.squares) / math.sqrt(total.norm)) if known else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _stated_digests(one: Checkpoint, other: Checkpoint, report: Report) -> tuple[dict[str, str], dict[str, str]] | None:
    """Return the digests of all tensors by name as both manifests state them, or None when one does not."""
    try:
        return _digests_of(one), _digests_of(other)
    except (InputOutputError, MalformedInput) as error:
        report.note(f"the weights are read, since there are not two manifests to trust: {error}")
        return None


def _digests_of(checkpoint: Checkpoint) -> dict[str, str]:
    manifest = manifest_beside(checkpoint)
    if not lists_exactly(manifest, checkpoint):
        problem = "manifest is of other tensors than those that are here"
        remedy = "compare the tensors themselves: without --trust-manifests"
        raise MalformedInput(problem, where=checkpoint.directory.path / MANIFEST, remedy=remedy)
    return {name: digest for name, (_dtype, _shape, digest) in manifest.tensors.items()}
