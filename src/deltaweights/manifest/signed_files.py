"""Compare files with those that a signature covers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from deltaweights.manifest.digests import Digests
from deltaweights.manifest.folder_check import FolderCheck
from deltaweights.manifest.folder_entries import A_LINK, UNSIGNED
from deltaweights.manifest.git_files import signed_git_files
from deltaweights.manifest.records import MANIFEST, SUMS, sums_bytes
from deltaweights.manifest.signer import Signer
from deltaweights.manifest.verify_report import EXTRA_FILE
from deltaweights.util import limits


@dataclass(frozen=True)
class SignedFiles:
    """The files that a verified signature covers: sha256 (hex) by name, and the names that it says it leaves out.

    ``key`` is the sha256 of the public key's PEM; where there is none, ``signer`` signed by Sigstore.
    """

    key: str | None
    digests: Mapping[str, str]
    ignored: frozenset[str] = frozenset()
    signer: Signer | None = None

    def __str__(self) -> str:
        return f"key {self.key}" if self.signer is None else str(self.signer)

    def leaves_out(self, name: str) -> bool:
        """Return whether its signer left ``name`` out. Our own documents cannot be left out: they vouch for the rest."""
        return name in self.ignored and name not in {MANIFEST, SUMS}


def with_documents(check: FolderCheck, files: Mapping[str, str]) -> dict[str, str]:
    """Return ``files``, sha256 by name, with manifest and sums: the given manifest stands for one that is not there."""
    digests = dict(files)
    if check.record is None or check.manifest is None:
        return digests
    if check.external is None:
        sums = check.read_sums() if check.is_result else None
        digests[MANIFEST] = check.record.sha256
    else:
        own = {name: check.source.read(name, limits.MANIFEST.size) for name in (MANIFEST, SUMS) if name in check.files}
        digests[MANIFEST] = hashlib.sha256(own[MANIFEST]).hexdigest() if MANIFEST in own else check.record.sha256
        sums = own.get(SUMS, sums_bytes(check.manifest.files, check.record.sha256))
    if sums is not None:
        digests[SUMS] = hashlib.sha256(sums).hexdigest()
    return digests


def compare_signed(check: FolderCheck, signed: SignedFiles, digests: Digests) -> None:
    """Compare the files that were read with those that a signature covers."""
    files = check.files
    found = dict.fromkeys(files - check.kept_inside, "a file that was not read")
    found |= with_documents(check, {name: each.sha256 for name, each in digests.files.items() if name in files})
    if check.source.only is not None:
        # What the signer left out is what the signed manifest says of it.
        names = {check.source.only} | ({MANIFEST} if check.source.only not in signed.digests else set())
        signed = replace(signed, digests={name: each for name, each in signed.digests.items() if name in names})
        found = {name: each for name, each in found.items() if name in names}
    elif check.is_listing:
        check.add_problem(check.title, "signatures cover results, not listings of other folders")
    else:
        for name in sorted(check.unread_folders | check.source.not_looked_at):
            if not signed.leaves_out(name) and name not in UNSIGNED:
                check.add_problem(name, "is not signed", "nobody looked at it: there is no manifest")
    for name, kind in check.source.entries.unsigned.items() if check.source.only is None else ():
        if kind == A_LINK or not signed.leaves_out(name):
            check.add_problem(name, "is not signed", kind)
    found |= signed_git_files(check.source, signed.digests)
    reported = {problem.file for problem in check.problems}
    for name in sorted((set(signed.digests) | set(found)) - reported):
        if name not in found:
            check.add_problem(name, "is signed, and missing")
        elif name not in signed.digests:
            if not signed.leaves_out(name):
                check.add_problem(name, "is not signed", EXTRA_FILE)
        elif found[name] != signed.digests[name]:
            check.add_problem(name, "is not what was signed", found[name], signed.digests[name])
