"""The sha256 of whole input files: made in a pass of its own, in the order of each file, or as the Hub's cache states them.

Enters: open checkpoints. Leaves: hashes by role and file name. Never: a pass that nobody asked for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import UsageError
from deltaweights.hub.cache_paths import stated_sha256
from deltaweights.report import Report
from deltaweights.util.workers import run_parallel

KEEP = "leave one of --stream and --hash-inputs out"


@dataclass(frozen=True)
class Hashes:
    """The sha256 of weights files by role and file name: of the roles in ``read`` made in so many ``seconds``, else as stated."""

    files: dict[str, dict[str, str]]
    read: frozenset[str] = frozenset()
    seconds: float = 0.0

    def __or__(self, other: Hashes) -> Hashes:
        """Return the hashes of both, which have no role in common."""
        return Hashes({**self.files, **other.files}, self.read | other.read, self.seconds + other.seconds)


def hashes_of(checkpoints: Mapping[str, Checkpoint], workers: int | None, report: Report) -> Hashes:
    """Return the sha256 of all weights files, made by ``workers`` threads; when None, those that the Hub's cache states.

    Warns of files that are not what the cache states. Raises ``InputOutputError`` when one cannot be read, ``UsageError`` when
    one is streamed.
    """
    if workers is None:
        return Hashes({role: _stated(checkpoint) for role, checkpoint in checkpoints.items()})
    if any(weights.file.streamed for checkpoint in checkpoints.values() for weights in checkpoint.files):
        # A hash of one reading says nothing of the next.
        raise UsageError("--hash-inputs has nothing to hash", found="inputs that are kept nowhere", remedy=KEEP)
    began = time.monotonic()
    made = _made(checkpoints, workers, report)
    for role, checkpoint in checkpoints.items():
        for name, stated in _stated(checkpoint).items():
            if made[role][name] != stated:
                damage = f"sha256 is {made[role][name]}, the Hub's cache states {stated}: damaged; fetch it again"
                report.warn(f"{checkpoint.directory.path / name}: {damage}")
    return Hashes(made, read=frozenset(made), seconds=time.monotonic() - began)


def _stated(checkpoint: Checkpoint) -> dict[str, str]:
    stated = {
        weights.file.path.name: weights.file.verified_sha256 or stated_sha256(weights.file.path)
        for weights in checkpoint.files
    }
    return {name: sha256 for name, sha256 in stated.items() if sha256 is not None}


def _made(checkpoints: Mapping[str, Checkpoint], workers: int, report: Report) -> dict[str, dict[str, str]]:
    hashes: dict[str, dict[str, str]] = {role: {} for role in checkpoints}
    files = [(role, weights.file) for role, checkpoint in checkpoints.items() for weights in checkpoint.files]

    def hash_one(_: None, job: tuple[str, InputFile]) -> Iterator[int]:
        role, file = job
        file.rely_on_hash()
        digest = hashlib.sha256()
        for chunk in file.chunks():
            digest.update(chunk)
            yield len(chunk)
        hashes[role][file.path.name] = digest.hexdigest()

    largest_first = iter(sorted(files, key=lambda item: -item[1].size))
    total = sum(file.size for _, file in files)
    run_parallel(
        largest_first, _no_desk, hash_one, workers=workers, report=report, doing="hashing the inputs", total=total
    )
    return hashes


def _no_desk() -> None:
    """Hashing needs no room of its own."""
