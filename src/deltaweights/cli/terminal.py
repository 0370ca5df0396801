"""The report of a running command for people, on a terminal or in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from shutil import get_terminal_size
from typing import TYPE_CHECKING, NoReturn

import click

from deltaweights.cli.colour import echo_message
from deltaweights.errors import printable
from deltaweights.report import Report
from deltaweights.util.sizes import human_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

MOST_COLUMNS = 60
NUMBERS = "{n_fmt}/{total_fmt}B, {rate_fmt}, {remaining} left"
"""What the progress line says after the stage: bytes, rate, time left."""
LONGEST_WITH_BAR = 12
"""Characters of a stage beside which a bar has room."""

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
        self._write(lambda: echo_message(self._name, "warning", printable(text)))

    def separate(self) -> None:
        """Leave a line free between the remarks and the result, where both are read on one terminal."""
        if not self._quiet and sys.stderr.isatty() and sys.stdout.isatty():
            self._print("")

    def begin(self, doing: str, total: int) -> None:
        self.end()  # fetching goes over into merging
        self._doing, self._total, self._before = doing, total, 0
        self._began = self._logged = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm  # noqa: PLC0415  (40 ms)

            bar = "{percentage:3.0f}% {bar} " if len(doing) <= LONGEST_WITH_BAR else ""
            self._bar = tqdm(
                total=total,
                desc=doing,
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                bar_format=f"{{desc}} {bar}{NUMBERS}",
                ncols=min(MOST_COLUMNS, get_terminal_size().columns - 1),
                leave=False,
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
            self._print(f"{self._doing}: {share}, {human_bytes(rate)}/s, {time_left(left)} left")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, text: str) -> None:
        self._write(lambda: click.echo(printable(text), err=True))

    def _write(self, write: Callable[[], None]) -> None:
        if self._bar is not None:
            self._bar.clear()  # else the line begins behind the bar
        with contextlib.suppress(OSError):  # a log file on a full disk must not stop a merge
            write()
        if self._bar is not None:
            self._bar.refresh()


def time_left(seconds: float) -> str:
    """Return a time as ``52 s``, ``3:05 min`` or ``2:07 h``."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    minutes, seconds = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02.0f} min"
    return f"{minutes // 60}:{minutes % 60:02} h"
