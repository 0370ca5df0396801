"""``deltaweights finish``."""

from __future__ import annotations

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import json_option, option, quiet_option
from deltaweights.cli.output import print_finished
from deltaweights.cli.values import FOLDER
from deltaweights.util.interruption import GO_ON, advising

EXAMPLES = (
    "deltaweights apply llava-med-7b --target merged --part 1/2",
    "deltaweights apply llava-med-7b --target merged --part 2/2",
    "deltaweights finish --target merged",
)


@click.command("finish", cls=Command, examples=EXAMPLES)
@flag("Inputs", "--target", required=True, metavar="PATH", type=FOLDER, help="The target of the parts.")
@option("overwrite")
@option("strict")
@option("allow_unproved_base")
@option("read_back")
@option("check")
@json_option
@quiet_option
@log_format_option
def command(target: str, *, as_json: bool, quiet: bool, **options: bool) -> None:
    """Publish what `apply --part` has written: check that no shard is missing, and write index, manifest and checksums.

    The result is what one process would have written, byte for byte. No weights are read. Exit 6 when a part is missing, 7 while
    one is running, 0 also when it was published before.
    """
    from deltaweights.cluster.finish import finish_parts  # noqa: PLC0415  (slow to load, so not for --help)

    report = report_for("deltaweights", quiet=quiet)
    with advising(f"the shards are kept; {GO_ON}"):
        published = finish_parts(target, report=report, **options)
    print_finished(published, target, report, as_json=as_json)
