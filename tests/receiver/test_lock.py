"""Locks: made by ``pin``, checked by ``verify --lock``, for folders and models of a Hub on the loopback interface."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deltaweights.errors import MalformedInput
from deltaweights.jobs.lock_file import COMMIT, MOST_PINS, Pin, lock_bytes, parse_lock
from deltaweights.jobs.verify_lock import read_lock
from deltaweights.manifest.verify import verify
from deltaweights.signing.folder import sign_folder
from tests.conftest import Run
from tests.support.errors import refused
from tests.support.hub_client import Machine, forget_connections
from tests.support.hub_server import HubServer
from tests.support.results import forge_file
from tests.support.signing import make_key, merged, result
from tests.support.sigstore_instance import running

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["merged", "result"]  # fixtures

pytestmark = pytest.mark.receiver

MERGED = "org/merged"


@pytest.fixture
def hub(result: Path) -> Iterator[HubServer]:
    """Serve a result, as it is when the test begins."""
    with HubServer({MERGED: result}) as served:
        yield served


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubServer) -> Iterator[Machine]:
    """Return a machine that knows the Hub, and works in an empty folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield Machine(monkeypatch, tmp_path, hub)
    forget_connections()


def flip(folder: Path) -> None:
    shard = min(folder.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def test_the_shown_command(machine: Machine, hub: HubServer, result: Path) -> None:
    """``pin ORG/MERGED > deltaweights.lock && verify --lock deltaweights.lock``: no weights are fetched to pin, all to verify."""
    pinned = machine.run("pin", MERGED)
    assert pinned.returncode == 0, pinned.stderr
    assert not any(name.endswith(".safetensors") for name in machine.sizes())
    assert sum(size for name, size in hub.sent.items() if name.endswith(".safetensors")) == 0
    Path("deltaweights.lock").write_text(pinned.stdout)
    (pin,) = read_lock(Path("deltaweights.lock"))
    stated = verify(result)
    assert (pin.id, pin.content_digest, pin.manifest_sha256) == (MERGED, stated.content_digest, stated.manifest_sha256)
    assert COMMIT.accepts(pin.revision or "")
    done = machine.run("verify", "--lock", "deltaweights.lock")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"verified        {MERGED}@{pin.revision}: intact: ")
    assert machine.run("verify", "--lock", "deltaweights.lock", "--offline").returncode == 0
    assert machine.run("verify", "--lock", "deltaweights.lock", "--stream").returncode == 0
    quiet = machine.run("verify", "--lock", "deltaweights.lock", "--quiet")
    assert (quiet.returncode, quiet.stdout) == (0, "")


def test_a_moved_branch_does_not_move_the_pin(machine: Machine, hub: HubServer, result: Path) -> None:
    """What is pushed later is not what was pinned: the lock names the commit."""
    lock = machine.run("pin", MERGED, "--output", "deltaweights.lock")
    assert lock.returncode == 0, lock.stderr
    (pin,) = read_lock(Path("deltaweights.lock"))
    flip(result)
    hub.push(MERGED, result)
    later = machine.run("pin", MERGED, "--output", "later.lock")
    assert later.returncode == 6, later.stdout  # its manifest is not what the Hub states
    done = machine.run("verify", "--lock", "deltaweights.lock", "--no-weights")
    assert done.returncode == 0, done.stderr
    assert str(pin.revision) in done.stdout


def test_several_models(machine: Machine, result: Path) -> None:
    """One exit code, and a line for each: of a folder and a model, one good and one damaged, and one that is not there."""
    shutil.copytree(result, "models/one")
    shutil.copytree(result, "models/two")
    done = machine.run("pin", "models/one", MERGED, "models/two", "--output", "deltaweights.lock")
    assert done.returncode == 0, done.stderr
    assert machine.run("verify", "--lock", "deltaweights.lock").returncode == 0
    flip(Path("models/one"))
    shutil.rmtree("models/two")
    done = machine.run("verify", "--lock", f"../{Path.cwd().name}/deltaweights.lock", "--json")
    assert done.returncode == 6
    outcome = json.loads(done.stdout)
    assert [model["ok"] for model in outcome["models"]] == [False, True, False]
    one, other, two = outcome["models"]
    assert one["problems"][0]["problem"] == "has another sha256"
    assert not one["weights"]["ok"]
    assert one["loader_files"]["ok"]
    assert other["model"].startswith(f"{MERGED}@")
    assert two["error"]["code"] == "E-NOT-FOUND"
    assert outcome["error"]["code"] == "E-NOT-AS-RECORDED"
    lines = machine.run("verify", "--lock", "deltaweights.lock").stdout.splitlines()
    named = [line.split()[:2] for line in lines if not line.startswith(" ")]
    assert named == [["FAILED", "models/one:"], ["verified", f"{other['model']}:"], ["FAILED", "models/two:"]]


