"""Logs for machines: JSON events on stderr, one per line, as docs/logs.md specifies."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import click

from deltaweights import __version__
from deltaweights.cli.colour import echo_message
from deltaweights.cli.command import flag
from deltaweights.cli.failure import Failure, json_requested
from deltaweights.cli.json_output import print_json
from deltaweights.cli.streams import write
from deltaweights.cli.terminal import LOG_EVERY, TerminalReport
from deltaweights.errors import printable
from deltaweights.report import Report
from deltaweights.util.text import Json

FORMAT, VERSION = "deltaweights-log", 1

VARIABLE = "DELTAWEIGHTS_LOG_FORMAT"


class JsonReport(Report):
    """Writes events to the file descriptor ``fd``; their times count from ``began``, by the monotonic clock.

    The first event, ``start``, is written together with the first other one. ``quiet`` drops notes, the plan, shards and progress.
    """

    def __init__(self, program: str, began: float, fd: int) -> None:
        self.quiet = False
        self._program, self._began, self._fd = program, began, fd
        self._lock = threading.Lock()
        self._started = False
        self._doing, self._total, self._done, self._logged = "", 0, 0, 0
        self._work_began = self._logged_at = 0.0

    def note(self, text: str) -> None:
        self._event("note", message=printable(text))

    def warn(self, text: str) -> None:
        self._write("warning", message=printable(text))

    def plan(self, facts: Mapping[str, Json]) -> None:
        self._event("plan", **facts)

    def shard_started(self, file: str, size: int, nbytes: int) -> None:
        self._event("shard_started", file=file, size=size, bytes=nbytes)

    def shard_finished(self, file: str, size: int, nbytes: int, seconds: float, sha256: str) -> None:
        self._event("shard_finished", file=file, size=size, bytes=nbytes, seconds=round(seconds, 3), sha256=sha256)

    def shard_reused(self, file: str, size: int, sha256: str) -> None:
        self._event("shard_reused", file=file, size=size, sha256=sha256)

    def begin(self, doing: str, total: int) -> None:
        self._doing, self._total, self._done, self._work_began = doing, total, 0, time.monotonic()
        self._progress(self._work_began)

    def resumed(self, done: int) -> None:
        self._done = done

    def progress(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY:
            self._progress(now)

    def end(self) -> None:
        if self._done != self._logged:
            self._progress(time.monotonic())

    def result(self, outcome: Json) -> None:
        """Write the outcome, also when quiet."""
        self._write("result", result=outcome)

    def failed(self, failure: Failure, **more: Json) -> None:
        """Write why the command ends, also when quiet: ``interrupted`` after a signal, else ``error``."""
        event = "interrupted" if failure.exit_code > 128 else "error"
        self._write(event, **failure.keys(), **more)

    def _progress(self, now: float) -> None:
        self._logged, self._logged_at = self._done, now
        seconds = round(now - self._work_began, 3)
        self._event("progress", doing=self._doing, done=self._done, total=self._total, seconds=seconds)

    def _event(self, event: str, **fields: Json) -> None:
        if not self.quiet:
            self._write(event, **fields)

    def _write(self, event: str, **fields: Json) -> None:
        with self._lock:
            if not self._started:
                self._started = True
                utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - (time.monotonic() - self._began)))
                about = {"format": FORMAT, "version": VERSION, "program": self._program, "release": __version__}
                self._line({"event": "start", "time": 0.0, **about, "utc": utc})
            self._line({"event": event, "time": round(time.monotonic() - self._began, 3), **fields})

    def _line(self, event: dict[str, Json]) -> None:
        data = f"{json.dumps(event)}\n".encode()
        with contextlib.suppress(OSError):  # a log file on a full disk must not stop a merge
            while data:  # in one write if possible: other processes may write to the same log
                data = data[write(self._fd, data) :]


class StrayText(io.TextIOBase):
    """Replaces ``sys.stderr``: what libraries write there, such as Python's own warnings, becomes one warning event per line."""

    encoding = "utf-8"

    def __init__(self, report: Report) -> None:
        self._report, self._lock, self._rest = report, threading.Lock(), ""

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = re.split(r"[\r\n]+", self._rest + text)
            for line in lines:
                if line.strip():
                    self._report.warn(line)
        return len(text)


