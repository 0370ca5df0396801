"""The sha256 of whole input files: a pass of its own, in the order of each file.

Enters: open checkpoints. Leaves: hashes by role and file name. Never: a pass that nobody asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.hub.cache import stated_sha256
from deltaweights.report import Report
from deltaweights.work import share_out

Hashes = dict[str, dict[str, str]]


def hash_files(checkpoints: Mapping[str, Checkpoint], workers: int, report: Report) -> Hashes:
    """Return the sha256 of every weights file, by role and name; several files at a time. Raises ``InputOutputError``.

    Warns of files that are not what the Hub's cache states they are.
    """
    hashes: Hashes = {role: {} for role in checkpoints}
    files = [(role, weights.file) for role, checkpoint in checkpoints.items() for weights in checkpoint.files]

    def hash_one(_: None, job: tuple[str, InputFile]) -> Iterator[int]:
        role, file = job
        digest = hashlib.sha256()
        for chunk in file.chunks():
            digest.update(chunk)
            yield len(chunk)
        hashes[role][file.path.name] = digest.hexdigest()

    largest_first = iter(sorted(files, key=lambda item: -item[1].size))
    total = sum(file.size for _, file in files)
    share_out(
        largest_first, _no_desk, hash_one, workers=workers, report=report, doing="hashing the inputs", total=total
    )
    for role, file in files:
        stated, found = stated_sha256(file.path), hashes[role][file.path.name]
        if stated not in {None, found}:
            report.warn(f"{file.path}: sha256 is {found}, the Hub's cache states {stated}: damaged; fetch it again")
    return hashes


def _no_desk() -> None:
    """Hashing needs no room of its own."""
