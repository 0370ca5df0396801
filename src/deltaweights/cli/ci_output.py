"""What ``verify`` leaves for CI: a JUnit report, a job summary, and annotations."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from deltaweights.cli.command import flag
from deltaweights.cli.options import group
from deltaweights.errors import UsageError, wrap_os_errors
from deltaweights.manifest.ci_report import CheckedModel, summary, workflow_commands
from deltaweights.manifest.folder_entries import name_inside
from deltaweights.manifest.junit import junit_bytes
from deltaweights.util.open_folder import replace_file

LONGEST_SUMMARY = 1024 * 1024  # bytes, as on GitHub

ci_options = group(
    flag(
        "Output", "--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write a JUnit XML report, for CI."
    ),
    flag(
        "Output",
        "--summary",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Append the verdicts in Markdown, for CI: $GITHUB_STEP_SUMMARY, say.",
    ),
    flag("Output", "--annotations", is_flag=True, help="Print each problem as an annotation of GitHub, on stderr."),
)


@dataclass(frozen=True, kw_only=True)
class CiOutput:
    """Where the outcome is written to: paths of a JUnit report and of a summary, and whether annotations are printed."""

    junit: Path | None
    summary: Path | None
    annotated: bool

    def check(self, *verified: str | Path) -> None:
        """Raise ``UsageError`` for a file that must not be written to, such as one among those that are ``verified``."""
        for what, path in (("--summary", self.summary), ("--junit", self.junit)):
            if path is not None and any(name_inside(Path(folder), path) for folder in verified):
                problem = f"{what} would change what is verified"
                raise UsageError(problem, found=path, expected="a file outside of DIR")
        if self.summary is not None:
            _check_summary(self.summary)
        if self.junit is not None:
            _check_junit(self.junit)

    def write(self, outcomes: Sequence[CheckedModel]) -> None:
        """Write what was asked for. Raises ``InputOutputError``."""
        if self.junit is not None:
            replace_file(self.junit, junit_bytes(outcomes))
        if self.summary is not None:
            with wrap_os_errors(self.summary, "write to it"), self.summary.open("a", encoding="utf-8") as file:
                file.write(summary(outcomes))
        if self.annotated:
            for line in workflow_commands(outcomes):
                click.echo(line, err=True)


def _check_summary(path: Path) -> None:
    """Raise ``UsageError`` unless a summary can be appended to ``path``: to a text."""
    with wrap_os_errors(path, "look at it"):
        status = path.stat() if path.exists() else None
    if status is None:
        return
    if not stat.S_ISREG(status.st_mode):
        raise UsageError("--summary must name a file", found=path)
    if not _is_text(path, status.st_size):
        problem, remedy = "--summary would be appended to what is no text", "name another file"
        raise UsageError(problem, found=path, remedy=remedy)


def _is_text(path: Path, size: int) -> bool:
    if size > LONGEST_SUMMARY:
        return False
    with wrap_os_errors(path, "read it"):
        data = path.read_bytes()
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _check_junit(path: Path) -> None:
    """Raise ``UsageError`` for a report in place of another file."""
    if path.exists() and not path.is_file():
        raise UsageError("--junit must name a file", found=path)
    if path.exists() and not _is_report(path):
        raise UsageError("--junit would replace what is no report", found=path, remedy="name another file")


def _is_report(path: Path) -> bool:
    """Return whether a file is a JUnit report, or empty."""
    try:
        with path.open("rb") as file:
            head = file.read(200)
    except OSError:
        return False
    return not head.strip() or (head.startswith(b"<") and b"<testsuite" in head)