def test_weights_only_and_junit(machine: Machine, result: Path) -> None:
    """With --weights-only a changed card does not fail its model, a changed weight does; the report has a suite for each."""
    for name in ("one", "two"):
        shutil.copytree(result, f"models/{name}")
    pinned = machine.run("pin", "models/one", "models/two", "--output", "deltaweights.lock")
    assert pinned.returncode == 0, pinned.stderr
    check = ("verify", "--lock", "deltaweights.lock", "--junit", "report.xml")
    with Path("models/one/README.md").open("a") as card:
        card.write("edited")
    strict = machine.run(*check)
    assert strict.returncode == 6
    assert [suite.get("failures") for suite in ElementTree.parse("report.xml").getroot()] == ["1", "0"]  # noqa: S314
    done = machine.run(*check, "--weights-only", "--json")
    assert done.returncode == 0, done.stderr
    assert [model["ok"] for model in json.loads(done.stdout)["models"]] == [True, True]
    assert "not counted     models/one: README.md" in machine.run(*check, "--weights-only").stdout
    assert [suite.get("failures") for suite in ElementTree.parse("report.xml").getroot()] == ["0", "0"]  # noqa: S314
    flip(Path("models/two"))
    assert machine.run(*check, "--weights-only").returncode == 6
    manifest = Path("models/one/manifest.json")
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert "models/one: " in machine.run(*check, "--weights-only").stdout.partition("FAILED")[2], "not what is pinned"


def test_a_commit_that_is_not_there(machine: Machine) -> None:
    """A lock that names a commit, or a repository, that does not exist fails with the name, and with 6."""
    pins = [Pin(id=MERGED, revision="0" * 40), Pin(id="org/nothing", revision="1" * 40)]
    Path("deltaweights.lock").write_bytes(lock_bytes(pins))
    done = machine.run("verify", "--lock", "deltaweights.lock")
    assert done.returncode == 6
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["FAILED", f"{pin.title}:"] for pin in pins]


def test_without_a_manifest(machine: Machine, hub: HubServer, result: Path) -> None:
    """A model without a manifest is pinned by its commit; its files are compared with what the Hub states."""
    for name in ("manifest.json", "SHA256SUMS"):
        (result / name).unlink()
    commit = hub.push(MERGED, result)
    done = machine.run("pin", MERGED, "--output", "deltaweights.lock")
    assert done.returncode == 0, done.stderr
    assert read_lock(Path("deltaweights.lock")) == [Pin(id=MERGED, revision=commit)]
    assert machine.run("verify", "--lock", "deltaweights.lock").returncode == 0


OTHER_PINS = {
    "another manifest": {"manifest_sha256": "0" * 64},
    "another content digest": {"content_digest": f"dw1:{'0' * 64}"},
}


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside the other"])
@pytest.mark.parametrize("changed", OTHER_PINS.values(), ids=OTHER_PINS)
def test_what_is_not_pinned(result: Path, run: Run, changed: dict[str, str], alone: bool) -> None:
    """A folder that is intact, and not what is pinned, fails, whichever of the two pins says so."""
    stated = verify(result)
    digests = {"content_digest": stated.content_digest, "manifest_sha256": stated.manifest_sha256}
    lock = result.parent / "deltaweights.lock"
    lock.write_bytes(lock_bytes([Pin(path=result.name, **digests)]))
    assert run("verify", "--lock", lock).returncode == 0
    lock.write_bytes(lock_bytes([Pin(path=result.name, **(changed if alone else digests | changed))]))
    done = run("verify", "--lock", lock)
    assert done.returncode == 6
    assert "not the" in done.stdout
    assert next(iter(changed.values())) in done.stdout


def test_the_content_digest_of_another_model(result: Path, run: Run) -> None:
    """A manifest that lists other weights, and states tensors and digest of the honest ones, is found: by ``pin``, too."""
    honest = verify(result).content_digest
    shard = min(result.glob("*.safetensors"))
    forge_file(result, shard.name, shard.read_bytes()[:-1] + b"?")
    stated = verify(result)
    assert (stated.ok, stated.recomputed, stated.content_digest) == (True, False, honest)
    lock = result.parent / "deltaweights.lock"
    lock.write_bytes(lock_bytes([Pin(path=result.name, content_digest=honest, manifest_sha256=stated.manifest_sha256)]))
    done = run("verify", "--lock", lock)
    assert done.returncode == 6
    assert "tensor is not what the manifest says" in done.stdout
    made = run("pin", result, "--output", result.parent / "made.lock")
    assert made.returncode == 6
    assert not (result.parent / "made.lock").exists()
    assert not verify(result, recompute=True).weights.ok


