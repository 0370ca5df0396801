"""``deltaweights verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from deltaweights.cli.log_report import keep_result, log_format_option, report_for
from deltaweights.cli.results import print_json
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, UsageError, printable
from deltaweights.manifest.folder_check import SignedFiles
from deltaweights.manifest.folder_entries import name_inside
from deltaweights.manifest.junit import junit_bytes, junit_of_error
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import VerifyReport
from deltaweights.util.open_folder import replace_file
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted


@click.command("verify")
@click.argument("folder", metavar="DIR")
@click.option(
    "--expect", metavar="dw1:...", help="The content digest to expect; recomputed from the bytes of all tensors."
)
@click.option("--expect-manifest", metavar="SHA256", help="The sha256 of the manifest to expect.")
@click.option("--manifest", metavar="FILE", help="A manifest that is kept elsewhere [default: DIR/manifest.json].")
@click.option("--public-key", metavar="FILE", help="The key whose signature must be right, and vouch for every file.")
@click.option("--signature", metavar="FILE", help="The signature [default: DIR/model.sig].")
@click.option("--junit", metavar="FILE", help="Write the result there, too, as JUnit's XML, for reports of CI.")
@click.option("--workers", type=click.IntRange(min=1), help="Files read at once [default: one per processor, 2 to 8].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when everything holds.")
@log_format_option
def command(
    folder: str,
    *,
    expect: str | None,
    expect_manifest: str | None,
    manifest: str | None,
    public_key: str | None,
    signature: str | None,
    junit: str | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check a checkpoint against its manifest, one that is kept elsewhere, or a pinned digest.

    Every file is read and compared with the manifest; changed, missing and extra files are reported, all of them. Exit 0: all
    holds; 6: something does not.
    """
    results = None if junit is None else Path(junit)
    _refuse_place(folder, results)
    if public_key is None and signature is not None:
        raise UsageError("--signature says nothing without a key", remedy="give --public-key, too")
    if public_key is not None and manifest is not None:
        remedy = "leave --manifest or --public-key out"
        raise UsageError("a signature vouches for the folder with its own manifest", remedy=remedy)
    terminal = report_for("deltaweights", quiet=quiet)
    try:
        signed = None if public_key is None else _signed(folder, public_key, signature)
        report = verify(
            folder,
            expect=expect,
            expect_manifest=expect_manifest,
            manifest=manifest,
            signed=signed,
            workers=workers,
            report=terminal,
        )
    except (InputOutputError, MalformedInput, CheckFailed) as error:
        if results is not None:
            replace_file(results, junit_of_error(folder, error))
        raise
    if results is not None:
        replace_file(results, junit_bytes(report))
    for note in report.notes:
        terminal.note(note)
    outcome = {"ok": report.ok, **asdict(report)} | ({"signed_by": signed.key} if signed else {})
    keep_result(outcome)
    if as_json:
        print_json(outcome)
    elif not report.ok:
        for problem in report.problems:
            click.echo(f"FAILED          {problem}")
    elif not quiet:
        click.echo("\n".join(map(printable, _lines(report))))
        if signed is not None:
            click.echo(f"signature       right, by key {signed.key}")
    if not report.ok:
        raise CheckFailed(
            counted(len(report.problems), "problem"),
            where=folder,
            remedy="do not use these weights: merge or fetch them again",
        )


def _signed(folder: str, public_key: str, signature: str | None) -> SignedFiles:
    from deltaweights.signing.folder import read_signature  # noqa: PLC0415  (only who verifies a signature needs it)

    return read_signature(folder, public_key, signature)


def _refuse_place(folder: str, results: Path | None) -> None:
    """Raise ``UsageError`` when results would be written over something else, or among the files that are looked at."""
    if results is None:
        return
    if name_inside(Path(folder), results):
        problem = "--junit would add a file to those that are looked at"
        raise UsageError(problem, found=results, expected="a file outside of DIR")
    if results.exists() and not results.is_file():
        raise UsageError("--junit names no file", found=results)
    if results.exists() and not _is_report(results):
        raise UsageError("--junit would replace what is no report", found=results, remedy="name another file")


def _is_report(path: Path) -> bool:
    """Tell whether a file is a report of tests, or empty."""
    try:
        with path.open("rb") as file:
            head = file.read(200)
    except OSError:
        return False
    return not head.strip() or (head.startswith(b"<") and b"<testsuite" in head)


def _lines(report: VerifyReport) -> list[str]:
    how = "recomputed from the bytes" if report.recomputed else "as the manifest states"
    return [
        f"verified        {report.target}",
        f"files           {report.files} ({human_bytes(report.bytes)})",
        f"content digest  {report.content_digest} ({how})",
        f"manifest        sha256 {report.manifest_sha256}",
    ]
