"""Verifying all models that a lock pins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import DeltaweightsError
from deltaweights.hub.ids import PREFIX
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.lock_file import MAX_LOCK, Pin, parse_lock
from deltaweights.jobs.wanted_signature import WantedSignature
from deltaweights.manifest.file_parts import WEIGHTS
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import CONTENT, NOT_PINNED, Problem, VerifyReport
from deltaweights.report import Report


@dataclass(frozen=True, kw_only=True)
class PinnedModel:
    """What became of one pin: a report, or the error that kept it from being verified."""

    pin: Pin
    result: VerifyReport | DeltaweightsError
    signed: SignedFiles | None = None
    weights_only: bool = False

    @property
    def ok(self) -> bool:
        """Whether the model is what was pinned; with ``weights_only``, whether its weights are."""
        return isinstance(self.result, VerifyReport) and _holds(self.result, weights_only=self.weights_only)


def read_lock(path: Path) -> list[Pin]:
    """Return the pins of a lock. Raises ``InputOutputError``, ``MalformedInput``."""
    return parse_lock(read_small(path, MAX_LOCK), str(path))


def verify_lock(
    path: Path,
    *,
    hub: HubOptions | None = None,
    weights: bool = True,
    weights_only: bool = False,
    trust_config: str | None = None,
    workers: int | None = None,
    report: Report | None = None,
) -> Iterator[PinnedModel]:
    """Yield what became of each pin of the lock at ``path``, in its order, as soon as it is known.

    A model that cannot be verified does not keep the others from it. ``hub``, ``weights`` and ``workers`` are those of ``verify``,
    ``trust_config`` is that of ``read_keyless_signature``. With ``weights_only``, a model is right if its weights and pins are.
    Raises ``InputOutputError`` and ``MalformedInput`` for the lock itself.

    >>> from pathlib import Path
    >>> from deltaweights import verify_lock
    >>> [pinned.ok for pinned in verify_lock(Path("deltaweights.lock"))]
    [True]
    """
    for pin in read_lock(path):
        model = f"{PREFIX}{pin.id}@{pin.revision}" if pin.path is None else path.parent / pin.path
        wanted = _wanted(pin, trust_config)
        try:
            given, signed = (model, None) if wanted is None else wanted.read(model, hub)
            found = verify(
                given,
                # Also beside a pinned manifest: what that states of the tensors need not be true of the files that it lists.
                expect=pin.content_digest if weights or pin.path is not None or pin.manifest_sha256 is None else None,
                expect_manifest=pin.manifest_sha256,
                signed=signed,
                workers=workers,
                hub=hub if pin.path is None else None,
                weights=weights or pin.path is not None,
                report=report,
            )
        except DeltaweightsError as error:
            yield PinnedModel(pin=pin, result=error, weights_only=weights_only)
        else:
            result = _with_digest(found, pin, weights_only=weights_only)
            yield PinnedModel(pin=pin, result=result, signed=signed, weights_only=weights_only)


def _wanted(pin: Pin, trust_config: str | None) -> WantedSignature | None:
    if pin.public_key is not None:
        return WantedSignature(public_key=pin.public_key.encode())
    if pin.identity is not None:
        return WantedSignature(identity=pin.identity, issuer=pin.issuer, trust_config=trust_config)
    return None


def _holds(found: VerifyReport, *, weights_only: bool) -> bool:
    return found.weights.ok if weights_only else found.ok


def _with_digest(found: VerifyReport, pin: Pin, *, weights_only: bool) -> VerifyReport:
    """Return the report, with a problem where the pins contradict each other: the manifest is right, its content digest is not."""
    if not _holds(found, weights_only=weights_only) or pin.content_digest in {None, found.content_digest}:
        return found
    fault, is_pin = "content digest is not the pinned one", True
    problem = Problem(found.target, fault, found.content_digest, pin.content_digest, CONTENT, WEIGHTS, is_pin)
    weights = replace(found.weights, ok=False, problems=1, sentence=NOT_PINNED)
    return replace(found, weights=weights, problems=(*found.problems, problem))