def test_the_content_digest_of_another_model_on_the_hub(machine: Machine, hub: HubServer, result: Path) -> None:
    """The weights are not read to pin a model of the Hub; then the lock holds what its manifest says, which is proved later."""
    shard = min(result.glob("*.safetensors"))
    forge_file(result, shard.name, shard.read_bytes()[:-1] + b"?")
    hub.push(MERGED, result)
    assert machine.run("pin", MERGED, "--output", "deltaweights.lock").returncode == 0
    for flags in ([], ["--stream"]):
        done = machine.run("verify", "--lock", "deltaweights.lock", *flags)
        assert done.returncode == 6
        assert "tensor is not what the manifest says" in done.stdout


def test_pins_of_who_signed(result: Path, run: Run, tmp_path: Path) -> None:
    """A lock that holds the public key verifies the signature, too; one of another folder, or none, fails."""
    private, public = make_key(tmp_path)
    lock = tmp_path / "deltaweights.lock"
    sign_folder(result, private)
    done = run("pin", result, "--public-key", public, "--output", lock)
    assert done.returncode == 0, done.stderr
    (pin,) = read_lock(lock)
    assert (pin.path, pin.public_key) == (result.name, public.read_text())
    done = run("verify", "--lock", lock)
    assert done.returncode == 0, done.stderr
    assert "signed by key " in done.stdout
    other = Path(shutil.copytree(result, tmp_path / "other"))
    (other / "config.json").write_text("{}")
    stranger, _ = make_key(tmp_path, "stranger")
    for change in (lambda: sign_folder(result, stranger), (result / "model.sig").unlink):
        change()
        done = run("verify", "--lock", lock, "--json")
        assert done.returncode == 6
        assert json.loads(done.stdout)["models"][0]["error"]["code"] == "E-NO-SIGNATURE"


@pytest.mark.slow
def test_pins_of_identities(machine: Machine, hub: HubServer, result: Path) -> None:
    """A lock that holds an identity verifies the keyless signature of a model of the Hub."""
    with running() as instance:
        trust, token = instance.trust_config(machine.folder / "trust.json"), instance.token("somebody@example.org")
        arguments = ("sign", result, "--sigstore", "--identity-token", token, "--trust-config", trust)
        assert machine.run(*arguments).returncode == 0
        hub.push(MERGED, result)
        who = ("--identity", "somebody@example.org", "--issuer", instance.url, "--trust-config", trust)
        done = machine.run("pin", MERGED, *who, "--output", "deltaweights.lock")
        assert done.returncode == 0, done.stderr
        (pin,) = read_lock(Path("deltaweights.lock"))
        assert (pin.identity, pin.issuer) == ("somebody@example.org", instance.url)
        done = machine.run("verify", "--lock", "deltaweights.lock", "--trust-config", trust)
        assert done.returncode == 0, done.stderr
        assert "signed by somebody@example.org" in done.stdout
        assert machine.run("verify", "--lock", "deltaweights.lock", "--offline").returncode == 6  # the public instance


def test_a_model_with_the_signature_of_another_is_not_pinned(machine: Machine, hub: HubServer, result: Path) -> None:
    """A right signature, beside another manifest, is found before anything is pinned."""
    private, public = make_key(machine.folder)
    sign_folder(result, private)
    text = (result / "manifest.json").read_text()
    (result / "manifest.json").write_text(f"{text} ")
    hub.push(MERGED, result)
    done = machine.run("pin", MERGED, "--public-key", public)
    assert (done.returncode, done.stdout) == (6, "")


# Making locks.


def test_a_damaged_folder_is_not_pinned(result: Path, run: Run, tmp_path: Path) -> None:
    """A folder that does not verify is not pinned, and the lock of before stays."""
    lock = tmp_path / "deltaweights.lock"
    assert run("pin", result, "--output", lock).returncode == 0
    before = lock.read_bytes()
    flip(result)
    done = run("pin", result, "--output", lock)
    assert done.returncode == 6
    assert lock.read_bytes() == before


def test_a_folder_elsewhere_is_not_pinned(result: Path, run: Run, tmp_path: Path) -> None:
    """A folder that is not beside or below the lock is refused, with what to do."""
    (tmp_path / "elsewhere").mkdir()
    done = run("pin", result, "--output", tmp_path / "elsewhere" / "deltaweights.lock")
    assert done.returncode == 2
    assert "--output" in done.stderr


