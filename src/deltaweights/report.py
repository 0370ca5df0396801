"""What a job says while it runs.

Enters: remarks, facts and progress from a job. Leaves: nothing, here; the command line has reports that print. Never: a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Report:
    """Says nothing; the base of reports that do.

    Facts of shards come from any thread, all else from the one that runs the job.
    """

    def note(self, text: str) -> None:
        """Take a remark."""

    def warn(self, text: str) -> None:
        """Take a warning."""

    def plan(self, facts: Mapping[str, Any]) -> None:
        """Take what will be made: the plan's identity, tensors, bytes, shards and fates."""

    def shard_started(self, file: str, size: int, nbytes: int) -> None:
        """Take that a shard is begun, a file of ``size`` bytes with tensors of ``nbytes``."""

    def shard_finished(self, file: str, size: int, nbytes: int, seconds: float, sha256: str) -> None:
        """Take that a shard is finished and on the disk, ``seconds`` after it was begun."""

    def shard_reused(self, file: str, size: int, sha256: str) -> None:
        """Take that a shard was finished by an earlier run."""

    def begin(self, doing: str, total: int) -> None:
        """Take the start of work on ``total`` bytes."""

    def progress(self, done: int) -> None:
        """Take how many bytes of the work are done."""

    def end(self) -> None:
        """Take the end of the work that was begun, finished or not."""
