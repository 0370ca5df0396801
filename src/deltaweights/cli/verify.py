"""``deltaweights verify``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaweights.cli.ci_output import check_summary, ci_options, write_for_ci
from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import hub_of, hub_options, json_option, option, silent_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.signature import signature_options, signature_wanted, signed_by
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, UsageError
from deltaweights.manifest.ci_report import Outcome
from deltaweights.manifest.folder_check import SignedFiles
from deltaweights.manifest.folder_entries import name_inside
from deltaweights.manifest.junit import junit_bytes, junit_of_error
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import VerifyReport
from deltaweights.util.open_folder import replace_file
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

if TYPE_CHECKING:
    pass


@click.command("verify")
@click.argument("folder", metavar="DIR|ORG/NAME[@REVISION]", required=False)
@click.option(
    "--lock",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Verify all models that a lock pins, in place of one; `deltaweights pin` makes locks.",
)
@click.option(
    "--expect", metavar="dw1:...", help="The content digest to expect; recomputed from the bytes of all tensors."
)
@click.option("--expect-manifest", metavar="SHA256", help="The sha256 of the manifest to expect.")
@click.option("--manifest", metavar="FILE", help="A manifest that is kept elsewhere [default: DIR/manifest.json].")
@signature_options
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write a JUnit XML report, too, for CI.")
@ci_options
@click.option("--stream", is_flag=True, help="Read a model of the Hub once, without keeping it.")
@click.option(
    "--no-weights",
    is_flag=True,
    help="Compare the manifest with what the Hub states of a model, without fetching its weights.",
)
@hub_options
@option("workers")
@json_option
@silent_option
@log_format_option
def command(
    folder: str | None,
    *,
    lock: Path | None,
    expect: str | None,
    expect_manifest: str | None,
    manifest: str | None,
    junit: Path | None,
    summary: Path | None,
    annotations: bool,
    no_weights: bool,
    workers: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Check a checkpoint against its manifest, one that is kept elsewhere, or a pinned digest.

    A model of the Hub is fetched into the cache first or, with --stream, read once and not kept. Where there is no manifest, its
    files are compared with the hashes that the Hub states.

    Every file is read and compared with the manifest; all changed, missing and extra files are reported. Exit 0: all match;
    6: some do not.
    """
    if summary is not None:
        check_summary(summary, folder)
    if lock is not None:
        pins = {"DIR": folder, "--expect": expect, "--expect-manifest": expect_manifest, "--manifest": manifest}
        _verify_lock(
            lock,
            pins | {"--junit": junit},
            options,
            summary=summary,
            annotated=annotations,
            as_json=as_json,
            quiet=quiet,
            workers=workers,
            weights=not no_weights,
        )
        return
    if folder is None:
        raise UsageError("nothing to verify", remedy="give DIR or ORG/NAME, or --lock FILE")
    if junit is not None:
        _check_junit(folder, junit)
    wanted = signature_wanted(options)
    if wanted is not None and manifest is not None:
        remedy = "leave --manifest or --public-key out"
        raise UsageError("a signature vouches for the folder with its own manifest", remedy=remedy)
    terminal = report_for("deltaweights", quiet=quiet)
    hub = hub_of(options)
    try:
        given, signed = (folder, None) if wanted is None else wanted.read(folder, hub)
        report = verify(
            given,
            expect=expect,
            expect_manifest=expect_manifest,
            manifest=manifest,
            signed=signed,
            workers=workers,
            hub=hub,
            weights=not no_weights,
            report=terminal,
        )
    except (InputOutputError, MalformedInput, CheckFailed) as error:
        if junit is not None:
            replace_file(junit, junit_of_error(folder, error))
        write_for_ci([Outcome(folder, error)], summary, annotated=annotations)
        raise
    if junit is not None:
        replace_file(junit, junit_bytes(report))
    for note in report.notes:
        terminal.note(note)
    outcome = {"ok": report.ok, **asdict(report)} | signed_by(signed)
    print_outcome(outcome, [] if report.ok and quiet else _lines(report, signed), as_json=as_json)
    write_for_ci([Outcome(report.target, report)], summary, annotated=annotations)
    if not report.ok:
        remedy = "do not use these weights: merge or fetch them again"
        problem, code = counted(len(report.problems), "problem"), ErrorCode.NOT_AS_RECORDED
        raise CheckFailed(problem, where=folder, remedy=remedy, code=code)


def _verify_lock(lock: Path, pins: dict[str, object], options: dict[str, Any], *, quiet: bool, **how: Any) -> None:
    from deltaweights.cli.verify_lock import check_lock  # noqa: PLC0415  (slow to load)

    names = ("public_key", "identity", "issuer", "signature")
    pins |= {f"--{name.replace('_', '-')}": options.pop(name) for name in names}
    given = [name for name, value in pins.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} is not given with --lock: a lock says what is pinned", remedy="leave it out")
    trust_config, hub = options.pop("trust_config"), hub_of(options)
    report = report_for("deltaweights", quiet=quiet)
    check_lock(lock, hub=hub, trust_config=trust_config, report=report, quiet=quiet, **how)


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
    yield from (f"FAILED          {problem}" for problem in report.problems)
    if report.ok:
        yield f"{'listed' if report.unread else 'verified':15} {report.target}"
    for part, verdict in report.verdicts():
        yield f"{part:15} {verdict.sentence}"
    if not report.ok:
        return
    yield f"files           {report.files} ({human_bytes(report.bytes)})"
    if report.manifest_sha256 is None:
        yield f"no manifest     compared with {report.compared_with}, {counted(report.files, 'file')}"
    else:
        how = "recomputed from the bytes" if report.recomputed else "as the manifest states"
        yield f"content digest  {report.content_digest} ({how})"
        yield f"manifest        sha256 {report.manifest_sha256}"
    if signed is not None:
        yield f"signature       right, by {signed}"