def test_other_files_are_not_replaced(result: Path, run: Run, tmp_path: Path) -> None:
    """--output replaces a lock, and no other file."""
    other = tmp_path / "pyproject.toml"
    other.write_text("[project]\n")
    done = run("pin", result, "--output", other)
    assert done.returncode == 7
    assert other.read_text() == "[project]\n"


def test_locks_are_reproducible_and_read_by_toml(result: Path, run: Run, tmp_path: Path) -> None:
    """The same pins give the same bytes, and a parser of TOML reads the same values."""
    first, again = (run("pin", result, "--output", tmp_path / name) for name in ("a.lock", "b.lock"))
    assert first.returncode == again.returncode == 0
    data = (tmp_path / "a.lock").read_bytes()
    assert data == (tmp_path / "b.lock").read_bytes()
    (pin,) = read_lock(tmp_path / "a.lock")
    stated = {name: value for name, value in vars(pin).items() if value is not None}
    assert tomllib.loads(data.decode()) == {"format": "deltaweights-lock", "version": 1, "model": [stated]}


@pytest.mark.parametrize("name", ['quo"te', "höhe", "a b", "#x", "tab-𝒳"])
def test_names_of_folders(name: str) -> None:
    """Whatever the name of a folder is, it is read back as it was."""
    pin = Pin(path=f"models/{name}", content_digest=f"dw1:{'0' * 64}")
    assert parse_lock(lock_bytes([pin]), "lock") == [pin]


# Hostile locks.

GOOD = 'format = "deltaweights-lock"\nversion = 1\n'
MODEL = f'[[model]]\nid = "org/name"\nrevision = "{"0" * 40}"\n'
FOLDER = f'[[model]]\ncontent_digest = "dw1:{"0" * 64}"\npath = '

HOSTILE = {
    "empty": "",
    "not TOML": "{",
    "not UTF-8": b"\xff",
    "an archive": b"PK\x03\x04" + bytes(100),
    "nested": "a = " + "[" * 100_000,
    "dotted": f"{'a.' * 100_000}a = 1",
    "twice": GOOD + GOOD + MODEL,
    "another format": GOOD.replace("lock", "key") + MODEL,
    "no version": GOOD.replace("version = 1", "") + MODEL,
    "a later version": GOOD.replace("1", "2") + MODEL,
    "a version that is true": GOOD.replace("1", "true") + MODEL,
    "an unknown key": GOOD + "exec = 'x'\n" + MODEL,
    "an unknown key of a model": GOOD + MODEL + "url = 'https://example.org'\n",
    "no models": GOOD,
    "an empty list": GOOD + "model = []\n",
    "one table": GOOD + MODEL.replace("[[model]]", "[model]"),
    "strings": GOOD + "model = ['org/name']\n",
    "too many": GOOD + "[[model]]\n" * (MOST_PINS + 1),
    "nothing named": GOOD + "[[model]]\n",
    "id and path": GOOD + MODEL + "path = 'a'\n",
    "no revision": GOOD + "[[model]]\nid = 'org/name'\n",
    "a branch": GOOD + MODEL.replace("0" * 40, "main"),
    "a short commit": GOOD + MODEL.replace("0" * 40, "0" * 39),
    "a path as id": GOOD + MODEL.replace("org/name", "/etc/passwd"),
    "a path up as id": GOOD + MODEL.replace("org/name", "../name"),
    "a deeper id": GOOD + MODEL.replace("org/name", "a/b/c"),
    "an id with a revision": GOOD + MODEL.replace("org/name", "org/name@main"),
    "an address as id": GOOD + MODEL.replace("org/name", "https://example.org/x"),
    "an absolute path": GOOD + FOLDER + '"/etc"\n',
    "a path up": GOOD + FOLDER + '"a/../../b"\n',
    "a path up with backslashes": GOOD + FOLDER + '"..\\\\b"\n',
    "an empty path": GOOD + FOLDER + '""\n',
    "a path with NUL": GOOD + FOLDER + '"a\\u0000b"\n',
    "a path with a new line": GOOD + FOLDER + '"a\\nb"\n',
    "a folder without digests": GOOD + "[[model]]\npath = 'a'\n",
    "a folder with a revision": GOOD + FOLDER + f'"a"\nrevision = "{"0" * 40}"\n',
    "a number as digest": GOOD + MODEL + "manifest_sha256 = 1\n",
    "a short digest": GOOD + MODEL + "manifest_sha256 = 'ab'\n",
    "identity alone": GOOD + MODEL + "identity = 'a@example.org'\n",
    "two signers": GOOD + MODEL + "identity = 'a'\nissuer = 'b'\npublic_key = '''\n"
    "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n'''\n",
    "a path as key": GOOD + MODEL + "public_key = '/root/key.pem'\n",
    "the same twice": GOOD + MODEL + MODEL,
    "long": GOOD + "#" + "x" * (1024 * 1024),
}


