"""Who signed without a key of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signer:
    """An identity (an address, or the URL of a workflow), and the issuer (a URL) who vouches that it is theirs."""

    identity: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.identity} ({self.issuer})"
