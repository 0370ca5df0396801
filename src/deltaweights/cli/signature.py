"""The options that name a signature and who must have made it."""

from __future__ import annotations

from dataclasses import dataclass

import click

from deltaweights.cli.options import group, trust_config_option
from deltaweights.errors import UsageError
from deltaweights.manifest.folder_check import SignedFiles
from deltaweights.util.text import Json

signature_options = group(
    click.option(
        "--public-key", metavar="FILE", help="The key whose signature must be right, and vouch for every file."
    ),
    click.option(
        "--identity", metavar="NAME", help="Who must have signed by Sigstore: an address, or a workflow's URL."
    ),
    click.option("--issuer", metavar="URL", help="Who vouches for --identity: https://github.com/login/oauth, say."),
    click.option("--signature", metavar="FILE", help="The signature [default: DIR/model.sig]."),
    trust_config_option,
)


@dataclass(frozen=True, kw_only=True)
class WantedSignature:
    """A signature that must be there: by a key, or by an identity."""

    public_key: str | None
    identity: str | None
    issuer: str | None
    signature: str | None
    trust_config: str | None

    def read(self, folder: str, *, offline: bool = False) -> SignedFiles:
        """Return what the signature covers, once it is verified. Raises ``CheckFailed``."""
        from deltaweights.signing.folder import read_keyless_signature, read_signature  # noqa: PLC0415  (slow to load)

        if self.public_key is not None:
            return read_signature(folder, self.public_key, self.signature)
        trust = self.trust_config
        return read_keyless_signature(
            folder,
            self.identity or "",
            self.issuer or "",
            trust_config=trust,
            offline=offline,
            signature=self.signature,
        )


def signature_wanted(
    *,
    public_key: str | None,
    identity: str | None,
    issuer: str | None,
    signature: str | None,
    trust_config: str | None,
) -> WantedSignature | None:
    """Return the signature that the options ask for, if they do. Raises ``UsageError`` for those that make no sense together."""
    if (identity is None) != (issuer is None):
        missing = "--issuer" if issuer is None else "--identity"
        raise UsageError("--identity and --issuer say nothing without each other", remedy=f"give {missing}, too")
    if public_key is not None and identity is not None:
        raise UsageError("a signature is by a key or by an identity", remedy="leave --public-key or --identity out")
    if identity is None and trust_config is not None:
        raise UsageError("--trust-config says nothing without an identity", remedy="give --identity and --issuer, too")
    if public_key is None and identity is None:
        if signature is not None:
            remedy = "give --public-key, or --identity and --issuer, too"
            raise UsageError("--signature says nothing without a key or an identity", remedy=remedy)
        return None
    return WantedSignature(
        public_key=public_key, identity=identity, issuer=issuer, signature=signature, trust_config=trust_config
    )


def signed_by(signed: SignedFiles | None) -> dict[str, Json]:
    """Return who signed, for a JSON document: a key's sha256, or an identity and its issuer."""
    if signed is None:
        return {}
    if signed.signer is None:
        return {"signed_by": signed.key}
    return {"signed_by": signed.signer.identity, "issuer": signed.signer.issuer}