@pytest.mark.trust
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_row96_hostile_locks(tmp_path: Path, text: str | bytes) -> None:
    """What is no lock is malformed, with the file named; nothing that it names is looked at."""
    lock = tmp_path / "deltaweights.lock"
    lock.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(MalformedInput, where=lock):
        read_lock(lock)


def test_a_hostile_lock_on_the_command_line(tmp_path: Path, run: Run) -> None:
    """A lock that leaves its folder ends with 3, in one line, whatever is at the place that it names."""
    lock = tmp_path / "deltaweights.lock"
    lock.write_text(GOOD + FOLDER + '"../outside"\n')
    done = run("verify", "--lock", lock)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_key_that_is_none(result: Path, run: Run, tmp_path: Path) -> None:
    """A lock whose key has the form of one, and is none, fails for that model."""
    key = "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"
    lock = tmp_path / "deltaweights.lock"
    lock.write_bytes(lock_bytes([Pin(path=result.name, content_digest=f"dw1:{'0' * 64}", public_key=key)]))
    done = run("verify", "--lock", lock)
    assert done.returncode == 6
    assert "the public key cannot be read" in done.stdout


def test_weights_only_counts_the_pinned_digest(result: Path, run: Run, tmp_path: Path) -> None:
    """A lock whose digest is another fails, also where an edited card is not counted."""
    shutil.copytree(result, tmp_path / "one")
    lock = tmp_path / "deltaweights.lock"
    assert run("pin", "one", "--output", lock.name, cwd=tmp_path).returncode == 0
    lock.write_text(re.sub("dw1:[0-9a-f]{64}", f"dw1:{64 * '0'}", lock.read_text()))
    (tmp_path / "one" / "README.md").write_text("edited")
    done = run("verify", "--lock", lock.name, "--weights-only", cwd=tmp_path)
    assert done.returncode == 6
    assert "content digest is not the " in done.stdout


def test_outputs_for_ci_of_a_lock(result: Path, run: Run, tmp_path: Path) -> None:
    """None may be among the files that are pinned (2); a lock that cannot be read is an error in each."""
    shutil.copytree(result, tmp_path / "one")
    assert run("pin", "one", "--output", "deltaweights.lock", cwd=tmp_path).returncode == 0
    for option, name in (("--junit", "r.xml"), ("--summary", "README.md")):
        done = run("verify", "--lock", "deltaweights.lock", option, f"one/{name}", cwd=tmp_path)
        assert (done.returncode, option in done.stderr) == (2, True)
    assert verify(tmp_path / "one").ok
    outputs = ("--junit", "r.xml", "--summary", "s.md", "--annotations")
    done = run("verify", "--lock", "none.lock", *outputs, cwd=tmp_path)
    assert done.returncode == 5
    assert "::error title=deltaweights verify none.lock::" in done.stderr
    assert "FAILED: `none.lock`" in (tmp_path / "s.md").read_text()
    assert [suite.get("errors") for suite in suites(tmp_path / "r.xml")] == ["1"]


def suites(path: Path) -> list[ElementTree.Element]:
    return ElementTree.fromstring(path.read_bytes()).findall("testsuite")  # noqa: S314  (our own)


def test_a_missing_lock(tmp_path: Path, run: Run) -> None:
    """A lock that is not there ends with 5."""
    done = run("verify", "--lock", tmp_path / "deltaweights.lock")
    assert done.returncode == 5


USAGE = {
    "a folder besides": ["PATH"],
    "a digest besides": ["--expect", "dw1:0"],
    "a manifest besides": ["--manifest", "m"],
    "a key besides": ["--public-key", "k"],
    "an identity besides": ["--identity", "a", "--issuer", "b"],
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_what_a_lock_says_is_not_an_option(tmp_path: Path, run: Run, arguments: list[str]) -> None:
    """With --lock, what it pins is not given again: 2, with the option named."""
    done = run("verify", "--lock", tmp_path / "deltaweights.lock", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_nothing_to_verify(run: Run) -> None:
    """Without a folder and without a lock there is nothing to verify."""
    done = run("verify")
    assert done.returncode == 2
    assert "--lock" in done.stderr
