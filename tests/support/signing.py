"""Keys to sign with, results to sign, and the reference implementation of OpenSSF Model Signing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deltaweights.jobs.apply import apply_delta
from tests.support.limits import PATIENCE

Pair = tuple[Path, Path]


def make_key(
    folder: Path, name: str = "key", curve: ec.EllipticCurve | None = None, password: bytes | None = None
) -> tuple[Path, Path]:
    """Write a key pair, and return the paths of the private and the public key."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def merged(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a result of several shards; tests must not change it."""
    target = tmp_path_factory.mktemp("signing") / "merged"
    apply_delta(*pair, target, max_shard_size="60KB")
    return target


@pytest.fixture
def result(merged: Path, tmp_path: Path) -> Path:
    """Return a copy of a result, to be signed and changed."""
    return Path(shutil.copytree(merged, tmp_path / "result"))


def stock(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m model_signing ARGUMENTS``."""
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def stock_verifies(folder: Path, public: Path) -> bool:
    """Return whether the reference implementation accepts the signature in a folder."""
    done = stock("verify", "key", folder, "--signature", folder / "model.sig", "--public_key", public)
    return done.returncode == 0
