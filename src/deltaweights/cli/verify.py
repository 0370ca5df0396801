"""``deltaweights verify``.

Enters: a folder and pins. Leaves: what does not hold, and an exit code that says whether anything does not. Never: torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from deltaweights.errors import CheckFailed
from deltaweights.manifest.problems import VerifyReport
from deltaweights.manifest.verify import verify
from deltaweights.sizes import human_bytes
from deltaweights.text import counted, printable


@click.command("verify")
@click.argument("folder", metavar="DIR")
@click.option(
    "--expect", metavar="dw1:...", help="The content digest to expect; recomputed from the bytes of all tensors."
)
@click.option("--expect-manifest", metavar="SHA256", help="The sha256 of manifest.json to expect.")
@click.option("--workers", type=click.IntRange(min=1), help="Files read at once [default: one per processor].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when everything holds.")
def command(
    folder: str, *, expect: str | None, expect_manifest: str | None, workers: int | None, as_json: bool, quiet: bool
) -> None:
    """Check a merged checkpoint against its manifest or a pinned digest.

    Every file is read and compared with manifest.json; changed, missing and extra files are reported, all of them. Exit 0: all
    holds; 6: something does not.
    """
    report = verify(folder, expect=expect, expect_manifest=expect_manifest, workers=workers)
    if as_json:
        click.echo(json.dumps({"ok": report.ok, **asdict(report)}, indent=2))
    elif not report.ok:
        for problem in report.problems:
            click.echo(f"FAILED          {problem}")
    elif not quiet:
        click.echo("\n".join(map(printable, _lines(report))))
    if not report.ok:
        raise CheckFailed(
            counted(len(report.problems), "problem"),
            where=folder,
            remedy="do not use these weights: merge or fetch them again",
        )


def _lines(report: VerifyReport) -> list[str]:
    how = "recomputed from the bytes" if report.recomputed else "as the manifest states"
    return [
        f"verified        {report.target}",
        f"files           {report.files} ({human_bytes(report.bytes)})",
        f"content digest  {report.content_digest} ({how})",
        f"manifest        sha256 {report.manifest_sha256}",
    ]
