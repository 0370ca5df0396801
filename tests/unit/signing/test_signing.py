"""Signatures: ours and those of OpenSSF Model Signing's own program vouch for the same, and fail for the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from deltaweights.errors import CheckFailed, MalformedInput, TargetBusy, UsageError
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.records import SUMS
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.verify import verify
from deltaweights.signing.bundle import Bundle, pae, parse_bundle
from deltaweights.signing.folder import read_signature, sign_folder
from deltaweights.signing.keys import load_private
from deltaweights.signing.statement import parse_statement, statement_bytes
from tests.conftest import Run
from tests.support.limits import PATIENCE

Pair = tuple[Path, Path]
CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


def make_key(
    folder: Path, name: str = "key", curve: ec.EllipticCurve | None = None, password: bytes | None = None
) -> tuple[Path, Path]:
    """Write a pair of keys, and return the private and the public one."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Return a private and a public key."""
    return make_key(tmp_path)


@pytest.fixture(scope="module")
def merged(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a result in several shards, not to be changed."""
    target = tmp_path_factory.mktemp("signing") / "merged"
    apply_delta(*pair, target, max_shard_size="60KB")
    return target


@pytest.fixture
def result(merged: Path, tmp_path: Path) -> Path:
    """Return a copy of a result, to be signed and spoiled."""
    return Path(shutil.copytree(merged, tmp_path / "result"))


def stock(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m model_signing ARGUMENTS``."""
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def stock_verifies(folder: Path, public: Path) -> bool:
    """Tell whether the stock program accepts the signature in a folder."""
    done = stock("verify", "key", folder, "--signature", folder / "model.sig", "--public_key", public)
    return done.returncode == 0


@pytest.mark.trust
@pytest.mark.parametrize("curve", CURVES)
def test_row77_a_stock_verifier_accepts_ours(result: Path, tmp_path: Path, curve: str) -> None:
    """The program of OpenSSF Model Signing accepts our bundle, for every curve that it knows."""
    private, public = make_key(tmp_path, curve=CURVES[curve])
    sign_folder(result, private)
    assert stock_verifies(result, public)
    assert verify(result, signed=read_signature(result, public)).ok


@pytest.mark.trust
def test_row77_we_accept_the_bundle_of_a_stock_signer(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """Our verify accepts what the program of OpenSSF Model Signing signed, and says by which key."""
    private, public = keys
    signed = stock("sign", "key", result, "--signature", result / "model.sig", "--private_key", private)
    assert signed.returncode == 0, signed.stderr
    done = run("verify", result, "--public-key", public)
    assert done.returncode == 0, done.stderr
    assert f"signature       right, by key {load_private(private).public.name}" in done.stdout


def flip(folder: Path) -> None:
    shard = min(folder.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def flip_card(folder: Path) -> None:
    (folder / "README.md").write_text("for clinical use")


def flip_sums(folder: Path) -> None:
    (folder / SUMS).write_text("")


def edit_consistently(folder: Path) -> None:
    """Make another model of the same shape, with a manifest and sums that fit: only the signature can tell."""
    signature = (folder / "model.sig").read_bytes()
    manifest = folder.parent / "other-inputs"
    from tests.support.pairs import make_pair  # noqa: PLC0415  (a second model is needed here alone)

    base, _ = make_pair(manifest, "safetensors", 1)
    shutil.rmtree(folder)
    apply_delta(base, make_other_delta(manifest, base), folder, max_shard_size="60KB")
    (folder / "model.sig").write_bytes(signature)
    assert verify(folder).ok


def make_other_delta(folder: Path, base: Path) -> Path:
    """Save another delta on ``base``."""
    from tests.support.pairs import delta_tensors, load, save  # noqa: PLC0415  (see above)

    return save(delta_tensors(load(base), seed=9), folder / "other", "safetensors", 1)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "row72-a-flipped-byte": (flip, "has another sha256"),
    "row72-a-changed-card": (flip_card, "README.md: has another size"),
    "row72-changed-sums": (flip_sums, "SHA256SUMS: does not say what manifest.json says"),
    "row73-extra": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: is not in"),
    "row73-missing": (lambda folder: (folder / "config.json").unlink(), "config.json: is missing"),
    "row73-renamed": (
        lambda folder: (folder / "config.json").rename(folder / "c.json"),
        "c.json: is not in the manifest",
    ),
    "row74-consistently-edited": (edit_consistently, "is not what was signed: found"),
}


@pytest.mark.trust
@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT)
def test_what_was_spoilt_fails_in_both(
    result: Path, keys: tuple[Path, Path], run: Run, spoil: Callable[[Path], object], says: str
) -> None:
    """What was changed after it was signed fails with 6 here and fails in the stock verifier."""
    private, public = keys
    sign_folder(result, private)
    spoil(result)
    done = run("verify", result, "--public-key", public)
    assert done.returncode == 6
    assert says in done.stdout
    assert "Traceback" not in done.stderr
    assert not stock_verifies(result, public)


@pytest.mark.trust
def test_row76_the_wrong_key(result: Path, keys: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    """A signature by another key ends with 6 and one line that names both keys."""
    private, public = keys
    _, other = make_key(tmp_path, "other")
    sign_folder(result, private)
    done = run("verify", result, "--public-key", other)
    assert done.returncode == 6
    (line,) = done.stderr.splitlines()
    assert "model.sig: signed with another key: found key" in line
    assert load_private(private).public.name in line
    assert not stock_verifies(result, other)
    assert run("verify", result, "--public-key", public).returncode == 0


@pytest.mark.trust
def test_row76_a_forged_hint_does_not_help(result: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A bundle that only claims the right key is refused: the hint is no proof."""
    _, public = keys
    forger, _ = make_key(tmp_path, "forger")
    sign_folder(result, forger)
    bundle = parse_bundle((result / "model.sig").read_bytes())
    hint = load_private(keys[0]).public.name
    (result / "model.sig").write_bytes(Bundle(bundle.payload, bundle.signature, hint).to_bytes())
    with pytest.raises(CheckFailed, match="the signature does not match"):
        read_signature(result, public)


BUNDLES = {
    "empty": b"",
    "not-json": b"{",
    "a-list": b"[]",
    "another-type": b'{"mediaType":"text/plain"}',
    "duplicate-key": b'{"mediaType":"a","mediaType":"b"}',
    "no-signature": json.dumps({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": ""}},
        "dsseEnvelope": {"payloadType": "application/vnd.in-toto+json", "payload": "", "signatures": []},
    }).encode(),
}  # fmt: skip


@pytest.mark.parametrize("data", BUNDLES.values(), ids=BUNDLES)
def test_what_is_no_bundle_is_no_signature(result: Path, keys: tuple[Path, Path], run: Run, data: bytes) -> None:
    """A file that is no signature fails the check with 6, on one line."""
    (result / "model.sig").write_bytes(data)
    done = run("verify", result, "--public-key", keys[1])
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1
    assert "model.sig" in done.stderr


def test_a_missing_signature_fails(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """No signature where one was asked for is a check that failed."""
    done = run("verify", result, "--public-key", keys[1])
    assert done.returncode == 6
    assert "no signature to verify" in done.stderr


def test_a_file_that_nobody_signed_is_extra(merged: Path, keys: tuple[Path, Path], result: Path) -> None:
    """A signature that leaves a file of the manifest out does not vouch for the folder."""
    private, public = keys
    sign_folder(result, private)
    signed = read_signature(result, public)
    digests = {name: digest for name, digest in signed.digests.items() if name != "config.json"}
    report = verify(result, signed=SignedFiles(signed.key, digests))
    assert [str(problem) for problem in report.problems] == ["config.json: is not signed: found an extra file"]


def test_what_does_not_fit_its_manifest_is_not_signed(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """A folder with a file of another size, or an extra one, is not signed: 6, and no signature is written."""
    (result / "extra.bin").write_bytes(b"x")
    done = run("sign", result, "--private-key", keys[0])
    assert done.returncode == 6
    assert "extra.bin" in done.stderr
    assert not (result / "model.sig").exists()


def test_rehash_reads_before_it_signs(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """A flipped byte is not seen without --rehash, as documented, and is with it."""
    flip(result)
    assert run("sign", result, "--private-key", keys[0], "--rehash").returncode == 6
    assert not (result / "model.sig").exists()
    assert run("sign", result, "--private-key", keys[0]).returncode == 0
    assert run("verify", result, "--public-key", keys[1]).returncode == 6


def test_signing_reads_no_weights(result: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Signing takes digests from the manifest: of the shards it does not even open one."""
    opened, opens = [], os.open

    def watched(path: str | Path, *arguments: int, **named: int) -> int:
        opened.append(Path(path).name)
        return opens(path, *arguments, **named)

    monkeypatch.setattr(os, "open", watched)
    sign_folder(result, keys[0])
    assert "manifest.json" in opened
    assert not [name for name in opened if name.endswith(".safetensors")]


def test_the_same_folder_and_key_give_the_same_signature(result: Path, keys: tuple[Path, Path]) -> None:
    """Signing twice writes the same bytes."""
    sign_folder(result, keys[0])
    first = (result / "model.sig").read_bytes()
    sign_folder(result, keys[0])
    assert (result / "model.sig").read_bytes() == first


def test_a_file_that_is_no_signature_is_not_replaced(result: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """What stands where the signature should go is left alone unless it is one; so is a link."""
    (result / "model.sig").write_text("thesis")
    with pytest.raises(TargetBusy, match="something that is no signature is there"):
        sign_folder(result, keys[0])
    (result / "model.sig").unlink()
    (result / "model.sig").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TargetBusy, match="found a link"):
        sign_folder(result, keys[0])
    assert not (tmp_path / "elsewhere").exists()


def test_keys_that_cannot_sign(result: Path, keys: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    """A key of another kind, a public one, an encrypted one without its password: each says so, in one line."""
    rsa_key = rsa.generate_private_key(65537, 2048)
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (tmp_path / "rsa").write_bytes(rsa_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    with pytest.raises(MalformedInput, match="a key of another kind"):
        sign_folder(result, tmp_path / "rsa")
    with pytest.raises(MalformedInput, match="the private key cannot be read"):
        sign_folder(result, keys[1])
    other, public = make_key(tmp_path, "secp", ec.SECP256K1())
    with pytest.raises(MalformedInput, match="found secp256k1"):
        sign_folder(result, other)
    secret, public = make_key(tmp_path, "secret", password=b"word")
    with pytest.raises(UsageError, match="--password-env NAME"):
        sign_folder(result, secret)
    with pytest.raises(MalformedInput, match="is the password right"):
        sign_folder(result, secret, password=b"wrong")
    sign_folder(result, secret, password=b"word")
    assert verify(result, signed=read_signature(result, public)).ok
    done = run("sign", result, "--private-key", secret, "--password-env", "NO_SUCH_VARIABLE")
    assert done.returncode == 2
    assert "NO_SUCH_VARIABLE" in done.stderr


def test_a_signature_may_be_kept_elsewhere(result: Path, keys: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    """With --signature it is written and read elsewhere; another name in the folder is refused, being an extra file."""
    private, public = keys
    elsewhere = tmp_path / "kept.sig"
    assert run("sign", result, "--private-key", private, "--signature", elsewhere).returncode == 0
    assert run("verify", result, "--public-key", public, "--signature", elsewhere, "--json").returncode == 0
    assert run("sign", result, "--private-key", private, "--signature", result / "my.sig").returncode == 6


NAMES = st.dictionaries(
    st.text(min_size=1, max_size=20), st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=8
)


@given(NAMES, st.text(max_size=10))
def test_a_statement_is_read_as_it_was_made(digests: dict[str, str], subject: str) -> None:
    """Whatever the names are, a statement gives back the digests that went in."""
    try:
        data = statement_bytes(subject, digests, ())
    except UnicodeEncodeError:  # a lone surrogate is no file name that a manifest could hold
        return
    assert parse_statement(data) == digests


@given(st.binary(max_size=200), st.binary(max_size=80))
def test_a_bundle_is_read_as_it_was_made(payload: bytes, signature: bytes) -> None:
    """Payload, signature and key survive the trip."""
    bundle = Bundle(payload, signature, "0" * 64)
    assert parse_bundle(bundle.to_bytes()) == bundle
    assert pae(payload).endswith(b" " + payload) or not payload
