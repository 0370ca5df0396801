"""``deltaweights verify``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import json_option, option, silent_option
from deltaweights.cli.output import print_outcome
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, UsageError
from deltaweights.manifest.folder_check import SignedFiles
from deltaweights.manifest.folder_entries import name_inside
from deltaweights.manifest.junit import junit_bytes, junit_of_error
from deltaweights.manifest.records import MANIFEST
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import VerifyReport
from deltaweights.util.open_folder import replace_file
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

NO_MANIFEST = "nothing says what these files should be: give a manifest that is kept elsewhere, with --manifest"


@click.command("verify")
@click.argument("folder", metavar="DIR")
@click.option(
    "--expect", metavar="dw1:...", help="The content digest to expect; recomputed from the bytes of all tensors."
)
@click.option("--expect-manifest", metavar="SHA256", help="The sha256 of the manifest to expect.")
@click.option("--manifest", metavar="FILE", help="A manifest that is kept elsewhere [default: DIR/manifest.json].")
@click.option("--public-key", metavar="FILE", help="The key whose signature must be right, and vouch for every file.")
@click.option("--signature", metavar="FILE", help="The signature [default: DIR/model.sig].")
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write a JUnit XML report, too, for CI.")
@option("workers")
@json_option
@silent_option
@log_format_option
def command(
    folder: str,
    *,
    expect: str | None,
    expect_manifest: str | None,
    manifest: str | None,
    public_key: str | None,
    signature: str | None,
    junit: Path | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check a checkpoint against its manifest, one that is kept elsewhere, or a pinned digest.

    Every file is read and compared with the manifest; all changed, missing and extra files are reported. Exit 0: all match;
    6: some do not.
    """
    if junit is not None:
        _check_junit(folder, junit)
    if public_key is None and signature is not None:
        raise UsageError("--signature says nothing without a key", remedy="give --public-key, too")
    if public_key is not None and manifest is not None:
        remedy = "leave --manifest or --public-key out"
        raise UsageError("a signature vouches for the folder with its own manifest", remedy=remedy)
    terminal = report_for("deltaweights", quiet=quiet)
    expected = {"expect": expect, "expect_manifest": expect_manifest, "manifest": manifest}
    try:
        signed = None if public_key is None else _signed(folder, public_key, signature)
        report = verify(folder, **expected, signed=signed, workers=workers, report=terminal)
    except (InputOutputError, MalformedInput, CheckFailed) as error:
        if junit is not None:
            replace_file(junit, junit_of_error(folder, error))
        raise
    if junit is not None:
        replace_file(junit, junit_bytes(report))
    for note in report.notes:
        terminal.note(note)
    outcome = {"ok": report.ok, **asdict(report)} | ({"signed_by": signed.key} if signed else {})
    print_outcome(outcome, [] if report.ok and quiet else _lines(report, signed), as_json=as_json)
    if not report.ok:
        remedy = NO_MANIFEST if _lacks_manifest(report) else "do not use these weights: merge or fetch them again"
        problem, code = counted(len(report.problems), "problem"), ErrorCode.NOT_AS_RECORDED
        raise CheckFailed(problem, where=folder, remedy=remedy, code=code)


def _lacks_manifest(report: VerifyReport) -> bool:
    """Return whether nothing is wrong but that there is nothing to compare with, as in a folder that somebody else made."""
    return [(problem.file, problem.problem) for problem in report.problems] == [(MANIFEST, "is missing")]


def _signed(folder: str, public_key: str, signature: str | None) -> SignedFiles:
    from deltaweights.signing.folder import read_signature  # noqa: PLC0415  (slow to load)

    return read_signature(folder, public_key, signature)


def _check_junit(folder: str, junit: Path) -> None:
    """Raise ``UsageError`` for a report among the files to verify, or in place of another file."""
    if name_inside(Path(folder), junit):
        problem = "--junit would add a file to those that are looked at"
        raise UsageError(problem, found=junit, expected="a file outside of DIR")
    if junit.exists() and not junit.is_file():
        raise UsageError("--junit must name a file", found=junit)
    if junit.exists() and not _is_report(junit):
        raise UsageError("--junit would replace what is no report", found=junit, remedy="name another file")


def _is_report(path: Path) -> bool:
    """Return whether a file is a JUnit report, or empty."""
    try:
        with path.open("rb") as file:
            head = file.read(200)
    except OSError:
        return False
    return not head.strip() or (head.startswith(b"<") and b"<testsuite" in head)


def _lines(report: VerifyReport, signed: SignedFiles | None) -> Iterator[str]:
    if not report.ok:
        yield from (f"FAILED          {problem}" for problem in report.problems)
        return
    how = "recomputed from the bytes" if report.recomputed else "as the manifest states"
    yield f"verified        {report.target}"
    yield f"files           {report.files} ({human_bytes(report.bytes)})"
    yield f"content digest  {report.content_digest} ({how})"
    yield f"manifest        sha256 {report.manifest_sha256}"
    if signed is not None:
        yield f"signature       right, by key {signed.key}"
