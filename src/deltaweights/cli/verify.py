"""``deltaweights verify``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaweights.cli.ci_output import CiOutput, ci_options
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
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.stated_hashes import POINTER
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import EXTRA_FILE, NOT_PINNED, VerifyReport
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
    weights_only: bool,
    junit: Path | None,
    summary: Path | None,
    annotations: bool,
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
    ci = CiOutput(junit=junit, summary=summary, annotated=annotations)
    ci.check(*([] if folder is None else [folder]))
    if lock is not None:
        _verify_lock(lock, folder, options, ci=ci, weights_only=weights_only, as_json=as_json, quiet=quiet)
        return
    if folder is None:
        raise UsageError("nothing to verify", remedy="give PATH or ORG/NAME, or --lock FILE")
    terminal, weights = report_for("deltaweights", quiet=quiet), not options.pop("no_weights")
    try:
        wanted, hub = signature_wanted(options), hub_of(options)
        given, signed = (folder, None) if wanted is None else wanted.read(folder, hub)
        report = verify(given, signed=signed, hub=hub, weights=weights, report=terminal, **options)
    except (InputOutputError, MalformedInput, CheckFailed) as error:
        ci.write([CheckedModel(folder, error)])
        raise
    for note in report.notes:
        terminal.note(note)
    if report.base is not None and report.base.warning is not None:
        terminal.warn(f"{folder}: {report.base.warning}")
    outcome = CheckedModel(report.target, report, weights_only)
    document = {"ok": outcome.ok, **asdict(report)} | signed_by(signed)
    lines = [] if outcome.ok and quiet else _lines(report, signed, passed=outcome.ok)
    print_outcome(document, lines, as_json=as_json)
    ci.write([outcome])
    if not outcome.ok:
        raise _failure(report, folder, weights=weights)


def _failure(report: VerifyReport, folder: str, *, weights: bool) -> CheckFailed:
    """Return the error that ends the command, with what to do about what was found."""
    problem, code = counted(len(report.problems), "problem"), ErrorCode.NOT_AS_RECORDED
    found = expected = None
    if report.only_pins:
        problem, found, expected = NOT_PINNED, report.problems[0].found, report.problems[0].expected
        remedy = "fetch what you pinned, or look at this one and pin it"
    elif any(each.problem == POINTER for each in report.problems):
        remedy = "run git lfs pull in the clone, and verify again"
    elif not report.compared_with and not report.weights.ok and not weights:
        problem = "no manifest here, which --no-weights would compare"
        remedy = "leave --no-weights out: its files are then compared with the hashes that the Hub states"
    elif not report.compared_with and not report.weights.ok:
        root = Path(folder).parent if Path(folder).is_file() else "DIR" if hub_id(folder) else folder
        problem = "no manifest here"
        remedy = f"give the publisher's with --manifest, or make one: deltaweights manifest {root} --output FILE"
    elif all(each.found == EXTRA_FILE for each in report.problems):
        problem = counted(len(report.problems), "extra file")
        remedy = "remove what is named: loaders read such files"
        if hub_id(folder):
            remedy = "do not load this model: loaders read such files"
    elif report.weights.ok:
        problem += ", but the weights are intact"
        remedy = "fetch what is named again or give --weights-only"
        if any(each.found == EXTRA_FILE for each in report.problems):
            remedy = "fetch what is named again, remove the extra files, or give --weights-only"
    else:
        remedy = "do not use these weights: merge or fetch them again"
    return CheckFailed(problem, where=folder, found=found, expected=expected, remedy=remedy, code=code)


def _verify_lock(
    lock: Path,
    folder: str | None,
    options: dict[str, Any],
    *,
    ci: CiOutput,
    weights_only: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Verify all models of a lock. Raises ``UsageError`` for options about one model: the lock says what is pinned."""
    from deltaweights.cli.verify_lock import check_lock  # noqa: PLC0415  (slow to load)

    of_one_model = ("expect", "expect_manifest", "manifest", "public_key", "identity", "issuer", "signature")
    given = {"PATH": folder} | {f"--{name.replace('_', '-')}": options.pop(name) for name in of_one_model}
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} is not given with --lock: a lock says what is pinned", remedy="leave it out")
    trust_config, weights, workers = (options.pop(name) for name in ("trust_config", "no_weights", "workers"))
    check_lock(
        lock,
        verification={"trust_config": trust_config, "weights": not weights, "workers": workers, "hub": hub_of(options)},
        weights_only=weights_only,
        ci=ci,
        report=report_for("deltaweights", quiet=quiet),
        as_json=as_json,
        quiet=quiet,
    )


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
