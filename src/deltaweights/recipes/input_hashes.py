"""The sha256 of whole input files: computed in a pass of its own, or as stated by the Hub's cache."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import UsageError
from deltaweights.hub.snapshot import stated_sha256
from deltaweights.manifest.digest_files import digest_file
from deltaweights.report import Report
from deltaweights.util.workers import run_parallel


@dataclass(frozen=True)
class InputHashes:
    """The sha256 of weights files by role and file name: computed in ``seconds`` for the roles in ``read``, else as stated."""

    files: dict[str, dict[str, str]]
    read: frozenset[str] = frozenset()
    seconds: float = 0.0

    def __or__(self, other: InputHashes) -> InputHashes:
        return InputHashes({**self.files, **other.files}, self.read | other.read, self.seconds + other.seconds)


def collect_hashes(checkpoints: Mapping[str, Checkpoint], workers: int | None, report: Report) -> InputHashes:
    """Return the sha256 of all weights files, computed by ``workers`` threads; if None, those that the Hub's cache states.

    Warns about files that differ from what the cache states. Raises ``UsageError`` for a streamed file.
    """
    if workers is None:
        return InputHashes({role: _stated(checkpoint) for role, checkpoint in checkpoints.items()})
    if any(weights.file.streamed for checkpoint in checkpoints.values() for weights in checkpoint.files):
        # The next reading may give other bytes than the one that was hashed.
        remedy = "leave one of --stream and --hash-inputs out"
        raise UsageError("--hash-inputs has nothing to hash", found="streamed inputs", remedy=remedy)
    began = time.monotonic()
    computed = _compute(checkpoints, workers, report)
    for role, checkpoint in checkpoints.items():
        for name, stated in _stated(checkpoint).items():
            if computed[role][name] != stated:
                damage = f"sha256 is {computed[role][name]}, the Hub's cache states {stated}: damaged; fetch it again"
                report.warn(f"{checkpoint.directory.path / name}: {damage}")
    return InputHashes(computed, read=frozenset(computed), seconds=time.monotonic() - began)


def _stated(checkpoint: Checkpoint) -> dict[str, str]:
    files = [weights.file for weights in checkpoint.files]
    stated = {file.path.name: file.verified_sha256 or stated_sha256(file.path) for file in files}
    return {name: sha256 for name, sha256 in stated.items() if sha256 is not None}


def _compute(checkpoints: Mapping[str, Checkpoint], workers: int, report: Report) -> dict[str, dict[str, str]]:
    hashes: dict[str, dict[str, str]] = {role: {} for role in checkpoints}
    files = [(role, weights.file) for role, checkpoint in checkpoints.items() for weights in checkpoint.files]
    files.sort(key=lambda item: -item[1].size)

    def hash_one(_state: None, item: tuple[str, InputFile]) -> Iterator[int]:
        role, file = item
        file.rely_on_hash()
        hashes[role][file.path.name], _ = yield from digest_file(file)

    total, doing = sum(file.size for _, file in files), "hashing the inputs"
    run_parallel(iter(files), lambda: None, hash_one, workers=workers, report=report, doing=doing, total=total)
    return hashes
