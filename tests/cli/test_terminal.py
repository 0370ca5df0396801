"""What a running command shows on a terminal."""

from __future__ import annotations

import io
import re
import time

import pytest

from deltaweights.cli.terminal import TerminalReport, time_left


class Terminal(io.StringIO):
    """Keeps what is written to it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("stage", ["merging", "fetching", "fetching and merging", "hashing"])
def test_the_progress_line_fits(monkeypatch: pytest.MonkeyPatch, stage: str, columns: int) -> None:
    """The line says stage, bytes, rate and time left, in at most 60 columns."""
    terminal, now = Terminal(), 0.0
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    began = time.time()
    monkeypatch.setattr("tqdm.std.time", lambda: began + now)
    report = TerminalReport("deltaweights", quiet=False)
    report.begin(stage, 270_000_000_000)
    for second in range(1, 6):
        now = 60.0 * second
        report.progress(27_000_000_000 * second)
    report.end()
    shown = [line.strip() for line in re.split(r"[\r\n]", terminal.getvalue()) if line.strip()]
    assert max(map(len, shown)) <= 60
    assert re.fullmatch(rf"{stage}(  50% .*)? 135G/270GB, 450MB/s, 0(4:59|5:00) left", shown[-1]), shown[-1]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3725, "1:02 h")])
def test_the_time_left_in_a_log(seconds: float, text: str) -> None:
    """Seconds, then minutes, then hours."""
    assert time_left(seconds) == text
