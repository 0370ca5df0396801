"""The report of a running command for people, on a terminal or in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import click

from deltaweights.errors import printable
from deltaweights.report import Report
from deltaweights.util.sizes import human_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

LOG_EVERY = 10.0
"""Seconds between progress lines in a log."""


class TerminalReport(Report):
    """Prints to stderr, with a progress bar on a terminal; ``quiet`` leaves only warnings."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self._name, self._quiet = name, quiet
        self._bar: tqdm[NoReturn] | None = None
        self._doing, self._total, self._before, self._began, self._logged = "", 0, 0, 0.0, 0.0

    def note(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"{self._name}: warning: {text}")

    def begin(self, doing: str, total: int) -> None:
        self.end()  # fetching goes over into merging
        self._doing, self._total, self._before = doing, total, 0
        self._began = self._logged = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm  # noqa: PLC0415  (40 ms)

            self._bar = tqdm(
                total=total, desc=doing, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True, leave=False
            )

    def resumed(self, done: int) -> None:
        self._before = done
        if self._bar is not None:
            self._bar.n = self._bar.initial = done
            self._bar.refresh()

    def progress(self, done: int) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif not self._quiet and now - self._logged >= LOG_EVERY and done > self._before:
            self._logged = now
            rate = (done - self._before) / (now - self._began)
            left = (self._total - done) / rate
            share = f"{human_bytes(done)} of {human_bytes(self._total)}"
            self._print(f"{self._doing}: {share}, {human_bytes(rate)}/s, {left:.0f} s left")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()  # else the line begins behind the bar
        with contextlib.suppress(OSError):  # a log file on a full disk must not stop a merge
            click.echo(printable(text), err=True)
        if self._bar is not None:
            self._bar.refresh()
