"""What a job says while it runs.

Enters: remarks and progress from a job. Leaves: nothing, here; the command line has a report that prints. Never: a result.
"""

from __future__ import annotations


class Report:
    """Says nothing; the base of reports that do."""

    def note(self, text: str) -> None:
        """Take a remark."""

    def warn(self, text: str) -> None:
        """Take a warning."""

    def begin(self, doing: str, total: int) -> None:
        """Take the start of work on ``total`` bytes."""

    def progress(self, done: int) -> None:
        """Take how many bytes of the work are done."""

    def end(self) -> None:
        """Take the end of the work that was begun, finished or not."""
