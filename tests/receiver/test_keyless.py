"""Keyless signatures: made by an instance of Sigstore on the loopback interface, and one by the public instance."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, UsageError
from deltaweights.manifest.signer import Signer
from deltaweights.manifest.verify import verify
from deltaweights.signing.folder import read_keyless_signature, read_signature, sign_folder, sign_keyless
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.signing import make_key, merged, result, stock
from tests.support.sigstore_instance import Instance, running

__all__ = ["merged", "result"]  # fixtures

pytestmark = pytest.mark.receiver

SOMEBODY = "somebody@example.org"
PUBLIC = Path(__file__).parents[1] / "fixtures" / "sigstore-public" / "model.sig"
PUBLIC_SIGNER = ("stefanb@us.ibm.com", "https://sigstore.verify.ibm.com/oauth2")


@pytest.fixture(scope="module")
def shared_instance() -> Iterator[Instance]:
    """Run one instance for all tests of this module."""
    with running() as one:
        yield one


@pytest.fixture
def instance(shared_instance: Instance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Instance:
    """Return the instance, and keep what the library caches out of the home of whoever runs the tests."""
    shared_instance.requests.clear()
    shared_instance.refuses.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "SIGSTORE_IDENTITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return shared_instance


@pytest.fixture
def trust(instance: Instance, tmp_path: Path) -> Path:
    """Return the trust configuration of the instance."""
    return instance.trust_config(tmp_path / "trust.json")


@pytest.fixture
def signed(result: Path, instance: Instance, trust: Path) -> Path:
    """Return a result that somebody signed."""
    sign_keyless(result, identity_token=instance.token(SOMEBODY), trust_config=trust)
    return result


def stock_verifies(folder: Path, instance: Instance, trust: Path, *more: str, identity: str = SOMEBODY) -> bool:
    """Return whether the reference implementation accepts the signature in ``folder``."""
    who: list[str | Path] = ["--identity", identity, "--identity_provider", instance.url, "--trust_config", trust]
    return stock("verify", "sigstore", folder, "--signature", folder / "model.sig", *who, *more).returncode == 0


def test_signed_with_a_token(result: Path, instance: Instance, trust: Path, run: Run) -> None:
    """What is signed with a token is verified by our program and by the reference implementation, who must have signed is named."""
    done = run("sign", result, "--sigstore", "--trust-config", trust, "--identity-token", instance.token(SOMEBODY))
    assert done.returncode == 0, done.stderr
    assert f"signed by       {SOMEBODY} ({instance.url})" in done.stdout
    checked = run("verify", result, "--identity", SOMEBODY, "--issuer", instance.url, "--trust-config", trust)
    assert checked.returncode == 0, checked.stderr
    assert f"signature       right, by {SOMEBODY} ({instance.url})" in checked.stdout
    assert stock_verifies(result, instance, trust)


def test_we_read_what_the_stock_program_signs(result: Path, instance: Instance, trust: Path) -> None:
    """A keyless signature by the reference implementation verifies here."""
    options: list[str | Path] = ["--trust_config", trust, "--identity_token", instance.token(SOMEBODY)]
    done = stock("sign", "sigstore", result, "--signature", result / "model.sig", *options)
    assert done.returncode == 0, done.stderr
    found = read_keyless_signature(result, SOMEBODY, instance.url, trust_config=trust)
    assert found.signer == Signer(SOMEBODY, instance.url)
    assert verify(result, signed=found).ok


def test_signed_as_a_job_of_ci(
    result: Path, instance: Instance, trust: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GitHub the job's own identity signs, without an option; --json is the one document on stdout."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{instance.url}/ci-token?v=1")
    done = run("sign", result, "--sigstore", "--trust-config", trust, "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["identity"], outcome["issuer"]) == ("https://ci.example.org/a/workflow", instance.url)
    assert outcome["key"] is None
    assert stock_verifies(result, instance, trust, identity="https://ci.example.org/a/workflow")


def test_signed_as_a_job_of_gitlab(
    result: Path, instance: Instance, trust: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GitLab the token that the job asks for signs."""
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", instance.token(SOMEBODY))
    done = run("sign", result, "--sigstore", "--trust-config", trust)
    assert done.returncode == 0, done.stderr
    assert stock_verifies(result, instance, trust)


