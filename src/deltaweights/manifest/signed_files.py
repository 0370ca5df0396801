"""A folder held against what somebody signed.

Enters: the digests that a signature vouches for, and those of the files. Leaves: problems. Never: a key, or a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deltaweights.manifest.verify_report import Problem


@dataclass(frozen=True)
class SignedFiles:
    """What a signature that was proved right vouches for: sha256 (hex) by file name. ``key`` is the sha256 of the key's PEM."""

    key: str
    digests: Mapping[str, str]


def hold_signed(signed: SignedFiles, found: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what differs between the signed files and those that were ``found``, sha256 by name."""
    for name in sorted(set(signed.digests) | set(found)):
        if name not in found:
            yield Problem(name, "is signed, and not there as it was signed")
        elif name not in signed.digests:
            yield Problem(name, "is not signed", "an extra file")
        elif found[name] != signed.digests[name]:
            yield Problem(name, "is not what was signed", found[name], signed.digests[name])