@dataclass
class Console:
    """Shared by ``run`` and the command that it runs: the JSON events, if chosen, and the ``result`` of the command.

    With ``--json`` the result is the ``document``, which is printed at the end: stdout has one, also when an error follows.
    """

    name: str
    began: float = field(default_factory=time.monotonic)
    events: JsonReport | None = None
    result: Json = None
    document: Json = None

    def begin_events(self) -> None:
        """Write only events to stderr from now on."""
        if self.events is None:
            self.events = JsonReport(self.name, self.began, sys.stderr.fileno())
            sys.stderr = StrayText(self.events)

    def finish(self) -> None:
        """Write the result, if there is one, after all other events."""
        if self.events is not None and self.result is not None:
            self.events.result(self.result)
            self.result = None

    def print_outcome(self) -> None:
        """Print the document, if there is one."""
        document, self.document = self.document, None
        if document is not None:
            print_json(document)

    def print_failure(self, failure: Failure) -> None:
        """With ``--json``, print why the program ends, in one document with the outcome, if there is one."""
        if json_requested(sys.argv[1:]):
            outcome, self.document = self.document, None
            about = outcome if isinstance(outcome, dict) else {}
            with contextlib.suppress(OSError):  # the exit code remains
                print_json({**about, "error": failure.document()})
                sys.stdout.flush()

    def fail(self, failure: Failure, command: click.Command | None = None, **more: Json) -> int:
        """Report why the program ends, and return its exit code; ``command`` is the one whose options did not parse."""
        self.print_failure(failure)
        if self.events is None and _events_requested(sys.argv[1:], command):
            self.begin_events()
        if self.events is not None:
            self.finish()
            self.events.failed(failure, **more)
        else:
            with contextlib.suppress(OSError):  # the exit code remains
                echo_message(self.name, "error", printable(failure.message))
        return failure.exit_code


def report_for(name: str, *, quiet: bool) -> Report:
    """Return the report of the running command: JSON events if chosen, else lines and a bar for people."""
    console = _console()
    if console is None or console.events is None:
        return TerminalReport(name, quiet=quiet)
    console.events.quiet = quiet
    return console.events


def keep_result(outcome: Json, *, as_json: bool) -> None:
    """Keep the outcome of the running command for the event ``result`` and, if ``as_json``, for stdout."""
    console = _console()
    if console is not None:
        console.result = outcome
        console.document = outcome if as_json else None
    elif as_json:
        print_json(outcome)


def _console() -> Console | None:
    context = click.get_current_context(silent=True)
    return context.find_object(Console) if context is not None else None


def _events_requested(arguments: Sequence[str], command: click.Command | None) -> bool:
    """Return whether a command line that was not, or could not be, parsed asks for events."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    given = [value for option, value in pairwise(words) if option == "--log-format"]
    if given:
        return given[-1] == "json"
    takes_it = command is not None and any("--log-format" in parameter.opts for parameter in command.params)
    return takes_it and os.environ.get(VARIABLE) == "json"


def _choose(context: click.Context, _parameter: click.Parameter, value: str) -> None:
    console = context.find_object(Console)
    if console is not None and value == "json":
        console.begin_events()


log_format_option = flag(
    "Logging",
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar=VARIABLE,
    is_eager=True,  # so that errors in the rest of the command line are events
    expose_value=False,
    callback=_choose,
    help=f"Format of stderr: lines for people, or JSON events, one per line; also {VARIABLE}.",
)
"""For commands that may run long; ``report_for`` and ``keep_result`` act on it."""
