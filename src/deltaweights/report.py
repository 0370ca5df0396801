"""The interface through which a job reports what it does; the command line has implementations that print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltaweights.errors import printable


class Report:
    """A report that prints nothing; base class of those that do.

    Calls about shards come from any thread, all others from the thread that runs the job.
    """

    def note(self, text: str) -> None:
        """Take a remark."""

    def warn(self, text: str) -> None:
        """Take a warning."""

    def plan(self, facts: Mapping[str, Any]) -> None:
        """Take what will be made: the plan's identity, tensors, bytes, shards and fates."""

    def shard_started(self, file: str, size: int, nbytes: int) -> None:
        """Take the start of a shard: a file of ``size`` bytes whose tensors have ``nbytes``."""

    def shard_finished(self, file: str, size: int, nbytes: int, seconds: float, sha256: str) -> None:
        """Take the end of a shard, which is on the disk ``seconds`` after it was started."""

    def shard_reused(self, file: str, size: int, sha256: str) -> None:
        """Take that an earlier run had finished a shard."""

    def begin(self, doing: str, total: int) -> None:
        """Take the start of work on ``total`` bytes."""

    def resumed(self, done: int) -> None:
        """Take, right after ``begin``, how many bytes of the work an earlier run has done."""

    def progress(self, done: int) -> None:
        """Take how many bytes of the work are done."""

    def end(self) -> None:
        """Take the end of the work, finished or not."""


class ProgressBar(Report):
    """Shows a bar of tqdm, in a notebook as well as on a terminal; prints warnings, and with ``notes`` remarks, too.

    >>> from deltaweights import ProgressBar, verify
    >>> verify("merged", report=ProgressBar()).ok
    True
    """

    def __init__(self, *, notes: bool = False) -> None:
        from tqdm.auto import tqdm  # noqa: PLC0415  (only who asks for a bar needs it)

        self._tqdm: Any = tqdm
        self._notes = notes
        self._bar: Any = None

    def note(self, text: str) -> None:
        if self._notes:
            self._tqdm.write(printable(text))

    def warn(self, text: str) -> None:
        self._tqdm.write(f"warning: {printable(text)}")

    def begin(self, doing: str, total: int) -> None:
        self._bar = self._tqdm(total=total, desc=doing, unit="B", unit_scale=True, leave=False)

    def progress(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
