"""``deltaweights sign``."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from deltaweights.cli.command import Command, flag
from deltaweights.cli.log_report import log_format_option, report_for
from deltaweights.cli.options import json_option, quiet_option, trust_config_option
from deltaweights.cli.output import print_outcome
from deltaweights.cli.values import FILE, FOLDER
from deltaweights.errors import UsageError
from deltaweights.manifest.records import MANIFEST, SUMS
from deltaweights.util.text import counted

EXAMPLES = (
    "deltaweights sign merged --private-key key.pem",
    "deltaweights sign merged --sigstore",
)


@click.command("sign", cls=Command, examples=EXAMPLES)
@click.argument("folder", metavar="DIR", type=FOLDER)
@flag("Inputs", "--private-key", metavar="FILE", type=FILE, help="An elliptic-curve key in PEM.")
@flag("Inputs", "--password-env", metavar="NAME", help="The environment variable that holds the key's password.")
@flag(
    "Inputs",
    "--sigstore",
    is_flag=True,
    help="Sign without a key: by Sigstore, as who you log in as, or as the CI job.",
)
@flag(
    "Inputs",
    "--identity-token",
    metavar="TOKEN",
    envvar="SIGSTORE_IDENTITY_TOKEN",
    help="With --sigstore: the OIDC token of who signs [default: SIGSTORE_IDENTITY_TOKEN, that of the CI job, or a login].",
)
@trust_config_option
@flag("Output", "--signature", metavar="FILE", type=FILE, help="Where to write the signature [default: DIR/model.sig].")
@flag("Checks", "--rehash", is_flag=True, help="Verify the folder first: reads all files.")
@json_option
@quiet_option
@log_format_option
def command(
    folder: str,
    *,
    private_key: str | None,
    password_env: str | None,
    sigstore: bool,
    identity_token: str | None,
    trust_config: str | None,
    signature: str | None,
    rehash: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Sign a result: write a bundle of OpenSSF Model Signing that vouches for every file.

    The digests of the manifest are signed; names and sizes are compared, bytes only with --rehash. Verify the signature with
    `deltaweights verify --public-key` (with --sigstore: `--identity` and `--issuer`), or with the program of OpenSSF
    (`pip install model-signing`): `python -m model_signing verify key` (`sigstore`).
    """
    from deltaweights.manifest.verify import verify  # noqa: PLC0415  (slow to load, so not for --help)
    from deltaweights.signing.folder import sign_folder, sign_keyless  # noqa: PLC0415

    if (private_key is None) != sigstore:
        raise UsageError("give either --private-key or --sigstore", remedy="to make a key, see docs/signing.md")
    if sigstore and password_env is not None:
        raise UsageError("--password-env says nothing without a key", remedy="leave it out")
    if not sigstore and trust_config is not None:
        raise UsageError("--trust-config says nothing without --sigstore", remedy="leave it out")
    report = report_for("deltaweights", quiet=quiet)
    password = None
    if password_env is not None:
        if password_env not in os.environ:
            raise UsageError("no such variable", found=password_env, remedy="export the key's password in it")
        password = os.environ[password_env].encode()
    if rehash:
        verify(folder, report=report).raise_if_failed()
    if private_key is not None:
        done = sign_folder(folder, private_key, signature=signature, password=password)
        who = f"key             {done.key}"
    else:
        done = sign_keyless(folder, identity_token=identity_token, trust_config=trust_config, signature=signature)
        who = f"signed by       {done.identity} ({done.issuer})"
    lines = [
        f"signed          {done.target}: {counted(done.files, 'file')}, {MANIFEST} and {SUMS}",
        f"signature       {done.signature}",
        who,
        f"content digest  {done.content_digest}",
    ]
    print_outcome(asdict(done), [] if quiet else lines, as_json=as_json)
