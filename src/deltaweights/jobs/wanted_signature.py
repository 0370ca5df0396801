"""A signature that must be there, of a folder or of a model of the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deltaweights.errors import UsageError
from deltaweights.hub.ids import PREFIX, hub_id
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.signing.folder import SIGNATURE, read_keyless_signature, read_signature

if TYPE_CHECKING:
    from deltaweights.hub.locate import HubOptions


@dataclass(frozen=True, kw_only=True)
class WantedSignature:
    """A signature by ``public_key`` (a file, or the PEM itself), or by ``identity`` of ``issuer``; ``signature`` is its file.

    ``trust_config`` is the file with the keys of another instance of Sigstore than the public one.
    """

    public_key: str | bytes | None = None
    identity: str | None = None
    issuer: str | None = None
    signature: str | None = None
    trust_config: str | None = None

    def read(self, model: str | Path, hub: HubOptions | None = None) -> tuple[str | Path, SignedFiles]:
        """Return what to verify, at the commit of the signature, and what that covers. Raises ``CheckFailed``, ``UsageError``."""
        if self.signature is None and Path(model).is_file():
            problem, remedy = "a signature is of a folder", "say where it is: --signature FILE"
            raise UsageError(problem, found=model, remedy=remedy)
        if isinstance(model, Path) or hub_id(model) is None or self.signature is not None:
            return model, self._read(model, self.signature, hub)
        from deltaweights.hub.locate import HubOptions  # noqa: PLC0415  (slow to load)
        from deltaweights.jobs.download import download  # noqa: PLC0415  (slow to load)

        options = hub or HubOptions()
        with TemporaryDirectory() as scratch:
            into = scratch if options.stream else None
            (found,) = download(model, include=[SIGNATURE], local_dir=into, options=replace(options, stream=False))
            pinned = f"{PREFIX}{found.repo}@{found.commit}"
            return pinned, self._read(model, Path(found.path, SIGNATURE), hub)

    def _read(self, model: str | Path, signature: str | os.PathLike[str] | None, hub: HubOptions | None) -> SignedFiles:
        if self.public_key is not None:
            return read_signature(model, self.public_key, signature)
        identity, issuer = self.identity or "", self.issuer or ""
        offline, trust = hub is not None and hub.offline, self.trust_config
        return read_keyless_signature(model, identity, issuer, trust_config=trust, offline=offline, signature=signature)
