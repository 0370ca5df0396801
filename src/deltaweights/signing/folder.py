"""Signing a result, and reading its signature. Weights are not read here: ``verify`` compares them with what was signed."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from deltaweights.checkpoint.small_files import read_small
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, TargetBusy, UsageError
from deltaweights.manifest.folder_entries import UNSIGNED
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.verify import digests_to_sign
from deltaweights.signing.bundle import Bundle, pae, parse_bundle
from deltaweights.signing.statement import parse_statement, statement_bytes
from deltaweights.util.limits import BUNDLE
from deltaweights.util.open_folder import remove_file, replace_file
from deltaweights.util.text import short_repr

SIGNATURE = "model.sig"


@dataclass(frozen=True, kw_only=True)
class SignResult:
    """What was signed. ``key`` is the sha256 (hex) of the public key's PEM.

    ``files`` counts what the manifest lists, as that of ``verify`` does; the manifest and ``SHA256SUMS`` are signed as well.
    """

    target: str
    signature: str
    key: str
    files: int
    content_digest: str

    def __repr__(self) -> str:
        return short_repr(self, target=self.target, files=self.files, key=self.key, content_digest=self.content_digest)


def sign_folder(
    folder: str | os.PathLike[str],
    private_key: str | os.PathLike[str],
    *,
    signature: str | os.PathLike[str] | None = None,
    password: bytes | None = None,
) -> SignResult:
    """Sign the manifest of ``folder`` and all files in it; write ``signature`` (``folder/model.sig`` by default).

    Names and sizes of all files are compared with the manifest. Their bytes are not read: ``verify`` the folder first. Raises
    ``CheckFailed`` when they differ, ``TargetBusy`` when another file is at ``signature``, and the errors of ``load_private``.
    """
    _require_cryptography()
    from deltaweights.signing.keys import load_private  # noqa: PLC0415

    root = Path(folder)
    key = load_private(Path(private_key), password)
    path = root / SIGNATURE if signature is None else Path(signature)
    if path.parent.resolve() == root.resolve() and path.name != SIGNATURE:
        problem = "a signature under another name would be an extra file in the folder"
        raise CheckFailed(problem, where=path, expected=SIGNATURE, remedy="write it there, or outside of the folder")
    _check_replaceable(path)
    _remove_leftovers(path)
    manifest, digests = digests_to_sign(root)
    digest, name = manifest.content_digest, key.public.name
    payload = statement_bytes(digest, digests, UNSIGNED)
    replace_file(path, Bundle(payload, key.sign(pae(payload)), name).to_bytes())
    return SignResult(target=str(root), signature=str(path), key=name, files=len(manifest.files), content_digest=digest)


def read_signature(
    folder: str | os.PathLike[str],
    public_key: str | os.PathLike[str],
    signature: str | os.PathLike[str] | None = None,
) -> SignedFiles:
    """Return the files that ``signature`` (``folder/model.sig`` by default) covers, once ``public_key`` has verified it.

    Raises ``CheckFailed`` when there is no valid signature by this key, and the errors of ``load_public``.
    """
    _require_cryptography()
    from deltaweights.signing.keys import load_public  # noqa: PLC0415

    key = load_public(Path(public_key))
    path = Path(folder) / SIGNATURE if signature is None else Path(signature)
    remedy = "do not trust this folder: get folder and signature again from the signer"
    try:
        bundle = parse_bundle(read_small(path, BUNDLE.size))
    except (InputOutputError, MalformedInput) as error:
        problem, code = f"no signature to verify: {error}", ErrorCode.NO_SIGNATURE
        raise CheckFailed(problem, remedy=remedy, code=code) from error
    except ValueError as error:
        code = ErrorCode.NO_SIGNATURE
        raise CheckFailed("not a signature", where=path, found=error, remedy=remedy, code=code) from None
    if bundle.key not in {"", key.name}:
        raise CheckFailed(
            "signed with another key",
            where=path,
            found=f"key {bundle.key}",
            expected=key.name,
            remedy=remedy,
            code=ErrorCode.NO_SIGNATURE,
        )
    if not key.verifies(pae(bundle.payload), bundle.signature):
        code = ErrorCode.NO_SIGNATURE
        raise CheckFailed("the signature does not match", where=path, remedy=remedy, code=code)
    try:
        return SignedFiles(key.name, parse_statement(bundle.payload))
    except ValueError as error:
        raise CheckFailed("the signed statement is not about a model", where=path, found=error, remedy=remedy) from None


def _require_cryptography() -> None:
    if find_spec("cryptography") is None:
        problem, remedy = "signatures need the package cryptography", "pip install 'deltaweights[sign]'"
        raise UsageError(problem, remedy=remedy, code=ErrorCode.MISSING_PACKAGE)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of a ``sign`` that was killed: in the folder they would be extra files."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.new"):
        if re.fullmatch("[0-9a-f]{16}", left.suffixes[-2].removeprefix(".")):
            remove_file(left)


def _check_replaceable(path: Path) -> None:
    """Raise ``TargetBusy`` unless ``path`` is free or holds a signature in our format."""
    problem, remedy = "this is not a signature, so it is not replaced", "move it away"
    if path.is_symlink():
        raise TargetBusy(problem, where=path, found="a link", remedy=remedy)
    if not path.exists():
        return
    try:
        parse_bundle(read_small(path, BUNDLE.size))
    except (InputOutputError, MalformedInput, ValueError) as error:
        raise TargetBusy(problem, where=path, found=error, remedy=remedy) from None
