"""What ``verify`` leaves for CI: a job summary, and annotations."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import click

from deltaweights.cli.command import flag
from deltaweights.cli.options import group
from deltaweights.errors import UsageError, wrap_os_errors
from deltaweights.manifest.ci_report import CheckedModel, summary, workflow_commands
from deltaweights.manifest.folder_entries import name_inside

LONGEST_SUMMARY = 1024 * 1024  # bytes, as on GitHub

ci_options = group(
    flag(
        "Output",
        "--summary",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Append the verdicts in Markdown, for CI: $GITHUB_STEP_SUMMARY, say.",
    ),
    flag("Output", "--annotations", is_flag=True, help="Print each problem as an annotation of GitHub, on stderr."),
)


def check_summary(path: Path, folder: str | None) -> None:
    """Raise ``UsageError`` unless a summary can be appended to ``path``: a text that is not among the files to verify."""
    if folder is not None and name_inside(Path(folder), path):
        problem = "--summary would change a file that is looked at"
        raise UsageError(problem, found=path, expected="a file outside of DIR")
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


def write_for_ci(outcomes: Sequence[CheckedModel], path: Path | None, *, annotated: bool) -> None:
    """Append a summary to the file at ``path``, if there is one, and print annotations, if asked for."""
    if path is not None:
        with wrap_os_errors(path, "write to it"), path.open("a", encoding="utf-8") as file:
            file.write(summary(outcomes))
    if annotated:
        for line in workflow_commands(outcomes):
            click.echo(line, err=True)
