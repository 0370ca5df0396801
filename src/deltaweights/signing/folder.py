"""Signing a result, and reading its signature. Weights are not read here: ``verify`` compares them with what was signed."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.small_files import read_small
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, TargetBusy, UsageError
from deltaweights.manifest.folder_entries import UNSIGNED
from deltaweights.manifest.parse import Manifest
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.signer import Signer
from deltaweights.manifest.verify import digests_to_sign
from deltaweights.signing.bundle import Bundle, check_keyless, is_keyless, pae, parse_bundle
from deltaweights.signing.statement import Statement, parse_statement, statement_bytes
from deltaweights.util.extras import require
from deltaweights.util.limits import BUNDLE
from deltaweights.util.open_folder import remove_file, replace_file
from deltaweights.util.text import short_repr

SIGNATURE = "model.sig"
BY_KEY = ("cryptography",)
"""What signatures by keys need of the extra; keyless ones need all of it."""

DO_NOT_TRUST = "do not trust this folder: get folder and signature again from the signer"


@dataclass(frozen=True, kw_only=True)
class SignResult:
    """What was signed. ``key`` is the sha256 (hex) of the public key's PEM; keyless, ``identity`` and ``issuer`` say who signed.

    ``files`` counts what the manifest lists, as that of ``verify`` does; the manifest and ``SHA256SUMS`` are signed as well.
    """

    target: str
    signature: str
    key: str | None = None
    identity: str | None = None
    issuer: str | None = None
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

    >>> from deltaweights import sign_folder
    >>> sign_folder("merged", "private.pem").signature
    'merged/model.sig'
    """
    require("sign", "a signature", modules=BY_KEY)
    from deltaweights.signing.keys import load_private  # noqa: PLC0415

    root = Path(folder)
    key = load_private(Path(private_key), password)
    path = _place(root, signature)
    manifest, payload = _payload(root)
    name = key.public.name
    replace_file(path, Bundle(payload, key.sign(pae(payload)), name).to_bytes())
    return _result(root, path, manifest, key=name)


def sign_keyless(
    folder: str | os.PathLike[str],
    *,
    identity_token: str | None = None,
    trust_config: str | os.PathLike[str] | None = None,
    signature: str | os.PathLike[str] | None = None,
) -> SignResult:
    """Sign as ``sign_folder`` does, by Sigstore: as who ``identity_token`` is for, else the CI job, else who logs in.

    ``trust_config`` is the file with services and keys of another instance of Sigstore than the public one. Identity and digest are
    entered in the instance's log, for everybody. Raises the errors of ``sign_folder``, ``UsageError`` where there is no identity,
    ``InputOutputError`` when a service cannot be reached, or refuses.

    >>> from deltaweights import sign_keyless
    >>> sign_keyless("merged").identity  # doctest: +SKIP
    'somebody@example.org'
    """
    require("sign", "a signature")
    root = Path(folder)
    path = _place(root, signature)
    manifest, payload = _payload(root)  # before anybody has to log in
    from deltaweights.signing.keyless import sign_statement  # noqa: PLC0415

    trust = None if trust_config is None else Path(trust_config)
    bundle, signer = sign_statement(payload, identity_token=identity_token, trust_config=trust)
    replace_file(path, bundle)
    return _result(root, path, manifest, identity=signer.identity, issuer=signer.issuer)


def read_signature(
    folder: str | os.PathLike[str],
    public_key: str | os.PathLike[str] | bytes,
    signature: str | os.PathLike[str] | None = None,
) -> SignedFiles:
    """Return the files that ``signature`` (``folder/model.sig`` by default) covers, once ``public_key`` has verified it.

    ``public_key`` is a file in PEM, or, as bytes, the PEM itself. Raises ``CheckFailed`` when there is no valid signature by this
    key, and the errors of ``load_public``.

    >>> from deltaweights import read_signature, verify
    >>> verify("merged", signed=read_signature("merged", "public.pem")).ok
    True
    """
    require("sign", "a signature", modules=BY_KEY)
    from deltaweights.signing.keys import load_public, parse_public  # noqa: PLC0415

    key = parse_public(public_key) if isinstance(public_key, bytes) else load_public(Path(public_key))
    path = Path(folder) / SIGNATURE if signature is None else Path(signature)
    data = _read(path)
    if is_keyless(data):
        expected, remedy = (
            f"one by key {key.name}",
            "give --identity and --issuer of who signed, in place of --public-key",
        )
        raise _refused("signed by an identity, not by a key", path, expected=expected, remedy=remedy)
    try:
        bundle = parse_bundle(data)
    except ValueError as error:
        raise _refused("not a signature", path, found=error) from None
    if bundle.key not in {"", key.name}:
        raise _refused("signed with another key", path, found=f"key {bundle.key}", expected=key.name)
    if not key.verifies(pae(bundle.payload), bundle.signature):
        raise _refused("the signature does not match", path)
    statement = _statement(bundle.payload, path)
    return SignedFiles(key.name, statement.digests, statement.ignored)


