"""Keys that can sign, and keys that cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from deltaweights.errors import MalformedInput, UsageError
from deltaweights.signing.keys import EXPECTED, load_private, load_public
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.signing import make_key

PEM = serialization.Encoding.PEM


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    """An RSA key, a public key in place of a private one, a private one in place of a public one, and text are refused."""
    key, plain = rsa.generate_private_key(65537, 2048), serialization.NoEncryption()
    (tmp_path / "rsa").write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
    (tmp_path / "rsa.pub").write_bytes(
        key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "text").write_text("no key")
    private, public = make_key(tmp_path)
    for path in (tmp_path / "rsa", public, tmp_path / "text"):
        with refused(MalformedInput, where=path, expected=EXPECTED):
            load_private(path)
    for path in (tmp_path / "rsa.pub", private, tmp_path / "text"):
        with refused(MalformedInput, where=path, expected=EXPECTED):
            load_public(path)


def test_other_curves_are_refused(tmp_path: Path) -> None:
    """A curve that OpenSSF Model Signing does not use is refused by its name."""
    private, public = make_key(tmp_path, "secp", ec.SECP256K1())
    with refused(MalformedInput, where=private, found="secp256k1", expected=EXPECTED):
        load_private(private)
    with refused(MalformedInput, where=public, found="secp256k1", expected=EXPECTED):
        load_public(public)


def test_passwords(tmp_path: Path) -> None:
    """A password is needed exactly for an encrypted key, and must be the right one."""
    secret, _ = make_key(tmp_path, "secret", password=b"word")
    plain, _ = make_key(tmp_path)
    with refused(UsageError, where=secret, found="an encrypted key") as info:
        load_private(secret)
    assert "--password-env NAME" in str(info.value.remedy)
    with refused(UsageError, where=plain, found="a key that is not encrypted"):
        load_private(plain, b"word")
    with refused(MalformedInput, where=secret) as wrong:
        load_private(secret, b"wrong")
    assert "password" in wrong.value.problem
    assert load_private(secret, b"word").sign(b"data")


@pytest.mark.parametrize("call", ['sign_folder("out", "key.pem")', 'read_signature("out", "key.pub")'])
def test_without_cryptography_it_is_named(call: str) -> None:
    """Where cryptography is not installed, signing and verifying a signature are usage errors that say what to install."""
    program = f"""
import sys
sys.modules["cryptography"] = None  # importing it fails
from deltaweights import read_signature, sign_folder
from deltaweights.errors import UsageError
try:
    {call}
except UsageError as error:
    print(error.remedy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == "pip install 'deltaweights[sign]'\n"
