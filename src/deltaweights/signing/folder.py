"""Signing a result, and reading a signature.

Enters: a folder with its manifest, and a key. Leaves: a signature beside the weights, or the digests that one vouches for. Never: a
weight read; what the manifest states of files is signed, and whoever verifies reads them.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, TargetBusy
from deltaweights.manifest.entries import UNSIGNED
from deltaweights.manifest.signed import Signed
from deltaweights.manifest.verify import listed
from deltaweights.signing.bundle import Bundle, pae, parse_bundle
from deltaweights.signing.keys import load_private, load_public
from deltaweights.signing.statement import parse_statement, statement_bytes
from deltaweights.util.limits import BUNDLE
from deltaweights.util.open_folder import remove_file, replace_file

SIGNATURE = "model.sig"


@dataclass(frozen=True, kw_only=True)
class SignResult:
    """A signature in the file ``signature``, of so many ``files``, by the key whose PEM has the sha256 ``key``."""

    target: str
    signature: str
    key: str
    files: int
    content_digest: str


def sign_folder(
    folder: str | os.PathLike[str],
    private_key: str | os.PathLike[str],
    *,
    signature: str | os.PathLike[str] | None = None,
    password: bytes | None = None,
) -> SignResult:
    """Sign what the manifest of ``folder`` states, and the manifest; write ``signature`` (``folder/model.sig`` unless given).

    Names and sizes of all files are compared with the manifest, their bytes are not read: ``verify`` the folder before, or make
    it. Raises ``CheckFailed`` when they differ, ``TargetBusy`` when something else is at ``signature``, and what reading the key
    raises.
    """
    root = Path(folder)
    key = load_private(Path(private_key), password)
    path = root / SIGNATURE if signature is None else Path(signature)
    if path.parent.resolve() == root.resolve() and path.name != SIGNATURE:
        problem = "a signature under another name would be an extra file of the folder"
        raise CheckFailed(problem, where=path, expected=SIGNATURE, remedy="write it there, or outside of the folder")
    _refuse_other(path)
    _remove_unfinished(path)
    manifest, digests = listed(root)
    payload = statement_bytes(manifest.content_digest, digests, UNSIGNED)
    replace_file(path, Bundle(payload, key.sign(pae(payload)), key.public.name).to_bytes())
    return SignResult(
        target=str(root),
        signature=str(path),
        key=key.public.name,
        files=len(digests),
        content_digest=manifest.content_digest,
    )


def read_signature(
    folder: str | os.PathLike[str],
    public_key: str | os.PathLike[str],
    signature: str | os.PathLike[str] | None = None,
) -> Signed:
    """Return what ``signature`` (``folder/model.sig`` unless given) vouches for, if ``public_key`` says it is right.

    Raises ``CheckFailed`` when there is none, it is by another key or was tampered with; and what reading the key raises.
    """
    key = load_public(Path(public_key))
    path = Path(folder) / SIGNATURE if signature is None else Path(signature)
    remedy = "do not trust this folder: get folder and signature again from whoever signed them"
    try:
        bundle = parse_bundle(read_small(path, BUNDLE.size))
    except (InputOutputError, MalformedInput) as error:
        raise CheckFailed(f"no signature to verify: {error}", remedy=remedy) from error
    except ValueError as error:
        raise CheckFailed("not a signature", where=path, found=error, remedy=remedy) from None
    other = bool(bundle.key) and bundle.key != key.name
    if other or not key.signed(pae(bundle.payload), bundle.signature):
        problem = "signed with another key" if other else "the signature does not match"
        found, expected = (f"key {bundle.key}", key.name) if other else (None, None)
        raise CheckFailed(problem, where=path, found=found, expected=expected, remedy=remedy)
    try:
        return Signed(key.name, parse_statement(bundle.payload))
    except ValueError as error:
        raise CheckFailed(
            "the signed statement is not one of a model", where=path, found=error, remedy=remedy
        ) from None


def _remove_unfinished(path: Path) -> None:
    """Remove what a ``sign`` that was killed left beside its signature: an extra file of the folder, otherwise."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.new"):
        if re.fullmatch("[0-9a-f]{16}", left.suffixes[-2].removeprefix(".")):
            remove_file(left)


def _refuse_other(path: Path) -> None:
    """Raise ``TargetBusy`` unless ``path`` is free, or holds a signature of this kind."""
    problem, remedy = "something that is no signature is there", "move it away"
    if path.is_symlink():
        raise TargetBusy(problem, where=path, found="a link", remedy=remedy)
    if not path.exists():
        return
    try:
        parse_bundle(read_small(path, BUNDLE.size))
    except (InputOutputError, MalformedInput, ValueError) as error:
        raise TargetBusy(problem, where=path, found=error, remedy=remedy) from None
