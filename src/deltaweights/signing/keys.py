"""Elliptic-curve keys in PEM files; the only module that imports ``cryptography``, so it is imported only to sign or verify."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import MalformedInput, UsageError

MAX_KEY = 64 * 1024
EXPECTED = "an elliptic-curve key (P-256, P-384 or P-521) in PEM"
MAKE = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
# The hash that each curve signs with, as in OpenSSF Model Signing.
HASHES: dict[str, HashAlgorithm] = {"secp256r1": SHA256(), "secp384r1": SHA384(), "secp521r1": SHA512()}


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies signatures."""

    key: ec.EllipticCurvePublicKey

    @property
    def name(self) -> str:
        """The sha256 (hex) of the key in PEM, SubjectPublicKeyInfo, as bundles name it."""
        layout = serialization.PublicFormat.SubjectPublicKeyInfo
        return hashlib.sha256(self.key.public_bytes(serialization.Encoding.PEM, layout)).hexdigest()

    def verifies(self, data: bytes, signature: bytes) -> bool:
        """Return whether ``signature`` (DER) of ``data`` was made with the private key of this one."""
        try:
            self.key.verify(signature, data, ec.ECDSA(HASHES[self.key.curve.name]))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs."""

    key: ec.EllipticCurvePrivateKey

    @property
    def public(self) -> PublicKey:
        """The key that verifies its signatures."""
        return PublicKey(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Return the signature (DER) of ``data``; deterministic (RFC 6979) where OpenSSL supports that."""
        algorithm = HASHES[self.key.curve.name]
        try:
            return self.key.sign(data, ec.ECDSA(algorithm, deterministic_signing=True))
        except UnsupportedAlgorithm:
            return self.key.sign(data, ec.ECDSA(algorithm))


def load_private(path: Path, password: bytes | None = None) -> PrivateKey:
    """Read a private key. Raises ``UsageError`` when it is encrypted but there is no ``password``, or the other way round."""
    data = read_small(path, MAX_KEY)
    try:
        key = serialization.load_pem_private_key(data, password or None)
    except TypeError:  # cryptography raises it for a missing password, and for one that is not needed
        found, remedy = ("an encrypted key", "name a variable that has its password: --password-env NAME")
        if password:
            found, remedy = "a key that is not encrypted", "leave --password-env out"
        raise UsageError("the key's password", where=path, found=found, remedy=remedy) from None
    except Exception as error:
        wrong = "cannot be read; is the password right?" if password else "cannot be read"
        raise MalformedInput(f"the private key {wrong}", where=path, expected=EXPECTED, remedy=MAKE) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise MalformedInput("not an elliptic-curve key", where=path, expected=EXPECTED, remedy=MAKE)
    _check_curve(key.curve, path)
    return PrivateKey(key)


def load_public(path: Path) -> PublicKey:
    """Read a public key. Raises ``MalformedInput`` when it is not one."""
    return parse_public(read_small(path, MAX_KEY), path)


def parse_public(data: bytes, path: Path | None = None) -> PublicKey:
    """Parse a public key in PEM; ``path`` is for messages. Raises ``MalformedInput`` when it is not one."""
    remedy = "give the public key: openssl ec -in key.pem -pubout -out pub.pem"
    try:
        key = serialization.load_pem_public_key(data)
    except Exception as error:
        raise MalformedInput("the public key cannot be read", where=path, expected=EXPECTED, remedy=remedy) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise MalformedInput("not an elliptic-curve key", where=path, expected=EXPECTED, remedy=remedy)
    _check_curve(key.curve, path)
    return PublicKey(key)


def _check_curve(curve: ec.EllipticCurve, path: Path | None) -> None:
    if curve.name not in HASHES:
        raise MalformedInput("unsupported curve", where=path, found=curve.name, expected=EXPECTED, remedy=MAKE)
