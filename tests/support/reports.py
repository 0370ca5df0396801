"""A report that keeps what it is told."""

from __future__ import annotations

from deltaweights.report import Report


class RecordingReport(Report):
    """Keeps notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
