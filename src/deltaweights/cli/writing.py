"""Run a verb that writes a checkpoint: make the request, run it or show its plan, and print the outcome."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deltaweights.cli.log_report import report_for
from deltaweights.cli.options import hub_of
from deltaweights.cli.output import plan_lines, print_outcome, print_published
from deltaweights.merge.choices import ORIGINAL, TRANSFORMERS
from deltaweights.util.interruption import GO_ON, advising, signal_first

if TYPE_CHECKING:
    from deltaweights.jobs.request import Request
    from deltaweights.jobs.result import Published
    from deltaweights.report import Report


def write_checkpoint(
    name: str,
    make_request: Callable[..., Request],
    run: Callable[[Request, Report], Published],
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    hub_repo_id: str | None = None,
    **options: Any,
) -> None:
    """Make the request from the remaining options, and ``run`` it; ``name`` is the program's, for messages."""
    from deltaweights.jobs.prepare import prepare  # noqa: PLC0415  (slow to load, so not for --help)
    from deltaweights.jobs.summary import describe, report_plan  # noqa: PLC0415

    options["hub"] = hub_of(options)
    request = make_request(dry_run=dry_run, **options)
    output = request.operation.output
    report = report_for(name, quiet=quiet)
    if dry_run:
        with prepare(request, report) as prepared:
            report_plan(prepared, report)
            plan = describe(prepared)
        print_outcome(plan, plan_lines(plan, output), as_json=as_json)
        return
    with advising(GO_ON), signal_first():
        published = run(request, report)
    recipe = request.options.recipe_file or request.options.recipe
    layout = {"merged": request.options.layout, "exported": TRANSFORMERS}.get(request.operation.status)
    if layout == ORIGINAL and request.options.recipe_file is not None:
        layout = None  # to export it takes that file again
    outcome = print_published(published, output, report, as_json=as_json, layout=layout, hub_repo_id=hub_repo_id)
    if output == "delta" and recipe is not None:
        report.note(f"apply it with   --recipe {shlex.quote(os.fspath(recipe))}")
    elif outcome.get("compute_dtype", "F16") != "F16":
        flags = f"--compute-dtype {request.options.compute_dtype}"
        known = "its manifest.json says so, too"
        report.note(f"apply it with   {flags}, and --dtype if the target's dtype is another ({known})")
