"""``deltaweights sign``."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import json_option, quiet_option
from deltaweights.cli.output import print_outcome
from deltaweights.errors import UsageError
from deltaweights.manifest.records import MANIFEST, SUMS
from deltaweights.util.text import counted


@click.command("sign")
@click.argument("folder", metavar="DIR")
@click.option("--private-key", required=True, metavar="FILE", help="An elliptic-curve key in PEM.")
@click.option("--password-env", metavar="NAME", help="The environment variable that holds the key's password.")
@click.option("--signature", metavar="FILE", help="Where to write the signature [default: DIR/model.sig].")
@click.option("--rehash", is_flag=True, help="Verify the folder first: reads all files.")
@json_option
@quiet_option
@log_format_option
def command(
    folder: str,
    *,
    private_key: str,
    password_env: str | None,
    signature: str | None,
    rehash: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Sign a result: write a bundle of OpenSSF Model Signing that vouches for every file.

    The digests of the manifest are signed; names and sizes are compared, bytes only with --rehash. Verify the signature with
    `deltaweights verify --public-key` or `python -m model_signing verify key`.
    """
    from deltaweights.manifest.verify import verify  # noqa: PLC0415  (slow to load, so not for --help)
    from deltaweights.signing.folder import sign_folder  # noqa: PLC0415

    report = report_for("deltaweights", quiet=quiet)
    password = None
    if password_env is not None:
        if password_env not in os.environ:
            raise UsageError("no such variable", found=password_env, remedy="export the key's password in it")
        password = os.environ[password_env].encode()
    if rehash:
        verify(folder, report=report).raise_if_failed()
    done = sign_folder(folder, private_key, signature=signature, password=password)
    lines = [
        f"signed          {done.target}: {counted(done.files, 'file')}, {MANIFEST} and {SUMS}",
        f"signature       {done.signature}",
        f"key             {done.key}",
        f"content digest  {done.content_digest}",
    ]
    print_outcome(asdict(done), [] if quiet else lines, as_json=as_json)
