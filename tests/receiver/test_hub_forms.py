"""The round trip over the loopback Hub: a merge with all its files, fetched in each way, verified in each form, then damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltaweights.errors import CheckFailed, InputOutputError, MalformedInput, UsageError
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import VerifyReport
from deltaweights.signing.folder import read_signature, sign_folder
from tests.support.errors import refused
from tests.support.hub_client import Machine, forget_connections
from tests.support.hub_server import HubServer
from tests.support.limits import PATIENCE
from tests.support.pairs import make_pair
from tests.support.results import forge_file
from tests.support.signing import make_key

pytestmark = pytest.mark.receiver

MODEL = "acme/merged"

SHARD, OTHER = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

PARTS = ("weights", "loader_files", "extras")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a private and a public key."""
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    """Make a signed merge, with what the Hub adds to a repository."""
    folder = tmp_path_factory.mktemp("made")
    base, delta = make_pair(folder)
    target = Path(apply_delta(base, delta, folder / "merged", max_shard_size=45_000).target)
    sign_folder(target, keys[0])
    (target / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    return target


@pytest.fixture
def hub(made: Path) -> Iterator[HubServer]:
    """Serve the merge."""
    with HubServer({MODEL: made}) as served:
        yield served


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubServer) -> Iterator[Machine]:
    """Return a machine that knows the Hub."""
    yield Machine(monkeypatch, tmp_path, hub)
    forget_connections()


# Ways to fetch: each returns the folder that it leaves.


def _ours(machine: Machine, hub: HubServer, made: Path) -> Path:
    done = machine.run("download", MODEL, "-q")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def _theirs(machine: Machine, hub: HubServer, made: Path) -> Path:
    done = machine.hf("download", MODEL, "--quiet")
    assert done.returncode == 0, done.stderr
    (snapshot,) = (machine.repository(MODEL) / "snapshots").iterdir()
    return snapshot


def _our_folder(machine: Machine, hub: HubServer, made: Path) -> Path:
    assert machine.run("download", MODEL, "--local-dir", machine.folder / "local").returncode == 0
    return machine.folder / "local"


def _their_folder(machine: Machine, hub: HubServer, made: Path) -> Path:
    assert machine.hf("download", MODEL, "--local-dir", machine.folder / "local").returncode == 0
    return machine.folder / "local"


def _plain_http(machine: Machine, hub: HubServer, made: Path) -> Path:
    (machine.folder / "plain").mkdir()
    for path in made.iterdir():
        with urllib.request.urlopen(f"{hub.endpoint}/{MODEL}/resolve/main/{path.name}") as answer:  # noqa: S310  (of this test)
            (machine.folder / "plain" / path.name).write_bytes(answer.read())
    return machine.folder / "plain"


Fetch = Callable[[Machine, HubServer, Path], Path]

WAYS: dict[str, Fetch] = {
    "download": _ours,
    "hf": _theirs,
    "download-local": _our_folder,
    "hf-local": _their_folder,
    "http": _plain_http,
}

CACHED, LOCAL = {"download", "hf"}, {"download-local", "hf-local"}


def verdicts(report: VerifyReport) -> tuple[bool, bool, bool]:
    return report.weights.ok, report.loader_files.ok, report.extras.ok


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", WAYS)
def test_what_was_fetched_verifies(
    machine: Machine, hub: HubServer, made: Path, keys: tuple[Path, Path], way: str
) -> None:
    """What a download leaves verifies: it ends with 0 and three verdicts, with the signature, too; hf's check agrees."""
    folder = WAYS[way](machine, hub, made)
    done = machine.run("verify", folder, "--json", "--public-key", keys[1])
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert [told[part]["ok"] for part in PARTS] == [True] * 3
    assert told["signed_by"]
    if way in CACHED:
        assert machine.hf("cache", "verify", MODEL).returncode == 0
    if way in LOCAL:
        assert machine.hf("cache", "verify", MODEL, "--local-dir", folder).returncode == 0


