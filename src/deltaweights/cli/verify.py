"""``deltaweights verify``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaweights.cli.ci_output import check_summary, ci_options, write_for_ci
from deltaweights.cli.command import Command, flag
from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import hub_of, hub_options, json_option, option, silent_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.signature import signature_options, signature_wanted, signed_by
from deltaweights.cli.values import FILE, MODEL
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, UsageError
from deltaweights.hub.ids import hub_id
from deltaweights.manifest.ci_report import CheckedModel
from deltaweights.manifest.folder_entries import name_inside
from deltaweights.manifest.junit import junit_bytes, junit_of_error
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.stated_hashes import POINTER
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import NOT_PINNED, VerifyReport
from deltaweights.util.open_folder import replace_file
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

EXAMPLES = (
    "deltaweights verify merged",
    "deltaweights verify merged --expect dw1:2f0c...",
    "deltaweights verify ORG/NAME --no-weights",
    "deltaweights verify --lock models.lock",
)


@click.command("verify", cls=Command, examples=EXAMPLES)
@click.argument("folder", metavar="PATH|HUB_ID", type=MODEL, required=False)
@flag(
    "Inputs",
    "--lock",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Verify all models that a lock pins, in place of one; `deltaweights pin` makes locks.",
)
@flag(
    "Checks",
    "--expect",
    metavar="dw1:...",
    help="The content digest to expect; recomputed from the bytes of all tensors.",
)
@flag("Checks", "--expect-manifest", metavar="SHA256", help="The sha256 of the manifest to expect.")
@flag(
    "Checks",
    "--manifest",
    metavar="FILE",
    type=FILE,
    help="A manifest that is kept elsewhere [default: PATH/manifest.json].",
)
@flag("Checks", "--weights-only", is_flag=True, help="Let only the weights decide; what else differs is reported.")
@signature_options
@flag(
    "Output", "--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write a JUnit XML report, too, for CI."
)
@ci_options
@flag("Hub", "--stream", is_flag=True, help="Read a model of the Hub once, without keeping it.")
@flag(
    "Checks",
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
    weights_only: bool,
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

    PATH is a folder, a snapshot in the Hub's cache, one file, or an archive (.zip, .tar, .tar.gz). A model of the Hub is fetched
    into the cache first or, with --stream, read once and not kept. Where there is no manifest, the files are compared with
    SHA256SUMS, or with the hashes that the Hub states. Every file is read; all changed, missing and extra
    files are reported, with a verdict each on weights, on what loaders read beside them, and on all others. Exit 0: all match;
    6: some do not.
    """
    if summary is not None:
        check_summary(summary, folder)
    if lock is not None:
        one: dict[str, Any] = {
            "PATH": folder,
            "--expect": expect,
            "--expect-manifest": expect_manifest,
            "--manifest": manifest,
        }
        one |= {"--weights-only": weights_only or None, "--junit": junit}
        how: dict[str, Any] = {"as_json": as_json, "quiet": quiet, "workers": workers, "weights": not no_weights}
        _verify_lock(lock, one, options, summary=summary, annotated=annotations, **how)
        return
    if folder is None:
        raise UsageError("nothing to verify", remedy="give PATH or ORG/NAME, or --lock FILE")
    if junit is not None:
        _check_junit(folder, junit)
    wanted = signature_wanted(options)
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
        write_for_ci([CheckedModel(folder, error)], summary, annotated=annotations)
        raise
    if junit is not None:
        replace_file(junit, junit_bytes(report, weights_only=weights_only))
    for note in report.notes:
        terminal.note(note)
    if report.base is not None and report.base.warning is not None:
        terminal.warn(f"{folder}: {report.base.warning}")
    passed = report.weights.ok if weights_only else report.ok
    outcome = {"ok": passed, **asdict(report)} | signed_by(signed)
    print_outcome(outcome, [] if passed and quiet else _lines(report, signed, passed=passed), as_json=as_json)
    write_for_ci([CheckedModel(report.target, report, weights_only)], summary, annotated=annotations)
    if not passed:
        raise _failure(report, folder)


def _failure(report: VerifyReport, folder: str) -> CheckFailed:
    """Return the error that ends the command, with what to do about what was found."""
    problem, code = counted(len(report.problems), "problem"), ErrorCode.NOT_AS_RECORDED
    found = expected = None
    if report.only_pins:
        problem, found, expected = NOT_PINNED, report.problems[0].found, report.problems[0].expected
        remedy = "fetch what you pinned, or look at this one and pin it"
    elif any(each.problem == POINTER for each in report.problems):
        remedy = "run git lfs pull in the clone, and verify again"
    elif not report.compared_with and not report.weights.ok:
        root = Path(folder).parent if Path(folder).is_file() else "DIR" if hub_id(folder) else folder
        problem = "no manifest here"
        remedy = f"give the publisher's with --manifest, or make one: deltaweights manifest {root} --output FILE"
    elif report.weights.ok:
        problem += ", but the weights are intact"
        remedy = "fetch the files that are named again, or give --weights-only if you rely on nothing else"
    else:
        remedy = "do not use these weights: merge or fetch them again"
    return CheckFailed(problem, where=folder, found=found, expected=expected, remedy=remedy, code=code)


def _verify_lock(lock: Path, one: dict[str, Any], options: dict[str, Any], *, quiet: bool, **how: Any) -> None:
    """Verify all models of a lock; ``one`` holds options about one model, which say nothing then."""
    from deltaweights.cli.verify_lock import check_lock  # noqa: PLC0415  (slow to load)

    names = ("public_key", "identity", "issuer", "signature")
    one |= {f"--{name.replace('_', '-')}": options.pop(name) for name in names}
    given = [name for name, value in one.items() if value is not None]
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


def _lines(report: VerifyReport, signed: SignedFiles | None, *, passed: bool) -> Iterator[str]:
    what = "not counted" if passed else "FAILED"  # with --weights-only
    yield from (f"{what:15} {problem}" for problem in report.problems)
    if report.ok:
        yield f"{'listed' if report.unread else 'verified':15} {report.target}"
    for part, verdict in report.verdicts():
        yield f"{part:15} {verdict.sentence}"
    if not report.ok:
        return
    yield f"files           {report.files} ({human_bytes(report.bytes)})"
    if report.content_digest is not None:
        how = "recomputed from the bytes" if report.recomputed else "as the manifest states"
        yield f"content digest  {report.content_digest} ({how})"
    if report.manifest_sha256 is None:
        yield f"manifest        none: compared with {report.compared_with}, {counted(report.files, 'file')}"
    else:
        yield f"manifest        sha256 {report.manifest_sha256}"
    if report.base is not None:
        by = "" if report.base.of_source else " (as the manifest states)"
        yield f"base            {report.base.text}{by}"
    if signed is not None:
        yield f"signature       right, by {signed}"