def read_keyless_signature(
    folder: str | os.PathLike[str],
    identity: str,
    issuer: str,
    *,
    trust_config: str | os.PathLike[str] | None = None,
    offline: bool = False,
    signature: str | os.PathLike[str] | None = None,
) -> SignedFiles:
    """Return the files that ``signature`` covers, once Sigstore's library has verified that ``identity`` of ``issuer`` signed them.

    ``offline`` trusts the keys that came with the library, or were fetched last. Raises ``CheckFailed`` when there is no valid
    signature by this identity, ``InputOutputError`` when the trusted keys cannot be refreshed.

    >>> from deltaweights import read_keyless_signature, verify
    >>> signed = read_keyless_signature("merged", "me@example.org", "https://accounts.example.org")  # doctest: +SKIP
    >>> verify("merged", signed=signed).ok  # doctest: +SKIP
    True
    """
    if not (identity and issuer):
        problem = "an empty identity or issuer says nothing of who signed"
        raise UsageError(problem, found=f"{identity!r}, {issuer!r}", remedy="is a variable unset?")
    require("sign", "a signature")
    path = Path(folder) / SIGNATURE if signature is None else Path(signature)
    signer, trust = Signer(identity, issuer), None if trust_config is None else Path(trust_config)
    data = _read(path)
    try:
        parse_bundle(data)
    except ValueError:
        pass
    else:
        remedy = "give --public-key of who signed, in place of --identity"
        raise _refused("signed by a key, not by an identity", path, expected=f"one by {signer}", remedy=remedy)
    try:
        check_keyless(data)
    except ValueError as error:
        raise _refused("not a signature", path, found=error) from None
    from deltaweights.signing.keyless import NotVerified, verified_payload  # noqa: PLC0415

    try:
        payload = verified_payload(data, signer, trust_config=trust, offline=offline)
    except NotVerified as error:
        raise _refused("the signature does not hold", path, found=error, expected=f"one by {signer}") from error
    statement = _statement(payload, path)
    return SignedFiles(None, statement.digests, statement.ignored, signer)


def _place(root: Path, signature: str | os.PathLike[str] | None) -> Path:
    """Return where to write a signature, once it is clear that nothing else is there."""
    path = root / SIGNATURE if signature is None else Path(signature)
    if path.parent.resolve() == root.resolve() and path.name != SIGNATURE:
        problem = "a signature under another name would be an extra file in the folder"
        raise CheckFailed(problem, where=path, expected=SIGNATURE, remedy="write it there, or outside of the folder")
    _check_replaceable(path)
    _remove_leftovers(path)
    return path


def _payload(root: Path) -> tuple[Manifest, bytes]:
    """Return the manifest and the statement to sign."""
    manifest, digests = digests_to_sign(root)
    return manifest, statement_bytes(manifest.content_digest, digests, UNSIGNED)


def _result(root: Path, path: Path, manifest: Manifest, **who: str) -> SignResult:
    digest = manifest.content_digest
    return SignResult(target=str(root), signature=str(path), files=len(manifest.files), content_digest=digest, **who)


def _read(path: Path) -> bytes:
    try:
        return read_small(path, BUNDLE.size)
    except (InputOutputError, MalformedInput) as error:
        problem, code = f"no signature to verify: {error}", ErrorCode.NO_SIGNATURE
        raise CheckFailed(problem, remedy=DO_NOT_TRUST, code=code) from error


def _statement(payload: bytes, path: Path) -> Statement:
    try:
        return parse_statement(payload)
    except ValueError as error:
        problem = "the signed statement is not about a model"
        raise CheckFailed(problem, where=path, found=error, remedy=DO_NOT_TRUST) from None


def _refused(
    problem: str, path: Path, *, found: object = None, expected: str | None = None, remedy: str | None = None
) -> CheckFailed:
    remedy, code = remedy or DO_NOT_TRUST, ErrorCode.NO_SIGNATURE
    return CheckFailed(problem, where=path, found=found, expected=expected, remedy=remedy, code=code)


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
        data = read_small(path, BUNDLE.size)
        if not is_keyless(data):
            parse_bundle(data)
    except (InputOutputError, MalformedInput, ValueError) as error:
        raise TargetBusy(problem, where=path, found=error, remedy=remedy) from None