def test_a_job_that_may_not_have_a_token(result: Path, trust: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On GitHub without the permission, the message says which one is missing, and no browser is opened."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = run("sign", result, "--sigstore", "--trust-config", trust)
    assert done.returncode == 2
    assert "id-token: write" in done.stderr.splitlines()[-1]
    assert not (result / "model.sig").exists()


def test_signed_by_logging_in(
    result: Path, instance: Instance, trust: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a token and outside of CI a browser is opened; who logs in there has signed."""
    browser = tmp_path / "browser.py"
    browser.write_text("import sys, urllib.request\nurllib.request.urlopen(sys.argv[1]).read()\n")
    monkeypatch.setenv("BROWSER", f"{sys.executable} {browser} %s &")
    done = run("sign", result, "--sigstore", "--trust-config", trust, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identity"] == instance.login
    assert "/auth" in instance.requests
    assert stock_verifies(result, instance, trust, identity=instance.login)


def bundle_of(folder: Path) -> Any:
    return json.loads((folder / "model.sig").read_bytes())


def flipped(text: str) -> str:
    """Return base64 of the same length with one other bit in the middle."""
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(data).decode()


Change = Callable[[Any], object]


def at(*path: str | int) -> Change:
    """Return a change that flips a bit of the base64 text at ``path``."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = flipped(document[path[-1]])

    return change


def change_checkpoint(document: Any) -> None:
    proof = document["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]
    proof["checkpoint"]["envelope"] = (
        proof["checkpoint"]["envelope"].replace("\n2\n", "\n3\n").replace("rekor", "rokor")
    )


def later(document: Any) -> None:
    """Enter the signature in the log after the certificate ended."""
    entry = document["verificationMaterial"]["tlogEntries"][0]
    entry["integratedTime"] = str(int(entry["integratedTime"]) + 86_400)


ENTRY = ("verificationMaterial", "tlogEntries", 0)
CHANGES: dict[str, Change] = {
    "payload": at("dsseEnvelope", "payload"),
    "signature": at("dsseEnvelope", "signatures", 0, "sig"),
    "certificate": at("verificationMaterial", "certificate", "rawBytes"),
    "promise of the log": at(*ENTRY, "inclusionPromise", "signedEntryTimestamp"),
    "path in the log": at(*ENTRY, "inclusionProof", "hashes", 0),
    "root of the log": at(*ENTRY, "inclusionProof", "rootHash"),
    "entry in the log": at(*ENTRY, "canonicalizedBody"),
    "checkpoint": change_checkpoint,
    "after the certificate": later,
    "no entry": lambda document: document["verificationMaterial"].update(tlogEntries=[]),
    "no proof": lambda document: document["verificationMaterial"]["tlogEntries"][0].pop("inclusionProof"),
    "no certificate": lambda document: document["verificationMaterial"].pop("certificate"),
    "a key besides": lambda document: document["verificationMaterial"].update(publicKey={"hint": ""}),
    "a message besides": lambda document: document.update(messageSignature={"signature": "AA=="}),
    "two spellings": lambda document: document.update(dsse_envelope=document["dsseEnvelope"]),
    "two signatures": lambda document: document["dsseEnvelope"]["signatures"].append({"sig": "AA=="}),
    "another payload type": lambda document: document["dsseEnvelope"].update(payloadType="text/plain"),
    "no object": lambda document: document.update(verificationMaterial=[]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_bundle_is_refused(signed: Path, instance: Instance, trust: Path, change: Change) -> None:
    """Whatever part of a bundle is changed or missing, it is refused with the file named."""
    document = bundle_of(signed)
    change(document)
    (signed / "model.sig").write_text(json.dumps(document))
    with refused(CheckFailed, where=signed / "model.sig", code=ErrorCode.NO_SIGNATURE):
        read_keyless_signature(signed, SOMEBODY, instance.url, trust_config=trust)


@pytest.mark.parametrize("change", list(CHANGES.values())[:9], ids=list(CHANGES)[:9])
def test_a_changed_public_bundle_is_refused(instance: Instance, tmp_path: Path, change: Change) -> None:
    """The same with a bundle that Sigstore's public instance made."""
    document = json.loads(PUBLIC.read_bytes())
    change(document)
    (tmp_path / "model.sig").write_text(json.dumps(document))
    with refused(CheckFailed, where=tmp_path / "model.sig", code=ErrorCode.NO_SIGNATURE):
        read_keyless_signature(tmp_path, *PUBLIC_SIGNER, offline=True)


def test_a_public_bundle_verifies_offline(instance: Instance) -> None:
    """A bundle that Sigstore's public instance made holds, by the keys that come with the library, without the network."""
    found = read_keyless_signature("anywhere", *PUBLIC_SIGNER, offline=True, signature=PUBLIC)
    assert sorted(found.digests) == ["signme-1", "signme-2"]
    assert found.ignored >= {"ignore-me", "model.sig", ".git"}
    assert found.signer == Signer(*PUBLIC_SIGNER)


OTHERS = {
    "another identity": ("else@example.org", None),
    "another issuer": (SOMEBODY, "https://accounts.example.com"),
    "a part of the identity": ("example.org", None),
}


@pytest.mark.parametrize(("identity", "issuer"), OTHERS.values(), ids=OTHERS)
def test_another_signer_is_refused(
    signed: Path, instance: Instance, trust: Path, identity: str, issuer: str | None
) -> None:
    """A right signature of somebody else is refused, and the message says whose was expected."""
    who = Signer(identity, issuer or instance.url)
    with refused(CheckFailed, where=signed / "model.sig", expected=f"one by {who}", code=ErrorCode.NO_SIGNATURE):
        read_keyless_signature(signed, who.identity, who.issuer, trust_config=trust)


@pytest.mark.parametrize(("identity", "issuer"), [(SOMEBODY, ""), ("", "https://accounts.example.com"), ("", "")])
def test_an_empty_signer_is_refused(signed: Path, trust: Path, run: Run, identity: str, issuer: str) -> None:
    """An unset variable in CI must not mean "any issuer", which is what the library makes of an empty one."""
    with refused(UsageError, problem="an empty identity or issuer says nothing of who signed"):
        read_keyless_signature(signed, identity, issuer, trust_config=trust)
    done = run("verify", signed, "--identity", identity, "--issuer", issuer, "--trust-config", trust)
    assert done.returncode == 2


def test_another_instance_is_refused(signed: Path, instance: Instance, tmp_path: Path) -> None:
    """A bundle of one instance is refused by the trust configuration of another, and by the public one."""
    other = Instance(instance.url).trust_config(tmp_path / "other.json")
    for trusted in (other, None):
        with refused(CheckFailed, where=signed / "model.sig", code=ErrorCode.NO_SIGNATURE):
            read_keyless_signature(signed, SOMEBODY, instance.url, trust_config=trusted, offline=True)


def test_a_signature_of_another_folder(signed: Path, instance: Instance, trust: Path) -> None:
    """A right signature, with other files: each is named, and so it is by the reference implementation."""
    (signed / "config.json").write_text("{}")
    found = read_keyless_signature(signed, SOMEBODY, instance.url, trust_config=trust)
    assert "config.json" in {problem.file for problem in verify(signed, signed=found).problems}
    assert not stock_verifies(signed, instance, trust)


def test_a_key_is_not_an_identity(result: Path, signed: Path, instance: Instance, trust: Path, tmp_path: Path) -> None:
    """A bundle by an identity given with --public-key, and the reverse, is refused with the option to give."""
    private, public = make_key(tmp_path)
    with refused(CheckFailed, code=ErrorCode.NO_SIGNATURE) as info:
        read_signature(signed, public)
    assert info.value.remedy == "give --identity and --issuer of who signed, in place of --public-key"
    by_identity = read_keyless_signature(signed, SOMEBODY, instance.url, trust_config=trust)
    assert verify(signed, signed=by_identity).ok
    sign_folder(result, private)  # a signature of the one kind replaces one of the other
    with refused(CheckFailed, code=ErrorCode.NO_SIGNATURE) as info:
        read_keyless_signature(result, SOMEBODY, instance.url, trust_config=trust)
    assert "--public-key" in (info.value.remedy or "")
    sign_keyless(result, identity_token=instance.token(SOMEBODY), trust_config=trust)
    assert stock_verifies(result, instance, trust)


TOKENS: dict[str, Callable[[Instance], str]] = {
    "no token": lambda _: "a token, they said",
    "expired": lambda instance: instance.token(SOMEBODY, seconds=-60),
    "of another audience": lambda instance: instance.token(SOMEBODY, audience="somebody else"),
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_a_wrong_token(result: Path, instance: Instance, trust: Path, token: Callable[[Instance], str]) -> None:
    """A token that is none, or no longer, is refused before any service is asked, and nothing is written."""
    with refused(UsageError, problem="no identity to sign as"):
        sign_keyless(result, identity_token=token(instance), trust_config=trust)
    assert not instance.requests
    assert not (result / "model.sig").exists()


@pytest.mark.parametrize("path", ["/api/v2/signingCert", "/api/v1/log/entries"])
def test_a_service_that_refuses(result: Path, instance: Instance, trust: Path, path: str) -> None:
    """A service that fails is an input/output error, and nothing is written."""
    instance.refuses.add(path)
    with refused(InputOutputError):
        sign_keyless(result, identity_token=instance.token(SOMEBODY), trust_config=trust)
    assert not (result / "model.sig").exists()


def test_no_network(result: Path, instance: Instance, tmp_path: Path) -> None:
    """A service that is not there is a problem of the network."""
    token = instance.token(SOMEBODY)
    with running() as gone:
        trust = gone.trust_config(tmp_path / "gone.json")
    with refused(InputOutputError, code=ErrorCode.NETWORK):
        sign_keyless(result, identity_token=token, trust_config=trust)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 10_000, b'{"mediaType": "text/plain"}'])
def test_a_hostile_trust_configuration(signed: Path, instance: Instance, tmp_path: Path, data: bytes) -> None:
    """What is no trust configuration is malformed input, with the file named."""
    (tmp_path / "t.json").write_bytes(data)
    with refused(MalformedInput, where=tmp_path / "t.json"):
        read_keyless_signature(signed, SOMEBODY, instance.url, trust_config=tmp_path / "t.json")


USAGE = {
    "identity alone": (["verify", "--identity", SOMEBODY], "--issuer"),
    "issuer alone": (["verify", "--issuer", "https://example.org"], "--identity"),
    "key and identity": (["verify", "--public-key", "k", "--identity", "a", "--issuer", "b"], "--public-key"),
    "trust without identity": (["verify", "--trust-config", "t"], "--identity"),
    "signature alone": (["verify", "--signature", "s"], "--public-key"),
    "nothing to sign with": (["sign"], "--sigstore"),
    "both to sign with": (["sign", "--sigstore", "--private-key", "k"], "--private-key"),
    "a password without a key": (["sign", "--sigstore", "--password-env", "HOME"], "--password-env"),
    "trust for a key": (["sign", "--private-key", "k", "--trust-config", "t"], "--sigstore"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("arguments", "says"), USAGE.values(), ids=USAGE)
def test_options_that_make_no_sense(tmp_path: Path, run: Run, arguments: list[str], says: str) -> None:
    """Options that make no sense together end with 2, before anything is read."""
    done = run(arguments[0], tmp_path / "not there", *arguments[1:])
    assert done.returncode == 2
    assert says in done.stderr


# What signers leave out.


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Return a private and a public key."""
    return make_key(tmp_path)


def stock_signs(folder: Path, private: Path, *more: str | Path) -> None:
    """Sign a folder with the reference implementation."""
    done = stock("sign", "key", folder, "--signature", folder / "model.sig", "--private_key", private, *more)
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_signer_left_out(result: Path, keys: tuple[Path, Path]) -> None:
    """A file that the signature leaves out is not a problem of the signature; the manifest that is signed still counts."""
    private, public = keys
    stock_signs(result, private, "--ignore-paths", result / "config.json")
    found = read_signature(result, public)
    assert "config.json" in found.ignored
    assert "config.json" not in found.digests
    assert verify(result, signed=found).ok
    (result / "config.json").write_text("{}")
    (problem,) = verify(result, signed=found).problems
    assert problem.file == "config.json"


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS"])
def test_our_documents_cannot_be_left_out(result: Path, keys: tuple[Path, Path], name: str) -> None:
    """A signature that leaves our documents out does not vouch for what they vouch for."""
    private, public = keys
    stock_signs(result, private, "--ignore-paths", result / name)
    problems = verify(result, signed=read_signature(result, public)).problems
    assert [problem.file for problem in problems] == [name]


def test_files_of_git(result: Path, keys: tuple[Path, Path]) -> None:
    """Files of git are passed over as the reference implementation does; where a signature covers them, they count."""
    private, public = keys
    sign_folder(result, private)
    (result / ".git").mkdir()
    (result / ".git" / "config").write_text("[core]\n")
    (result / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert verify(result, signed=read_signature(result, public)).ok
    assert stock("verify", "key", result, "--signature", result / "model.sig", "--public_key", public).returncode == 0
    stock_signs(result, private, "--no-ignore-git-paths")
    signed = read_signature(result, public)
    assert {".gitattributes", ".git/config"} <= set(signed.digests)
    assert verify(result, signed=signed).ok
    (result / ".gitattributes").write_text("*.bin filter=lfs\n")
    shutil.rmtree(result / ".git")
    problems = verify(result, signed=signed).problems
    assert [(problem.file, problem.problem) for problem in problems] == [
        (".git/config", "is signed, and missing"),
        (".gitattributes", "is not what was signed"),
    ]


def test_downloaded_results_in_the_stock_program(result: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """As docs/signing.md says: what `hf download --local-dir` makes verifies as it is, a snapshot with --allow_symlinks."""
    private, public = keys
    sign_folder(result, private)
    local = Path(shutil.copytree(result, tmp_path / "local"))
    (local / ".cache" / "huggingface").mkdir(parents=True)
    (local / ".cache" / "huggingface" / "config.json.metadata").write_text("commit\n")
    (local / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(result.iterdir())):
        shutil.copy(path, blobs / f"{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")

    def accepts(folder: Path, *more: str) -> bool:
        command: list[str | Path] = [
            "verify",
            "key",
            folder,
            "--signature",
            folder / "model.sig",
            "--public_key",
            public,
            *more,
        ]
        return stock(*command).returncode == 0

    assert accepts(local)
    assert accepts(snapshot, "--allow_symlinks")
    (blobs / "0").write_bytes(b"something else")
    assert not accepts(snapshot, "--allow_symlinks")
