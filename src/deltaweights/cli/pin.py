"""``deltaweights pin``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaweights.checkpoint.small_files import read_small
from deltaweights.cli.command import Command, flag
from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import hub_of, hub_options, json_option, option, quiet_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.signature import signature_options, signature_wanted
from deltaweights.cli.values import FILE, MODEL
from deltaweights.errors import DeltaweightsError, TargetBusy, UsageError
from deltaweights.util.open_folder import replace_file

EXAMPLES = (
    "deltaweights pin ORG/NAME merged --output models.lock",
    "deltaweights verify --lock models.lock",
)


@click.command("pin", cls=Command, examples=EXAMPLES)
@click.argument("models", metavar="HUB_ID|DIR...", type=MODEL, nargs=-1, required=True)
@flag(
    "Output", "--output", metavar="FILE", type=FILE, help="Write the lock there [default: to stdout, for this folder]."
)
@signature_options
@hub_options
@option("workers")
@json_option
@quiet_option
@log_format_option
def command(
    models: tuple[str, ...],
    *,
    output: str | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Pin models: print a lock with the commit, the content digest and the manifest's sha256 of each, for `verify --lock`.

    A folder is verified, which reads all of it. Of a model of the Hub the manifest is compared with what the Hub states; no
    weights are fetched. With --public-key, or --identity and --issuer, all must be signed so, and the lock says by whom.
    Folders are pinned by their path from the lock's own folder.
    """
    from deltaweights.jobs.lock_file import lock_bytes  # noqa: PLC0415  (slow to load, so not for --help)
    from deltaweights.jobs.pin import pin_model  # noqa: PLC0415

    wanted = signature_wanted(options)
    if wanted is not None and wanted.signature is not None and len(models) > 1:
        raise UsageError("--signature is that of one model", found=f"{len(models)} models", remedy="pin it alone")
    lock = None if output is None else Path(output)
    if lock is not None:
        _refuse_other(lock)
    report, hub = report_for("deltaweights", quiet=quiet), hub_of(options)
    root = Path() if lock is None else lock.parent
    pins = [pin_model(model, root=root, wanted=wanted, hub=hub, workers=workers, report=report) for model in models]
    document = lock_bytes(pins)
    if lock is not None:
        replace_file(lock, document)
    elif not as_json:
        click.echo(document, nl=False)
    lines = [f"pinned          {pin.title}" for pin in pins] if lock is not None and not quiet else []
    print_outcome({"output": output, "models": [asdict(pin) for pin in pins]}, lines, as_json=as_json)


def _refuse_other(path: Path) -> None:
    """Raise ``TargetBusy`` unless ``path`` is free, an empty file, or a lock."""
    from deltaweights.jobs.lock_file import MAX_LOCK, parse_lock  # noqa: PLC0415

    if not path.exists():
        return
    try:
        data = read_small(path, MAX_LOCK)
        if data:
            parse_lock(data, str(path))
    except DeltaweightsError as error:
        problem, remedy = "this is not a lock, so it is not replaced", "move it away, or name another file"
        raise TargetBusy(problem, where=path, found=error, remedy=remedy) from None
