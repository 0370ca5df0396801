"""Keys on elliptic curves, in PEM files.

Enters: the path of a key, and bytes. Leaves: a signature, or whether one is right. Never: a key in a message, or ``cryptography``
before somebody signs.

As OpenSSF Model Signing has it: P-256 with SHA-256, P-384 with SHA-384, P-521 with SHA-512.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import MalformedInput, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        EllipticCurve,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

MAX_KEY = 64 * 1024
EXPECTED = "an elliptic-curve key (P-256, P-384 or P-521) in PEM"
MAKE = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


@dataclass(frozen=True)
class PublicKey:
    """Who says so. ``name`` is the sha256 (hex) of the key's PEM, as bundles have it."""

    key: EllipticCurvePublicKey

    @property
    def name(self) -> str:
        """The sha256 of the key in PEM, SubjectPublicKeyInfo."""
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  (only who signs needs it)

        pem = self.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(pem).hexdigest()

    def signed(self, data: bytes, signature: bytes) -> bool:
        """Tell whether ``signature`` (DER) of ``data`` was made with this key's other half."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  (see above)

        try:
            self.key.verify(signature, data, _ecdsa(self.key.curve))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """Who signs."""

    key: EllipticCurvePrivateKey

    @property
    def public(self) -> PublicKey:
        """The half that others have."""
        return PublicKey(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Return the signature (DER) of ``data``, always the same one (RFC 6979) where OpenSSL can do that."""
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  (see above)

        try:
            return self.key.sign(data, _ecdsa(self.key.curve, same=True))
        except UnsupportedAlgorithm:
            return self.key.sign(data, _ecdsa(self.key.curve))


def load_private(path: Path, password: bytes | None = None) -> PrivateKey:
    """Read a private key.

    Raises ``UsageError`` where it is encrypted without ``password``, or ``cryptography`` is missing; ``MalformedInput`` when it
    is no key, ``InputOutputError``.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415  (see above)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    data = read_small(path, MAX_KEY)
    try:
        key = load_pem_private_key(data, password or None)
    except TypeError:  # how cryptography says that a password is missing, or given in vain
        found, remedy = ("an encrypted key", "name a variable that has its password: --password-env NAME")
        if password:
            found, remedy = "a key that is not encrypted", "leave --password-env out"
        raise UsageError("the key's password", where=path, found=found, remedy=remedy) from None
    except Exception as error:
        wrong = "cannot be read; is the password right?" if password else "cannot be read"
        raise MalformedInput(f"the private key {wrong}", where=path, expected=EXPECTED, remedy=MAKE) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise MalformedInput("a key of another kind", where=path, expected=EXPECTED, remedy=MAKE)
    _check_curve(key.curve, path)
    return PrivateKey(key)


def load_public(path: Path) -> PublicKey:
    """Read a public key. Raises ``MalformedInput`` when it is none, ``UsageError``, ``InputOutputError``."""
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415  (see above)
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    data = read_small(path, MAX_KEY)
    remedy = "give the public key: openssl ec -in key.pem -pubout -out pub.pem"
    try:
        key = load_pem_public_key(data)
    except Exception as error:
        raise MalformedInput("the public key cannot be read", where=path, expected=EXPECTED, remedy=remedy) from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise MalformedInput("a key of another kind", where=path, expected=EXPECTED, remedy=remedy)
    _check_curve(key.curve, path)
    return PublicKey(key)


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401, PLC0415  (see above)
    except ImportError:
        remedy = "pip install 'deltaweights[sign]'"
        raise UsageError("signatures need the package cryptography", remedy=remedy) from None


def _check_curve(curve: EllipticCurve, path: Path) -> None:
    if curve.name not in {"secp256r1", "secp384r1", "secp521r1"}:
        raise MalformedInput(
            "a curve that is not known here", where=path, found=curve.name, expected=EXPECTED, remedy=MAKE
        )


def _ecdsa(curve: EllipticCurve, *, same: bool = False) -> ECDSA:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  (see above)
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415

    algorithms: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return ECDSA(algorithms[curve.key_size], deterministic_signing=same)