def test_the_line_of_the_readme(machine: Machine, hub: HubServer) -> None:
    """``download ORG/MERGED && verify ORG/MERGED`` ends with 0 and three lines; offline, too, without a request."""
    assert machine.run("download", MODEL).returncode == 0
    sent = hub.sent[f"{MODEL}/{SHARD}"]
    done = machine.run("verify", MODEL)
    assert done.returncode == 0, done.stderr
    begins = [line[:16].strip() for line in done.stdout.splitlines()]
    assert begins[:4] == ["verified", "weights", "loader files", "other files"]
    assert hub.sent[f"{MODEL}/{SHARD}"] == sent
    asked = len(hub.requests)
    assert machine.run("verify", MODEL, "--offline", "-q").returncode == 0
    assert len(hub.requests) == asked


@pytest.mark.parametrize("stream", [False, True])
def test_an_id_is_fetched(machine: Machine, hub: HubServer, keys: tuple[Path, Path], stream: bool) -> None:
    """An id is fetched and verified, with a signature and a pin; with --stream nothing is kept but small files."""
    flags = ["--stream"] if stream else []
    done = machine.run("verify", f"{MODEL}@main", "--public-key", keys[1], "-q", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = machine.blobs(MODEL)
    assert bool(kept) is not stream
    report = verify(MODEL, hub=HubOptions(stream=stream))
    assert verdicts(report) == (True, True, True)
    assert report.content_digest is not None
    assert verify(MODEL, expect=report.content_digest, hub=HubOptions(stream=stream)).recomputed


def test_without_weights(machine: Machine, hub: HubServer) -> None:
    """--no-weights compares what the Hub states, fetches no weights, and says so."""
    done = machine.run("verify", MODEL, "--no-weights")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("listed ")
    assert "2 not read" in done.stdout
    assert hub.sent[f"{MODEL}/{SHARD}"] == 0
    report = verify(MODEL, weights=False)
    assert report.ok
    assert report.unread == 2


def test_without_weights_what_the_hub_states_counts(
    machine: Machine, hub: HubServer, made: Path, tmp_path: Path
) -> None:
    """Weights that the Hub states another hash or size of fail without being read."""
    (tmp_path / SHARD).write_bytes((made / SHARD).read_bytes()[:-1] + b"\0")
    (tmp_path / OTHER).write_bytes((made / OTHER).read_bytes() + b"\0")
    hub.push(MODEL, {path.name: path for path in made.iterdir()} | {name: tmp_path / name for name in (SHARD, OTHER)})
    report = verify(MODEL, weights=False)
    assert {problem.file: problem.problem for problem in report.problems} == {
        SHARD: "has another sha256",
        OTHER: "has another size",
    }
    assert not report.weights.ok
    assert hub.sent[f"{MODEL}/{SHARD}"] == 0


def test_without_a_manifest(machine: Machine, hub: HubServer, made: Path) -> None:
    """Without a manifest the files are compared with what the Hub states, and that is said."""
    hidden = {"manifest.json", "SHA256SUMS", "model.sig"}
    hub.push("acme/plain", {path.name: path for path in made.iterdir() if path.name not in hidden})
    for flags in ([], ["--stream"], ["--offline"]):
        done = machine.run("verify", "acme/plain", *flags)
        assert done.returncode == 0, done.stderr
        assert "compared with the hashes that the Hub states" in done.stdout
        assert "none: " in done.stdout
    done = machine.run("verify", "acme/plain", "--no-weights")
    assert done.returncode == 6
    assert "leave --no-weights out: its files are then compared with the hashes that the Hub states" in done.stderr


def test_a_manifest_that_is_kept_elsewhere(machine: Machine, hub: HubServer, made: Path) -> None:
    """--manifest decides which files are fetched, and what they must be."""
    hub.push(
        "acme/plain",
        {path.name: path for path in made.iterdir() if path.suffix in {".safetensors", ".json", ".md", ".txt"}},
    )
    assert verify("acme/plain", manifest=made / "manifest.json").ok


def test_a_signature_of_another_folder(machine: Machine, hub: HubServer, keys: tuple[Path, Path], made: Path) -> None:
    """A right signature of other files is no signature of these."""
    signed = read_signature(made, keys[1])
    others = dict(signed.digests) | {SHARD: "0" * 64}
    report = verify(MODEL, signed=type(signed)(signed.key, others))
    assert [(problem.file, problem.problem) for problem in report.problems] == [(SHARD, "is not what was signed")]


def test_what_makes_no_sense(machine: Machine, hub: HubServer, made: Path) -> None:
    """--no-weights of a path, or with a content digest to recompute, is refused (2)."""
    with refused(UsageError, found=str(made)):
        verify(str(made), weights=False)
    with refused(UsageError, problem="a content digest is recomputed from the weights"):
        verify(MODEL, weights=False, expect="dw1:" + "0" * 64)
    assert hub.requests == []


def test_a_path_wins_over_an_id(machine: Machine, hub: HubServer, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists here is verified, as elsewhere; hf:// asks for the Hub's."""
    shutil.copytree(made, machine.folder / MODEL)
    monkeypatch.chdir(machine.folder)
    (machine.folder / MODEL / SHARD).write_bytes(b"")
    assert not verify(MODEL).ok
    assert hub.requests == []
    assert verify(f"hf://{MODEL}").ok


def test_offline_and_not_there(machine: Machine, hub: HubServer) -> None:
    """Offline, what the cache lacks is not called damage (5)."""
    with refused(InputOutputError, where=f"hf://{MODEL}", problem="not in the cache"):
        verify(MODEL, hub=HubOptions(offline=True))
    commit = machine.fetch(MODEL, "*.json", "SHA256SUMS").commit
    with pytest.raises(InputOutputError, match="not in the cache"):
        verify(f"{MODEL}@{commit}", hub=HubOptions(offline=True))


# Damage: to a folder of files; in a cache the link is replaced by the file.

Damage = Callable[[Path], None]


def _change(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(change(content))

    return damage


def _flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def _exchange(folder: Path) -> None:
    (folder / SHARD).rename(folder / "aside")
    (folder / OTHER).rename(folder / SHARD)
    (folder / "aside").rename(folder / OTHER)


def _link_out(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to("/etc/passwd")


def _other_manifest(content: bytes) -> bytes:
    return content.replace(b'"sha256": "', b'"sha256": "0', 1).replace(b'0"', b'"', 1)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a bit of the weights": (_change(SHARD, _flip), "weights"),
    "a shard cut short": (_change(SHARD, lambda content: content[:-1]), "weights"),
    "a shard missing": (lambda folder: (folder / SHARD).unlink(), "weights"),
    "shards exchanged": (_exchange, "weights"),
    "other weights": (lambda folder: _write(folder / "pytorch_model.bin"), "weights"),
    "an edited index": (_change("model.safetensors.index.json", lambda content: content + b"\n"), "weights"),
    "an edited manifest": (_change("manifest.json", _flip), "weights"),
    "an edited configuration": (_change("config.json", lambda content: content + b"\n"), "loader_files"),
    "code": (lambda folder: _write(folder / "modeling_x.py"), "loader_files"),
    "an edited card": (_change("README.md", lambda content: content + b"edited\n"), "extras"),
    "edited sums": (_change("SHA256SUMS", lambda content: b"# edited\n" + content), "extras"),
}


def _write(path: Path) -> None:
    path.write_bytes(b"x = 1\n")


def _fails_in(report: VerifyReport, part: str) -> None:
    assert not report.ok
    assert not getattr(report, part).ok, report.problems
    if part == "extras":
        assert report.weights.ok, report.problems
    with pytest.raises(CheckFailed):
        report.raise_if_failed()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for what was fetched: it is fetched once in each way, and copied."""
    return tmp_path_factory.mktemp("store")


def _copy_of(store: Path, machine: Machine, hub: HubServer, made: Path, way: str) -> Path:
    """Return a folder that was fetched, as it was left: in a cache, or by itself."""
    kept = store / way / (machine.repository(MODEL).name if way in CACHED else "folder")
    if not kept.exists():
        folder = WAYS[way](machine, hub, made)
        shutil.copytree(machine.repository(MODEL) if way in CACHED else folder, kept, symlinks=True)
    copy = Path(shutil.copytree(kept, machine.folder / "copies" / kept.name, symlinks=True))
    return next((copy / "snapshots").iterdir()) if way in CACHED else copy


@pytest.mark.sampled(12)
@pytest.mark.parametrize("damage", [*DAMAGES, "a link out"])
@pytest.mark.parametrize("way", WAYS)
def test_damage_is_found(machine: Machine, hub: HubServer, made: Path, store: Path, way: str, damage: str) -> None:
    """Each damage to each form fails in the part that it belongs to."""
    folder = _copy_of(store, machine, hub, made, way)
    assert verify(folder).ok
    change, part = DAMAGES.get(damage, (_link_out, "weights"))
    change(folder)
    _fails_in(verify(folder), part)


@pytest.mark.sampled(11)
@pytest.mark.parametrize("form", ["kept", "stream", "no-weights"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_on_the_hub_is_found(
    machine: Machine, hub: HubServer, made: Path, tmp_path: Path, form: str, damage: str
) -> None:
    """A repository that was changed after the merge was made fails, however it is verified."""
    folder = Path(shutil.copytree(made, tmp_path / "damaged"))
    change, part = DAMAGES[damage]
    change(folder)
    hub.push(MODEL, folder)
    options: dict[str, Any] = {"hub": HubOptions(stream=form == "stream"), "weights": form != "no-weights"}
    _fails_in(verify(MODEL, **options), part)


@pytest.mark.parametrize("way", sorted(CACHED))
def test_a_blob_that_was_exchanged(machine: Machine, hub: HubServer, made: Path, way: str) -> None:
    """Another content under a blob's name fails as a path; as an id it is fetched again, and offline it ends with 5."""
    folder = WAYS[way](machine, hub, made)
    blob = (folder / SHARD).resolve()
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(_flip(content))
    _fails_in(verify(folder), "weights")
    with pytest.raises(InputOutputError, match="damaged in the cache"):
        verify(MODEL, hub=HubOptions(offline=True))
    assert verify(MODEL).ok
    assert blob.read_bytes() == content


def test_a_consistent_forgery_is_found_by_pins(
    machine: Machine, hub: HubServer, made: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """Files, manifest and sums that agree with each other are intact; pins and signatures tell them."""
    pinned = verify(MODEL).manifest_sha256
    folder = Path(shutil.copytree(made, tmp_path / "forged"))
    forge_file(folder, "config.json", b'{"forged": 1}')
    hub.push(MODEL, folder)
    assert verify(MODEL).ok
    assert verify(MODEL, expect_manifest=pinned).only_pins
    assert machine.run("verify", MODEL, "--public-key", keys[1], "-q").returncode == 6


def test_no_checkpoint(machine: Machine, hub: HubServer, made: Path) -> None:
    """A repository without manifest and weights is nothing to verify (3)."""
    hub.push("acme/words", {"README.md": made / "README.md"})
    with refused(MalformedInput, problem="no weights here"):
        verify("acme/words")


def test_a_merge_from_the_hub_takes_along_what_belongs_to_its_inputs(
    machine: Machine, hub: HubServer, made: Path, tmp_path: Path
) -> None:
    """``convert`` of a model of the Hub leaves manifest, sums, signature and notices in the cache, though it reads few of them."""
    assert machine.run("convert", "--base", MODEL, "--target", tmp_path / "to", "-q").returncode == 0
    (snapshot,) = (machine.repository(MODEL) / "snapshots").iterdir()
    belonging = {"manifest.json", "SHA256SUMS", "model.sig", "README.md", "DELTAWEIGHTS_NOTICE.txt"}
    assert belonging <= {path.name for path in snapshot.iterdir()}
    assert verify(snapshot).ok


MEBIBYTE = 1 << 20


@pytest.mark.slow
def test_the_memory_of_a_stream(machine: Machine, hub: HubServer, tmp_path: Path) -> None:
    """Verify --stream takes at most 100 MB, whatever the number and size of the files, and fetches each byte once."""
    folder, shards = tmp_path / "large", 33
    folder.mkdir()
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    for number, name in enumerate(names):
        length = (64 if number == 0 else 6) * MEBIBYTE
        values = np.random.default_rng(number).integers(0, 255, length, dtype=np.uint8).view(np.float16)
        save_file({f"t{number}": values}, folder / name)
    index = {"metadata": {}, "weight_map": {f"t{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert machine.run("manifest", folder, "--output", tmp_path / "m.json").returncode == 0
    (tmp_path / "m.json").rename(folder / "manifest.json")
    total = sum(path.stat().st_size for path in folder.iterdir())
    with HubServer({MODEL: folder}) as large:
        machine.turn_to(large)
        code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
        code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
        command = [sys.executable, "-c", code, sys.executable, "-m", "deltaweights", "verify", MODEL, "--stream", "-q"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sum(large.sent.values()) < 1.1 * total
    assert int(done.stdout) * (1 if sys.platform == "darwin" else 1024) < 100_000_000
    assert machine.blobs(MODEL) == {}
