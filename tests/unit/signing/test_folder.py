"""Signing and verifying folders, beside the reference implementation of OpenSSF Model Signing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from deltaweights.errors import CheckFailed, TargetBusy
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.records import SUMS
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import Problem
from deltaweights.signing.bundle import Bundle, parse_bundle
from deltaweights.signing.folder import read_signature, sign_folder
from deltaweights.signing.keys import load_private
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.pairs import delta_tensors, load, make_pair, save
from tests.support.signing import make_key, merged, result, stock, stock_verifies

__all__ = ["merged", "result"]  # fixtures

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Return a private and a public key."""
    return make_key(tmp_path)


@pytest.mark.trust
@pytest.mark.parametrize("curve", CURVES)
def test_row77_a_stock_verifier_accepts_ours(result: Path, tmp_path: Path, curve: str) -> None:
    """The reference implementation accepts our bundle, for every supported curve."""
    private, public = make_key(tmp_path, curve=CURVES[curve])
    sign_folder(result, private)
    assert stock_verifies(result, public)
    assert verify(result, signed=read_signature(result, public)).ok


@pytest.mark.trust
def test_row77_we_accept_the_bundle_of_a_stock_signer(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """Our verify accepts a signature by the reference implementation, and prints its key."""
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
    """Replace the folder by another model of the same shapes, manifest and sums included: only the signature can tell."""
    signature = (folder / "model.sig").read_bytes()
    inputs = folder.parent / "other-inputs"
    base, _ = make_pair(inputs, "safetensors", 1)
    shutil.rmtree(folder)
    other_delta = save(delta_tensors(load(base), seed=9), inputs / "other", "safetensors", 1)
    apply_delta(base, other_delta, folder, max_shard_size="60KB")
    (folder / "model.sig").write_bytes(signature)
    assert verify(folder).ok


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
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


@pytest.mark.sampled(2)
@pytest.mark.trust
@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_changes_fail_in_both_programs(
    result: Path, keys: tuple[Path, Path], run: Run, change: Callable[[Path], object], says: str
) -> None:
    """A folder that was changed after signing fails with 6 here, and fails in the reference implementation."""
    private, public = keys
    sign_folder(result, private)
    change(result)
    done = run("verify", result, "--public-key", public)
    assert done.returncode == 6
    assert says in done.stdout
    assert "Traceback" not in done.stderr
    assert not stock_verifies(result, public)


@pytest.mark.trust
def test_row76_the_wrong_key(result: Path, keys: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    """A signature by another key fails with 6, in one line that names its key."""
    private, public = keys
    _, other = make_key(tmp_path, "other")
    sign_folder(result, private)
    done = run("verify", result, "--public-key", other)
    assert done.returncode == 6
    (line,) = done.stderr.splitlines()
    assert str(result / "model.sig") in line
    assert load_private(private).public.name in line
    assert not stock_verifies(result, other)
    assert run("verify", result, "--public-key", public).returncode == 0


@pytest.mark.trust
def test_row76_a_forged_hint_does_not_help(result: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A bundle whose hint names the right key is still verified against that key."""
    _, public = keys
    forger, _ = make_key(tmp_path, "forger")
    sign_folder(result, forger)
    bundle = parse_bundle((result / "model.sig").read_bytes())
    hint = load_private(keys[0]).public.name
    (result / "model.sig").write_bytes(Bundle(bundle.payload, bundle.signature, hint).to_bytes())
    with refused(CheckFailed, where=result / "model.sig", found=None):
        read_signature(result, public)


def test_a_file_that_is_not_a_bundle_fails(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """A signature file that is not a bundle fails the check with 6, in one line that names it."""
    (result / "model.sig").write_bytes(b"{")
    done = run("verify", result, "--public-key", keys[1])
    assert done.returncode == 6
    (line,) = done.stderr.splitlines()
    assert str(result / "model.sig") in line


def test_a_missing_signature_fails(result: Path, keys: tuple[Path, Path]) -> None:
    """A missing signature fails the check, and the message names the file."""
    with refused(CheckFailed) as info:
        read_signature(result, keys[1])
    assert str(result / "model.sig") in info.value.problem


def test_an_unsigned_file_is_a_problem(keys: tuple[Path, Path], result: Path) -> None:
    """A signature that does not cover every file of the manifest does not verify the folder."""
    private, public = keys
    sign_folder(result, private)
    signed = read_signature(result, public)
    digests = {name: digest for name, digest in signed.digests.items() if name != "config.json"}
    report = verify(result, signed=SignedFiles(signed.key, digests))
    assert report.problems == (Problem("config.json", "is not signed", "an extra file"),)


def test_a_folder_that_does_not_match_its_manifest_is_not_signed(
    result: Path, keys: tuple[Path, Path], run: Run
) -> None:
    """A folder with an extra file is not signed: exit code 6, and no signature is written."""
    (result / "extra.bin").write_bytes(b"x")
    done = run("sign", result, "--private-key", keys[0])
    assert done.returncode == 6
    assert "extra.bin" in done.stderr
    assert not (result / "model.sig").exists()


def test_rehash_reads_before_it_signs(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """A flipped byte is found with --rehash, and not without it, as documented."""
    flip(result)
    assert run("sign", result, "--private-key", keys[0], "--rehash").returncode == 6
    assert not (result / "model.sig").exists()
    assert run("sign", result, "--private-key", keys[0]).returncode == 0
    assert run("verify", result, "--public-key", keys[1]).returncode == 6


def test_signing_reads_no_weights(result: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Signing takes digests from the manifest, and does not open any shard."""
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


def test_only_signatures_are_replaced(result: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Another file, or a link, in the place of the signature is refused and left alone."""
    (result / "model.sig").write_text("thesis")
    with refused(TargetBusy, where=result / "model.sig"):
        sign_folder(result, keys[0])
    assert (result / "model.sig").read_text() == "thesis"
    (result / "model.sig").unlink()
    (result / "model.sig").symlink_to(tmp_path / "elsewhere")
    with refused(TargetBusy, where=result / "model.sig", found="a link"):
        sign_folder(result, keys[0])
    assert not (tmp_path / "elsewhere").exists()


def test_a_signature_may_be_kept_elsewhere(result: Path, keys: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    """``--signature`` writes and reads it elsewhere; another name in the folder is refused, since it would be an extra file."""
    private, public = keys
    elsewhere = tmp_path / "kept.sig"
    assert run("sign", result, "--private-key", private, "--signature", elsewhere).returncode == 0
    assert run("verify", result, "--public-key", public, "--signature", elsewhere, "--json").returncode == 0
    assert run("sign", result, "--private-key", private, "--signature", result / "my.sig").returncode == 6


def test_the_password_is_in_a_variable(result: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--password-env`` names the variable that has the key's password; a missing variable is a usage error that names it."""
    private, public = make_key(tmp_path, "secret", password=b"word")
    arguments = ("sign", result, "--private-key", private, "--password-env", "KEY_PASSWORD")
    done = run(*arguments)
    assert done.returncode == 2
    assert "KEY_PASSWORD" in done.stderr
    monkeypatch.setenv("KEY_PASSWORD", "word")
    assert run(*arguments).returncode == 0
    assert verify(result, signed=read_signature(result, public)).ok
