"""The options that name a signature and who must have made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltaweights.cli.command import flag
from deltaweights.cli.options import group, trust_config_option
from deltaweights.cli.values import FILE
from deltaweights.errors import UsageError
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.util.text import Json

if TYPE_CHECKING:
    from deltaweights.jobs.wanted_signature import WantedSignature

signature_options = group(
    flag(
        "Checks",
        "--public-key",
        metavar="FILE",
        type=FILE,
        help="The key whose signature must be right, and vouch for every file.",
    ),
    flag(
        "Checks",
        "--identity",
        metavar="NAME",
        help="Who must have signed by Sigstore: an address, or a workflow's URL.",
    ),
    flag("Checks", "--issuer", metavar="URL", help="Who vouches for --identity: https://github.com/login/oauth, say."),
    flag("Checks", "--signature", metavar="FILE", type=FILE, help="The signature [default: DIR/model.sig]."),
    trust_config_option,
)


def signature_wanted(options: dict[str, Any]) -> WantedSignature | None:
    """Remove the options of a signature from ``options``, and return what they ask for, if they do.

    Raises ``UsageError`` for those that make no sense together.
    """
    names = ("public_key", "identity", "issuer", "signature", "trust_config")
    given = {name: options.pop(name) for name in names}
    public_key, identity, issuer = (given[name] for name in names[:3])
    if (identity is None) != (issuer is None):
        missing = "--issuer" if issuer is None else "--identity"
        raise UsageError("--identity and --issuer say nothing without each other", remedy=f"give {missing}, too")
    if public_key is not None and identity is not None:
        raise UsageError("a signature is by a key or by an identity", remedy="leave --public-key or --identity out")
    if identity is None and given["trust_config"] is not None:
        raise UsageError("--trust-config says nothing without an identity", remedy="give --identity and --issuer, too")
    if public_key is None and identity is None:
        if given["signature"] is not None:
            remedy = "give --public-key, or --identity and --issuer, too"
            raise UsageError("--signature says nothing without a key or an identity", remedy=remedy)
        return None
    from deltaweights.jobs.wanted_signature import WantedSignature  # noqa: PLC0415  (slow to load)

    return WantedSignature(**given)


def signed_by(signed: SignedFiles | None) -> dict[str, Json]:
    """Return who signed, for a JSON document: a key's sha256, or an identity and its issuer."""
    if signed is None:
        return {}
    if signed.signer is None:
        return {"signed_by": signed.key}
    return {"signed_by": signed.signer.identity, "issuer": signed.signer.issuer}
