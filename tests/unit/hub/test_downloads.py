"""What is downloaded is what the Hub states, or nothing: checked, continued, shared with ``hf``, refused in one line."""

from __future__ import annotations

import email.utils
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub as hf
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash

from deltaweights.cli.group import deltaweights
from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput, UsageError
from deltaweights.hub import directory as hub_directory
from deltaweights.hub import retry
from deltaweights.hub.downloads import CONNECTIONS, MAX_RESTARTS
from deltaweights.hub.locate import HubOptions
from deltaweights.hub.piece_map import PieceMap
from deltaweights.hub.retry import LONGEST_WAIT, MAX_RETRIES, RetryPolicy
from deltaweights.hub.transfer import DamagedFile
from deltaweights.jobs.download import download
from deltaweights.recipes import catalogue
from tests.support.hub_answers import Hub
from tests.support.hub_client import Machine, forget_connections, wait_for
from tests.support.hub_server import Fault, HubServer
from tests.support.hub_wire import as_json
from tests.support.limits import AT_ONCE, PATIENCE

BASE = "acme/base"
INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NEEDED = ("LICENSE", "README.md", "config.json", ONE, TWO, INDEX, "tokenizer.model", "vocab.txt")
OTHERS = ("optimizer.pt", "training_args.bin", "sub/vocab.txt")
GOOD = "hf_good"
"""A token."""

PIECE = 1 << 20


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint's repository: two shards, what travels with them, and files that nobody needs."""
    made = tmp_path_factory.mktemp("repository")
    bytes_of = np.random.default_rng(5).bytes
    (made / "sub").mkdir()
    (made / "sub/vocab.txt").write_text("the\n")
    (made / "optimizer.pt").write_bytes(bytes_of(1000))
    (made / "training_args.bin").write_bytes(bytes_of(1000))
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    (made / "LICENSE").write_text("Do as you like.\n" * 100)
    (made / "config.json").write_text(json.dumps({"model_type": "llama", "about": "words " * 300}))
    (made / "vocab.txt").write_text("")
    (made / "tokenizer.model").write_bytes(bytes_of(1000))
    (made / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": ONE, "b": TWO}}))
    (made / ONE).write_bytes(bytes_of(3 * PIECE + 400_000))
    (made / TWO).write_bytes(bytes_of(PIECE + 1))
    return made


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    """Serve the repository."""
    with HubServer({BASE: folder}) as served:
        yield served


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubServer) -> Iterator[Machine]:
    """Return a machine that knows the Hub."""
    yield Machine(monkeypatch, tmp_path, hub)
    forget_connections()


def key(path: Path) -> str:
    """Return the name of a file's blob: the sha256 of what the loopback Hub keeps in LFS, else git's hash."""
    content = path.read_bytes()
    lfs = path.suffix in {".safetensors", ".bin", ".model"}
    return hashlib.sha256(content).hexdigest() if lfs else git_hash(content)


def assert_whole(machine: Machine, folder: Path, commit: str, names: tuple[str, ...] = NEEDED) -> None:
    """Assert that the cache has these files of a commit as ``hf`` would have them, and nothing else."""
    repository = machine.repository(BASE)
    snapshot = repository / "snapshots" / commit
    assert sorted(path.name for path in snapshot.iterdir()) == sorted(names)
    for name in names:
        assert (snapshot / name).readlink() == Path("../../blobs") / key(folder / name)
        assert (snapshot / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(machine.blobs(BASE)) == sorted(key(folder / name) for name in names)


def sent(hub: HubServer, name: str) -> int:
    return hub.sent[f"{BASE}/{name}"]


def snapshot_file(machine: Machine, commit: str, name: str) -> Path:
    return machine.repository(BASE) / "snapshots" / commit / name


# What is fetched.


def test_what_a_checkpoint_needs_is_fetched(machine: Machine, hub: HubServer, folder: Path) -> None:
    """A download has weights, index and what travels with them, says sizes and total first, and fetches nothing else."""
    found = machine.fetch(BASE)
    total = sum((folder / name).stat().st_size for name in NEEDED)
    assert found.files == {name: (folder / name).stat().st_size for name in NEEDED}
    assert (found.repo, found.bytes, found.fetched) == (BASE, total, total)
    assert found.path == str(machine.repository(BASE) / "snapshots" / found.commit)
    assert_whole(machine, folder, found.commit)
    assert (machine.repository(BASE) / "refs/main").read_text() == found.commit
    assert [sent(hub, name) for name in OTHERS] == [0] * len(OTHERS)
    assert machine.said.notes[0] == f"hf://{BASE}@{found.commit}: 8 files, 4.6 MB; 4.6 MB to fetch"
    assert machine.said.notes[1:] == [
        "     1.6 kB  LICENSE",
        "   21 bytes  README.md",
        "    1.84 kB  config.json",
        f"    3.55 MB  {ONE}",
        f"    1.05 MB  {TWO}",
        "       1 kB  tokenizer.model",
        "    0 bytes  vocab.txt",
    ]
    again = machine.fetch(BASE)
    assert (again.fetched, again.bytes) == (0, total)
    assert sent(hub, ONE) < (folder / ONE).stat().st_size + 1000


def test_one_format_of_two(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Of a repository with both formats the safetensors are fetched; of the .bin no more is than its first bytes."""
    hub.push("acme/both", {"model.safetensors": folder / TWO, "pytorch_model.bin": folder / ONE})
    assert list(machine.fetch("acme/both").files) == ["model.safetensors"]
    assert hub.sent["acme/both/pytorch_model.bin"] < PIECE // 2
    assert not any("incomplete" in name for name in machine.blobs("acme/both"))


def test_include(machine: Machine, hub: HubServer, folder: Path) -> None:
    """--include fetches what matches, needed or not; what matches nothing is a slip of the pen."""
    found = machine.fetch(BASE, "*.json", "opt*")
    assert_whole(machine, folder, found.commit, ("config.json", INDEX, "optimizer.pt"))
    assert list(found.files) == ["config.json", INDEX, "optimizer.pt"]
    assert sent(hub, ONE) == 0
    with pytest.raises(
        UsageError, match=r"^no file matches: found \*\.gguf, expected LICENSE, README\.md, config\.json, "
    ):
        machine.fetch(BASE, "*.gguf")


def test_a_revision_is_resolved_first(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """A branch that moves between two requests leaves the commit that it was at whole."""
    (tmp_path / ONE).write_bytes(b"other")
    files = {name: folder / name for name in NEEDED} | {ONE: tmp_path / ONE}
    commits: list[str] = []
    hub.faults.append(Fault("act", on="api", action=lambda: commits.append(hub.push(BASE, files))))
    found = machine.fetch(BASE)
    assert_whole(machine, folder, found.commit)
    assert commits
    assert found.commit != commits[0]
    moved = machine.fetch(BASE)
    assert moved.commit == commits[0]
    assert snapshot_file(machine, commits[0], ONE).read_bytes() == b"other"


@pytest.mark.parametrize("revision", ["v1", "feature/x", "commit"])
def test_revisions(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path, revision: str) -> None:
    """A tag, a branch with a slash in its name, and a commit are found after the @ and with --revision, which are the same."""
    (tmp_path / "model.safetensors").write_bytes(b"other")
    old = hub.push(BASE, {"model.safetensors": tmp_path / "model.safetensors"}, "feature/x")
    hub.tag(BASE, "v1", old)
    named = old if revision == "commit" else revision
    assert machine.fetch(f"{BASE}@{named}").commit == machine.fetch(f"hf://{BASE}@{named}").commit == old
    deltaweights.main(["download", BASE, "--revision", named, "-q"], standalone_mode=False)
    refs = machine.repository(BASE) / "refs"
    assert not (refs / "main").exists()
    assert revision == "commit" or (refs / named).read_text() == old


def test_a_recipe_names_both(
    machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe's name stands for its base and delta, at pinned commits, of the format whose hashes it knows, after its notice."""
    recipe = catalogue.load("llava-med-7b")
    assert recipe.delta.repo is not None
    both = {"model.safetensors": folder / ONE, "pytorch_model.bin": folder / TWO}
    hub.push("huggyllama/llama-7b", both)
    hub.push(recipe.delta.repo, {"pytorch_model.bin": folder / TWO})
    pinned = "8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16"
    hub.tag("huggyllama/llama-7b", pinned)
    hub.tag(recipe.delta.repo, recipe.delta.revision or "")
    base, delta = download("llava-med-7b", report=machine.said)
    assert (base.repo, list(base.files)) == ("huggyllama/llama-7b", ["pytorch_model.bin"])
    assert (delta.repo, list(delta.files)) == (recipe.delta.repo, ["pytorch_model.bin"])
    assert hub.sent["huggyllama/llama-7b/model.safetensors"] == 0
    assert [request.path.rpartition("/")[2] for request in hub.requests if "/revision/" in request.path] == [
        pinned,
        recipe.delta.revision,
    ]
    notice = next(note for note in machine.said.notes if note.startswith("licence         LLaVA-Med v1, 7B: "))
    assert machine.said.requests_at[notice] == 0


def test_json(machine: Machine, hub: HubServer, folder: Path) -> None:
    """--json prints what the function returns, -q nothing else; without, stdout says what is verified and where."""
    done = machine.run("download", BASE, "--json", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    found = machine.fetch(BASE)
    expected = asdict(found) | {"fetched": found.bytes}
    assert json.loads(done.stdout) == [expected]
    done = machine.run("download", BASE, "-q")
    assert done.stdout.splitlines() == [
        f"{BASE} at {found.commit}: 8 files, 4.6 MB, 0 bytes of it fetched now",
        f"verified        {found.path}",
    ]


# One cache for two programs.


def test_hf_uses_what_we_fetched(machine: Machine, hub: HubServer, folder: Path) -> None:
    """`hf cache verify` agrees with what we fetched, `hf download` finds it offline, and online fetches what we left out."""
    done = machine.run("download", f"hf://{BASE}", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    commit = hub.push(BASE, folder)
    verified = machine.hf("cache", "verify", BASE)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    offline = machine.hf("download", BASE, ONE, "--quiet", HF_HUB_OFFLINE="1")
    assert offline.stdout.strip().endswith(f"snapshots/{commit}/{ONE}"), offline.stderr
    before = sent(hub, ONE)
    assert machine.hf("download", BASE, "--quiet").returncode == 0
    assert sent(hub, ONE) == before
    assert sent(hub, "optimizer.pt") >= 1000


def test_we_use_what_hf_fetched(
    machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `hf` fetched is checked once and used; not a byte of weights is fetched again, and offline it is enough."""
    hf.snapshot_download(BASE, cache_dir=machine.cache, endpoint=hub.endpoint)
    before = sum(count for name, count in hub.sent.items() if name)
    found = machine.fetch(BASE)
    assert sum(count for name, count in hub.sent.items() if name) == before
    assert (found.fetched, sum("checking " in note for note in machine.said.notes)) == (0, len(NEEDED))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert machine.fetch(BASE).files == found.files
    assert len(hub.requests) == asked


def test_files_are_checked_once(
    machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the cache is hashed once, again when it is another (mtime, inode), and whenever --recheck asks for it."""
    hashed: list[str] = []
    real = hub_directory._hash_of

    def count(file: Any, content: Any) -> str:
        hashed.append(file.name)
        return real(file, content)

    monkeypatch.setattr(hub_directory, "_hash_of", count)
    commit = machine.fetch(BASE).commit
    machine.fetch(BASE)
    assert hashed == []  # they were hashed as they came
    blob = machine.repository(BASE) / "blobs" / key(folder / ONE)
    os.utime(blob, ns=(1, 1))
    machine.fetch(BASE)
    machine.fetch(BASE)
    assert hashed == [ONE]
    shutil.copy2(blob, machine.folder / "copy")
    (machine.folder / "copy").replace(blob)
    machine.fetch(BASE, offline=True)
    machine.fetch(BASE)
    assert hashed == [ONE, ONE]
    hashed.clear()
    machine.fetch(f"{BASE}@{commit}", recheck=True)
    assert sorted(set(hashed)) == sorted(NEEDED)


@pytest.mark.parametrize("name", [ONE, "config.json"])
def test_a_damaged_file_of_the_cache(machine: Machine, hub: HubServer, folder: Path, name: str) -> None:
    """A file that was damaged in the cache is named with both hashes and fetched anew; offline that is the end, and it stays."""
    commit = machine.fetch(BASE).commit
    blob = machine.repository(BASE) / "blobs" / key(folder / name)
    content = bytearray(blob.read_bytes())
    content[100] ^= 1
    blob.write_bytes(content)
    found = hashlib.sha256(content).hexdigest() if name == ONE else git_hash(bytes(content))
    problem = f"sha256 is {found}, the Hub states {blob.name}" if name == ONE else f"git's hash is {found}"
    with pytest.raises(DamagedFile) as caught:
        machine.fetch(BASE, offline=True)
    assert str(caught.value) == f"{blob}: damaged in the cache: {problem}; fetch it again, without --offline"
    assert caught.value.exit_code == 5
    assert blob.read_bytes() == content
    machine.fetch(BASE)
    assert f"{blob}: damaged in the cache: {problem}: fetched again" in machine.said.warnings
    assert_whole(machine, folder, commit)


@pytest.mark.parametrize("how", ["--cache-dir", "HF_HUB_CACHE", "HF_HOME"])
def test_where_the_cache_is(machine: Machine, hub: HubServer, folder: Path, how: str) -> None:
    """The cache is where --cache-dir, HF_HUB_CACHE or HF_HOME say, and HF_HUB_OFFLINE=1 keeps to it: for us as for `hf`."""
    chosen = machine.folder / "elsewhere"
    with pytest.MonkeyPatch.context() as patch:
        if how == "HF_HOME":
            patch.delenv("HF_HUB_CACHE")
            patch.setenv("HF_HOME", str(chosen.parent))
            chosen = chosen.with_name("hub")
        elif how == "HF_HUB_CACHE":
            patch.setenv("HF_HUB_CACHE", str(chosen))
        options = ["--cache-dir", str(chosen)] if how == "--cache-dir" else []
        done = machine.run("download", BASE, "-q", *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert [path.name for path in chosen.glob("models--*")] == ["models--acme--base"]
        patch.setenv("HF_HUB_OFFLINE", "1")
        asked = len(hub.requests)
        assert machine.run("download", BASE, "-q", *options).returncode == 0
        theirs = machine.hf("download", BASE, "config.json", "--quiet", *options)
        assert Path(theirs.stdout.strip().removeprefix("path=")).read_bytes() == (folder / "config.json").read_bytes()
        assert len(hub.requests) == asked
    assert not machine.cache.exists()


# What goes wrong on the way, and is mended.

FOREVER = math.inf

MENDED: dict[str, list[Fault]] = {
    "short body": [Fault("short", ONE, at=2_000_000)],
    "dropped": [Fault("drop", ONE, at=2_000_000)],
    "dropped at once": [Fault("drop", ONE, at=0)],
    "dropped again and again": [Fault("drop", ONE, at=at) for at in range(100_000, 3_400_000, 300_000)],
    "reset": [Fault("reset", ONE, at=2_000_000)],
    "hang-up": [Fault("hang-up", times=4)],
    "stall": [Fault("stall", ONE, at=2_000_000, seconds=60)],
    "503 of the api": [Fault("status", on="api", times=MAX_RETRIES)],
    "503 of resolve": [Fault("status", ONE, on="resolve", times=MAX_RETRIES)],
    "503 of the file host": [Fault("status", ONE, on="files", times=MAX_RETRIES)],
    "500, 502, 504": [Fault("status", ONE, status=status) for status in (500, 502, 504)],
    "429, Retry-After": [Fault("status", ONE, status=429, headers={"Retry-After": "0"}, times=MAX_RETRIES)],
    "429, RateLimit": [
        Fault("status", on="api", status=429, headers={"RateLimit": '"api";r=0;t=0'}, times=MAX_RETRIES)
    ],
    "429, a date": [
        Fault("status", ONE, status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, times=MAX_RETRIES)
    ],
    "no ranges": [Fault("no-range", times=FOREVER)],
    "no ranges, and dropped": [Fault("no-range", ONE, times=FOREVER), Fault("drop", ONE, at=2_000_000)],
    "signed address expired": [Fault("drop", ONE, at=1_500_000), Fault("expire", ONE)],
    "redirected elsewhere": [Fault("redirect", times=FOREVER)],
}


@pytest.mark.parametrize("faults", MENDED.values(), ids=MENDED.keys())
def test_mended_on_the_way(machine: Machine, hub: HubServer, folder: Path, faults: list[Fault]) -> None:
    """What breaks off, is late, is refused for a while, or serves no ranges, leaves the same files in the end."""
    hub.faults.extend(faults)
    commit = machine.fetch(BASE).commit
    assert all(fault.served for fault in faults)
    assert_whole(machine, folder, commit)
    assert machine.said.warnings == []


def test_a_dropped_connection_goes_on_where_it_was(machine: Machine, hub: HubServer, folder: Path) -> None:
    """After a drop no byte is asked for twice, but for what one chunk had."""
    hub.faults.append(Fault("drop", ONE, at=2_000_000))
    machine.fetch(BASE)
    ranges = [request.range for request in hub.requests if request.file.endswith(ONE) and request.host == "files"]
    size = (folder / ONE).stat().st_size
    assert ranges[0] == f"bytes=0-{size - 1}"
    assert ranges[1] is not None
    assert 1_700_000 < int(ranges[1].removeprefix("bytes=").partition("-")[0]) <= 2_000_000


@pytest.mark.parametrize("name", [ONE, "config.json", "tokenizer.model"])
def test_a_flipped_byte(machine: Machine, hub: HubServer, folder: Path, name: str) -> None:
    """A byte that is another on its way is noticed by the hash: told with both hashes, and the file fetched once more."""
    hub.faults.append(Fault("flip", name, at=900))
    commit = machine.fetch(BASE).commit
    assert_whole(machine, folder, commit)
    content = bytearray((folder / name).read_bytes())
    content[900] ^= 1
    found = git_hash(bytes(content)) if name == "config.json" else hashlib.sha256(content).hexdigest()
    where = snapshot_file(machine, commit, name)
    told = f"what arrived has hash {found}, the Hub states {key(folder / name)}: fetched again from its beginning"
    assert machine.said.warnings == [f"{where}: {told}"]
    size = (folder / name).stat().st_size
    assert 2 * size <= sent(hub, name) < 2 * size + 2000


@pytest.mark.parametrize("name", [ONE, "config.json"])
def test_flipped_twice(machine: Machine, hub: HubServer, folder: Path, name: str) -> None:
    """A file that is another twice is the end, with both hashes; nothing of it stays, and the others do."""
    hub.faults.append(Fault("flip", name, at=900, times=2))
    with pytest.raises(DamagedFile) as caught:
        machine.fetch(BASE)
    content = bytearray((folder / name).read_bytes())
    content[900] ^= 1
    found = git_hash(bytes(content)) if name == "config.json" else hashlib.sha256(content).hexdigest()
    where, stated = snapshot_file(machine, hub.push(BASE, folder), name), key(folder / name)
    problem = f"what arrived is not the file of the Hub, twice: found hash {found}, expected {stated}"
    assert str(caught.value) == f"{where}: {problem}; try again later, or from another network"
    assert caught.value.exit_code == 5
    assert not [blob for blob in machine.blobs(BASE) if blob.startswith(stated)]
    assert not where.exists()
    size = (folder / name).stat().st_size
    assert 2 * size <= sent(hub, name) < 2 * size + 2000
    assert_whole(machine, folder, machine.fetch(BASE).commit)


def test_a_stated_hash_that_is_none_of_the_file(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Where the Hub states another hash than its file has, the file never gets its name."""
    hub.faults.append(Fault("hash", ONE))
    with pytest.raises(DamagedFile, match="what arrived is not the file of the Hub, twice: found hash "):
        machine.fetch(BASE)
    assert not snapshot_file(machine, hub.push(BASE, folder), ONE).exists()
    assert not [blob for blob in machine.blobs(BASE) if blob[:60] == key(folder / ONE)[:60]]


WAITS: dict[str, tuple[dict[str, str], list[float]]] = {
    "nothing asked": ({}, [0.5, 1, 2, 4, 8, 16]),
    "Retry-After": ({"retry-after": "7"}, [7] * MAX_RETRIES),
    "Retry-After of an hour": ({"retry-after": "3600"}, [LONGEST_WAIT] * MAX_RETRIES),
    "a date that is over": ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, [0] * MAX_RETRIES),
    "words": ({"retry-after": "soon"}, [0.5, 1, 2, 4, 8, 16]),
    "RateLimit, used up": ({"ratelimit": '"api";r=0;t=3'}, [3] * MAX_RETRIES),
    "RateLimit, not used up": ({"ratelimit": '"api";r=2999;t=172'}, [0.5, 1, 2, 4, 8, 16]),
    "both": ({"retry-after": "1", "ratelimit": '"api";r=0;t=9'}, [1] * MAX_RETRIES),
}


@pytest.mark.parametrize(("headers", "expected"), WAITS.values(), ids=WAITS.keys())
def test_how_long_is_waited(headers: dict[str, str], expected: list[float]) -> None:
    """Waits double, up to a quarter longer so that not all come back at once, or are what the server asks for; then it is over."""
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    policy = RetryPolicy(Stop())
    assert [policy.wait(headers) for _ in range(MAX_RETRIES + 1)] == [True] * MAX_RETRIES + [False]
    assert all(low <= found <= 1.25 * low for found, low in zip(waits, expected, strict=True))
    policy.reset()
    assert policy.wait(headers)
    assert waits[-1] <= 1.25 * expected[0]


def test_a_date_to_come() -> None:
    """Retry-After may be a date, too."""
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 27 < (retry.requested_wait({"retry-after": soon}) or 0) <= 30


# What goes wrong, and is the end.

CHANGED = "; try again; if it stays so, something between here and the Hub changes what comes"
AT = f"hf://{BASE}@COMMIT/{ONE}"
SIZE = 3 * PIECE + 400_000

ENDS: dict[str, tuple[Fault, str]] = {
    "size of a large file": (
        Fault("size", ONE),
        f"{AT}: has another size than the Hub states: found {SIZE}, expected {SIZE + 1}{CHANGED}",
    ),
    "size, one less": (
        Fault("size", ONE, value=SIZE - 1),
        f"{AT}: has another size than the Hub states: found {SIZE}, expected {SIZE - 1}{CHANGED}",
    ),
    "size of a small file": (
        Fault("size", "README.md"),
        f"hf://{BASE}@COMMIT/README.md: has another size than the Hub states: found 21, expected 22{CHANGED}",
    ),
    "size of an empty file": (
        Fault("size", "vocab.txt"),
        f"hf://{BASE}@COMMIT/vocab.txt: has another size than the Hub states: expected 1{CHANGED}",
    ),
    "Content-Range": (
        Fault("content-range", ONE, times=FOREVER),
        (
            f"{AT}: the server sends another range, bytes 1-{SIZE}/{SIZE}, than bytes 0-{SIZE - 1}/{SIZE}; "
            "run again: what has arrived is kept"
        ),
    ),
    "short for ever": (
        Fault("short", ONE, at=2_000_000, times=FOREVER),
        f"{AT}: the connection ended at byte 2000000; run again: what has arrived is kept",
    ),
    "503 of the api": (
        Fault("status", on="api", times=FOREVER),
        f"hf://{BASE}: the Hub answered 503; try again later",
    ),
    "503 of the file host": (
        Fault("status", ONE, on="files", times=FOREVER),
        f"{AT}: the server answered 503; run again: what has arrived is kept",
    ),
    "never an address that is good": (
        Fault("expire", ONE, times=FOREVER),
        f"{AT}: the server answered 403; run again: what has arrived is kept",
    ),
    "redirected to nowhere": (
        Fault("redirect", ONE, location="http://[", times=FOREVER),
        f"{AT}: redirected to no address: found http://[; try again later",
    ),
    "redirected to another protocol": (
        Fault("redirect", ONE, location="file:///etc/passwd", times=FOREVER),
        f"{AT}: redirected to no address: found file:///etc/passwd; try again later",
    ),
    "redirected to itself": (
        Fault("headers", ONE, on="resolve", headers={"Location": f"/{BASE}/resolve/COMMIT/{ONE}"}, times=FOREVER),
        f"{AT}: too many redirects; try again later",
    ),
    "418": (
        Fault("status", ONE, status=418, times=FOREVER),
        f"{AT}: the Hub answered 418; try again later",
    ),
}


@pytest.mark.parametrize(("fault", "message"), ENDS.values(), ids=ENDS.keys())
def test_the_end(machine: Machine, hub: HubServer, folder: Path, fault: Fault, message: str) -> None:
    """What the Hub lies about, and what does not get better, ends in one line with 5, and leaves nothing under a final name."""
    commit = hub.push(BASE, folder)
    if "Location" in fault.headers:
        fault.headers = {"Location": str(fault.headers["Location"]).replace("COMMIT", commit)}
    hub.faults.append(fault)
    with pytest.raises(InputOutputError) as caught:
        machine.fetch(BASE)
    assert str(caught.value) == message.replace("COMMIT", commit)
    assert caught.value.exit_code == 5
    hub.faults.clear()
    for name, blob in machine.blobs(BASE).items():
        assert "deltaweights" in name or key_of_blob(blob) == name
    assert_whole(machine, folder, machine.fetch(BASE).commit)


def key_of_blob(blob: Path) -> str:
    """Return the hash, of the kind that its name is, of a blob."""
    content = blob.read_bytes()
    return hashlib.sha256(content).hexdigest() if len(blob.name) == 64 else git_hash(content)


def test_no_ranges_and_always_dropped(machine: Machine, hub: HubServer, folder: Path) -> None:
    """A file that always breaks off and cannot be continued is given up after some beginnings."""
    hub.faults += [Fault("no-range", ONE, times=FOREVER), Fault("drop", ONE, at=2_000_000, times=FOREVER)]
    with pytest.raises(InputOutputError, match=f"^{ONE}: the server does not serve ranges; try again later$"):
        machine.fetch(BASE)
    begun = sum(request.file.endswith(ONE) and request.host == "files" for request in hub.requests)
    assert MAX_RESTARTS < begun <= 2 * (MAX_RESTARTS + 2)


def test_no_ranges_found_out_by_all_connections(
    machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That all connections find out at once that there are no ranges does not use up the beginnings of the file."""
    monkeypatch.setattr(PieceMap.next_request, "__defaults__", (PIECE,))
    blob = machine.folder / "model.safetensors"
    blob.write_bytes(np.random.default_rng(6).bytes((CONNECTIONS + MAX_RESTARTS) * PIECE))
    hub.push("acme/large", {"model.safetensors": blob})
    hub.faults += [Fault("no-range", repo="acme/large", times=FOREVER), Fault("late", on="files", seconds=0.2, times=8)]
    hub.faults.append(Fault("drop", repo="acme/large", at=10 * PIECE, times=MAX_RESTARTS))
    found = machine.fetch("acme/large")
    assert (Path(found.path) / "model.safetensors").read_bytes() == blob.read_bytes()


NOT_A_HUB: dict[str, Any] = {
    "a list": [],
    "a number": 5,
    "an object of something else": {"error": None},
    "files without names": {"id": BASE, "sha": "0" * 40, "siblings": [{"size": 1}]},
    "a name that is none": {"id": BASE, "sha": "0" * 40, "siblings": [{"rfilename": 5, "size": 1, "blobId": "0" * 40}]},
    "a hash that is none": {"id": BASE, "sha": "0" * 40, "siblings": [{"rfilename": "a", "size": 1, "blobId": 7}]},
    "a size that is none": {
        "id": BASE,
        "sha": "0" * 40,
        "siblings": [{"rfilename": "a", "size": "x", "blobId": "0" * 40}],
    },
    "a size that is a fraction": {
        "id": BASE,
        "sha": "0" * 40,
        "siblings": [{"rfilename": "a", "size": 1.5, "blobId": "0" * 40}],
    },
    "a size beyond all": {
        "id": BASE,
        "sha": "0" * 40,
        "siblings": [{"rfilename": "a", "size": 10**30, "blobId": "0" * 40}],
    },
    "a size below none": {
        "id": BASE,
        "sha": "0" * 40,
        "siblings": [{"rfilename": "a", "size": -1, "blobId": "0" * 40}],
    },
    "siblings that are none": {"id": BASE, "sha": "0" * 40, "siblings": [5]},
}


@pytest.mark.parametrize("value", NOT_A_HUB.values(), ids=NOT_A_HUB.keys())
def test_answers_of_no_hub(machine: Machine, hub: HubServer, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON that is no listing is one line with 5: it is no Hub that answers, or there are no weights in what it lists."""
    monkeypatch.setattr(Hub, "_info", lambda *_: as_json(value))
    with pytest.raises(DeltaweightsError) as caught:
        machine.fetch(BASE)
    no_hub = f"{hub.endpoint}: no answer of a Hub; is HF_ENDPOINT that of a Hub?"
    assert str(caught.value) == no_hub or "no weights here" in str(caught.value)


def test_a_page_instead_of_an_answer(machine: Machine, hub: HubServer) -> None:
    """An endpoint that answers 200 with a page is no Hub: 5."""
    hub.faults.append(Fault("status", on="api", status=200))
    with pytest.raises(InputOutputError) as caught:
        machine.fetch(BASE)
    assert str(caught.value) == f"{hub.endpoint}: no answer of a Hub; is HF_ENDPOINT that of a Hub?"


@pytest.mark.parametrize("commit", ["main", "", "../../..", "0" * 39])
def test_a_commit_that_is_none(machine: Machine, hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Hub names as the commit becomes a folder's name only when it is 40 hex digits."""
    monkeypatch.setattr(Hub, "_info", lambda *_: as_json({"id": BASE, "sha": commit, "siblings": []}))
    with pytest.raises(InputOutputError, match=f"^hf://{BASE}: the Hub names no commit: found {commit}"):
        machine.fetch(BASE)
    assert machine.sizes() == {}


def test_hostile_names(machine: Machine, hub: HubServer, folder: Path) -> None:
    """File names that lead out of the folder, or are no plain names, never reach the disk, not even when asked for."""
    hostile = [
        "../../evil.bin",
        "/evil.bin",
        "..",
        ".",
        "a/../../evil.bin",
        "evil\n.bin",
        "evil\0.bin",
        "e" * 201,
        "C:\\evil.bin",
    ]
    hub.push("acme/evil", dict.fromkeys([*hostile, "model.safetensors", "ok.bin"], folder / TWO))
    found = machine.fetch("acme/evil", "*")
    assert sorted(found.files) == ["model.safetensors", "ok.bin"]
    assert {Path(name).name for name in machine.sizes()} == {key(folder / TWO), "main"}
    assert sorted(path.name for path in machine.folder.rglob("*evil*")) == ["models--acme--evil"]


# Who may read what.


def test_the_token_stays_at_the_hub(machine: Machine, folder: Path) -> None:
    """The token goes to the Hub alone: neither to the file host nor to where a redirect leads."""
    with HubServer({BASE: folder}, gated=[BASE], tokens={GOOD: {BASE}}) as hub:
        machine.turn_to(hub)
        hub.faults.append(Fault("redirect", TWO, on="resolve"))
        commit = machine.fetch(BASE, token=GOOD).commit
        assert_whole(machine, folder, commit)
        assert {request.host for request in hub.requests} == {"hub", "files", "elsewhere"}
        assert all(request.had_authorization == (request.host == "hub") for request in hub.requests)


@pytest.mark.parametrize("how", ["HF_TOKEN", "hf auth login", "--token"])
def test_where_the_token_is_from(machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A gated repository is read with the token of --token, HF_TOKEN, or `hf auth login`."""
    if how == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", GOOD)
    elif how == "hf auth login":
        machine.log_in(GOOD)
    with HubServer({BASE: folder}, gated=[BASE], private=[BASE], tokens={GOOD: {BASE}}) as hub:
        machine.turn_to(hub)
        assert_whole(machine, folder, machine.fetch(BASE, token=GOOD if how == "--token" else None).commit)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        if how != "--token":
            with pytest.raises(InputOutputError, match="no such model, or a private one"):
                machine.fetch(BASE)


ASK = "access to this model must be asked for"
LOG_IN = "log in with: hf auth login, or set HF_TOKEN"

REFUSED: dict[str, tuple[str, str | None, str]] = {
    "gated, no token": (
        "acme/gated",
        None,
        f"hf://acme/gated@COMMIT: {ASK}; ask for access at HUB/acme/gated, then {LOG_IN}",
    ),
    "gated, a token without access": (
        "acme/gated",
        GOOD,
        f"hf://acme/gated@COMMIT: {ASK}; ask for access at HUB/acme/gated",
    ),
    "wrong token": (BASE, "hf_wrong", f"hf://{BASE}: the Hub does not know the token; {LOG_IN} again"),
    "private, no token": (
        "acme/private",
        None,
        f"hf://acme/private: no such model, or a private one; check the name; if it is private, {LOG_IN}",
    ),
    "private, a token without access": (
        "acme/private",
        GOOD,
        "hf://acme/private: no such model, or a private one; check the name, and the token",
    ),
    "no such model": (
        "acme/nothing@main",
        GOOD,
        "hf://acme/nothing@main: no such model, or a private one; check the name, and the token",
    ),
    "no such revision": (f"{BASE}@v9", None, f"hf://{BASE}@v9: no such revision; check the part after the @"),
}


@pytest.mark.parametrize(("model", "token", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(machine: Machine, folder: Path, model: str, token: str | None, message: str) -> None:
    """What the Hub refuses is one line that says what to do, and 5; nothing that counts is in the cache."""
    names = {BASE: folder, "acme/gated": folder, "acme/private": folder}
    with HubServer(names, gated=["acme/gated"], private=["acme/private"], tokens={GOOD: {BASE}}) as hub:
        machine.turn_to(hub)
        commit = hub.push("acme/gated", folder)
        with pytest.raises(InputOutputError) as caught:
            machine.fetch(model, token=token)
    assert str(caught.value) == message.replace("COMMIT", commit).replace("HUB", hub.endpoint)
    assert caught.value.exit_code == 5
    assert set(machine.blobs("acme/gated")) <= {git_hash(b"")} | {n for n in machine.blobs("acme/gated") if "." in n}


def test_no_weights(machine: Machine, hub: HubServer, folder: Path) -> None:
    """A repository without weights is refused before anything is fetched; --include takes its files all the same."""
    commit = hub.push("acme/words", {"README.md": folder / "README.md"})
    with pytest.raises(MalformedInput) as caught:
        machine.fetch("acme/words")
    assert str(caught.value).startswith(
        f"{machine.repository('acme/words') / 'snapshots' / commit}: no weights here: found README.md, expected "
    )
    assert hub.sent["acme/words/README.md"] == 0
    assert list(machine.fetch("acme/words", "*").files) == ["README.md"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "acme/base/x",
            "not a Hub id: found acme/base/x, expected ORG/NAME, ORG/NAME@REVISION, or the name of a recipe",
        ),
        ("acme/../x", "not a Hub id: found acme/../x, expected ORG/NAME, ORG/NAME@REVISION, or the name of a recipe"),
        ("acme/", "not a Hub id: found acme/, expected ORG/NAME, ORG/NAME@REVISION, or the name of a recipe"),
        (
            "acme/b@a..b",
            "not a Hub id: found acme/b@a..b, expected ORG/NAME, ORG/NAME@REVISION, or the name of a recipe",
        ),
        ("hf://", "not a Hub id: found hf://, expected hf://ORG/NAME or hf://ORG/NAME@REVISION"),
        ("hf://a/b/c", "not a Hub id: found hf://a/b/c, expected hf://ORG/NAME or hf://ORG/NAME@REVISION"),
        ("llava-med", "no recipe has this name: found llava-med, expected "),
    ],
)
def test_a_malformed_id(machine: Machine, hub: HubServer, model: str, message: str) -> None:
    """What is neither an id nor a recipe's name is a slip of the pen (2), told without asking anybody."""
    with pytest.raises(UsageError) as caught:
        deltaweights.main(["download", model], standalone_mode=False)
    assert str(caught.value).startswith(message)
    assert (caught.value.exit_code, hub.requests) == (2, [])


@pytest.mark.parametrize("token", ["hf_one\nline", "hf one", "hf_\u00fc"])
def test_a_token_that_is_none(machine: Machine, hub: HubServer, token: str) -> None:
    """A token with characters that none has is refused without being shown."""
    with pytest.raises(UsageError) as caught:
        machine.fetch(BASE, token=token)
    assert str(caught.value) == "the token of the Hub has characters that none has; check --token and HF_TOKEN"
    assert hub.requests == []


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_no_network(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Where nobody answers it says so; what is in the cache can be used with --offline."""
    address = f"http://127.0.0.1:{closed_port()}"
    files = machine.fetch(BASE).files
    machine.turn_to(address)
    with pytest.raises(InputOutputError) as caught:
        machine.fetch(BASE)
    remedy = "check the network, or use what is in the cache with --offline"
    assert str(caught.value) == f"{address}: cannot be reached: [Errno 111] Connection refused; {remedy}"
    assert machine.fetch(BASE, offline=True).files == files


def test_offline(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Offline nobody is asked: without a cache it is the end, with a part of the files, too."""
    remedy = "leave --offline out, or fetch it first: deltaweights download"
    with pytest.raises(InputOutputError) as caught:
        machine.fetch(BASE, offline=True)
    assert str(caught.value) == f"hf://{BASE}: not in the cache: found {machine.cache}; {remedy}"
    assert hub.requests == []
    commit = machine.fetch(BASE, "*.json", "*.model").commit
    asked = len(hub.requests)
    with pytest.raises(MalformedInput, match=r"index names shards that are not there|missing"):
        machine.fetch(BASE, offline=True)
    assert list(machine.fetch(f"{BASE}@{commit}", "*.model", offline=True).files) == ["tokenizer.model"]
    with pytest.raises(InputOutputError, match=rf"^hf://{BASE}@v1: not in the cache: "):
        machine.fetch(f"{BASE}@v1", offline=True)
    assert len(hub.requests) == asked


def test_the_command_line_ends_with_five(machine: Machine, hub: HubServer) -> None:
    """On the command line a refusal is one line on stderr, and 5."""
    done = machine.run("download", "acme/nothing")
    problem = f"no such model, or a private one; check the name; if it is private, {LOG_IN}"
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == f"deltaweights: error: hf://acme/nothing: {problem}\n"


# The disk.


def test_a_full_disk_is_told_before(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit on the disk is refused before a byte of weights is asked for."""
    usage = shutil.disk_usage(machine.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000_000))
    with pytest.raises(InputOutputError) as caught:
        machine.fetch(BASE)
    where = machine.repository(BASE)
    remedy = "make room, choose another place with --cache-dir, or keep nothing with --stream"
    problem = "not enough free disk for the download: found 20 MB free, expected 21.4 MB"
    assert str(caught.value) == f"{where}: {problem}; {remedy}"
    assert sent(hub, ONE) == 0


def test_a_disk_that_fills_up(machine: Machine, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up meanwhile ends the download in one line; what arrived is kept, and the next one goes on."""
    real, written = os.pwrite, 0

    def pwrite(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 2 * PIECE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(InputOutputError) as caught:
            machine.fetch(BASE)
    assert str(caught.value).endswith(": cannot write: No space left on device; make room; what has arrived is kept")
    before = sum(hub.sent.values())
    assert_whole(machine, folder, machine.fetch(BASE).commit)
    assert sum(hub.sent.values()) - before < sum((folder / name).stat().st_size for name in NEEDED)


# Ends that come from outside.


@pytest.fixture
def large(tmp_path: Path) -> dict[str, Path]:
    """Make the files of a repository that takes a while."""
    content, files = np.random.default_rng(7).bytes(8 * PIECE), {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        files[name] = tmp_path / name
        files[name].write_bytes(content[number:])
    files[INDEX] = tmp_path / INDEX
    files[INDEX].write_text(json.dumps({"metadata": {}, "weight_map": {"a": ONE, "b": TWO}}))
    return files


SLOW = 6e6
"""Bytes per second."""


def weights_sent(hub: HubServer) -> int:
    return sent(hub, ONE) + sent(hub, TWO)


def interrupted(machine: Machine, hub: HubServer, after: int, number: signal.Signals) -> tuple[int, float, str]:
    """Begin a download and send it a signal when so many bytes were sent; return how it ended, after how long, and its words."""
    with machine.start("download", BASE, "-q") as process:
        wait_for(lambda: weights_sent(hub) > after, process)
        process.send_signal(number)
        began = time.monotonic()
        _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, time.monotonic() - began, err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill -9", "Ctrl-C", "kill"])
def test_what_is_interrupted_goes_on(machine: Machine, large: dict[str, Path], number: signal.Signals) -> None:
    """A download that was killed or interrupted, which ends at once, goes on where it was, and ends verified."""
    with HubServer({BASE: large}, rate=SLOW) as hub:
        machine.turn_to(hub)
        code, seconds, err = interrupted(machine, hub, 8 * PIECE, number)
    if number == signal.SIGKILL:
        assert code == -number
    else:
        words = "interrupted" if number == signal.SIGINT else "terminated"
        assert (code, err) == (128 + number, f"deltaweights: error: {words}\n")
        assert seconds < AT_ONCE
    assert not {key(large[name]) for name in (ONE, TWO)} & set(machine.blobs(BASE))
    with HubServer({BASE: large}) as hub:
        machine.turn_to(hub)
        done = machine.run("download", BASE, "-q")
        assert (done.returncode, done.stderr) == (0, "")
        commit = hub.push(BASE, large)
        assert weights_sent(hub) < (16 - 8 + 4) * PIECE
    for name, path in large.items():
        assert snapshot_file(machine, commit, name).read_bytes() == path.read_bytes()
    assert sorted(machine.blobs(BASE)) == sorted(map(key, large.values()))


def test_ctrl_c_while_nothing_comes(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends at once also while all connections are stalled, and the process is gone by then."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", str(3 * AT_ONCE))
    hub.faults += [Fault("stall", name, at=1_000_000, seconds=3 * AT_ONCE) for name in (ONE, TWO)]
    code, seconds, err = interrupted(machine, hub, 1_990_000, signal.SIGINT)
    assert (code, err) == (130, "deltaweights: error: interrupted\n")
    assert seconds < AT_ONCE


def test_ctrl_c_while_the_hub_is_silent(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends also the wait for the first answer, and that for the end of a 429."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", str(3 * AT_ONCE))
    for fault in (
        Fault("late", on="api", seconds=3 * AT_ONCE),
        Fault("status", on="api", status=429, headers={"Retry-After": str(3 * AT_ONCE)}),
    ):
        hub.faults[:] = [fault]
        with machine.start("download", BASE, "-q") as process:
            wait_for(lambda: fault.served > 0)  # noqa: B023  (called at once)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (130, "deltaweights: error: interrupted\n")
        assert time.monotonic() - began < AT_ONCE


def test_two_processes_at_once(machine: Machine, large: dict[str, Path]) -> None:
    """Two downloads of the same repository at once fetch each byte about once, and both end well."""
    with HubServer({BASE: large}, rate=2 * SLOW) as hub:
        machine.turn_to(hub)
        with machine.start("download", BASE) as one, machine.start("download", BASE) as other:
            errs = [process.communicate(timeout=PATIENCE)[1] for process in (one, other)]
        assert (one.returncode, other.returncode) == (0, 0), errs
        total = sum(path.stat().st_size for path in large.values())
        assert weights_sent(hub) < 1.1 * total
    assert sum("another process is fetching" in err for err in errs) == 1
    assert sorted(machine.blobs(BASE)) == sorted(map(key, large.values()))


def until(words: str, lines: Iterable[str]) -> str:
    """Return what is said up to the first line with these words."""
    said = ""
    for line in lines:
        said += line
        if words in line:
            break
    return said


def test_what_another_process_gave_up_is_taken_over(machine: Machine, large: dict[str, Path]) -> None:
    """When the process that has a file is killed, one that waits for it takes the file over where it was."""
    with HubServer({BASE: large}, rate=SLOW) as hub:
        machine.turn_to(hub)
        with machine.start("download", BASE) as one:
            wait_for(lambda: weights_sent(hub) > 12 * PIECE, one)
            one.send_signal(signal.SIGSTOP)  # it keeps the files, however long the other takes to begin
            with machine.start("download", BASE) as other:
                assert other.stderr is not None
                said = iter(other.stderr.readline, "")
                err = until("another process is fetching", said)
                one.kill()
                one.communicate()
                err += other.communicate(timeout=PATIENCE)[1]
        assert other.returncode == 0, err
        assert "another process is fetching" in err
        assert weights_sent(hub) < (12 + 12) * PIECE  # 16, and up to 4 on their way to who was stopped
    assert sorted(machine.blobs(BASE)) == sorted(map(key, large.values()))


@pytest.mark.parametrize("left", ["marks of another size", "no marks", "an empty file", "noise in the marks"])
def test_what_an_earlier_run_left_is_never_trusted(machine: Machine, hub: HubServer, folder: Path, left: str) -> None:
    """Whatever lies where files are gathered, the hash decides: the file is right in the end."""
    blobs = machine.repository(BASE) / "blobs"
    blobs.mkdir(parents=True)
    stated, size = key(folder / ONE), (folder / ONE).stat().st_size
    gathered, marks = (blobs / f"{stated}.deltaweights.{what}" for what in ("incomplete", "pieces"))
    gathered.write_bytes(b"" if left == "an empty file" else bytes(size))
    if left != "no marks":
        marks.write_bytes(b"f" * 32 + b"\1" * (2 if left == "marks of another size" else 4))
    if left == "noise in the marks":
        marks.write_bytes(bytes(range(256)))
    assert_whole(machine, folder, machine.fetch(BASE).commit)


def test_options_without_sense(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that keeps nothing, and the path of a folder, are refused."""
    with pytest.raises(UsageError, match=r"^a download that keeps nothing; leave stream out$"):
        download(BASE, options=HubOptions(stream=True))
    (machine.folder / "acme/base").mkdir(parents=True)
    monkeypatch.chdir(machine.folder)
    with pytest.raises(UsageError, match=f"^not a Hub id: found {BASE}, expected "):
        machine.fetch(BASE)
    assert machine.fetch(f"hf://{BASE}").repo == BASE


def test_waits_are_told(machine: Machine, hub: HubServer, folder: Path) -> None:
    """That the Hub, or its file host, is asked again is said once, and not by every connection."""
    hub.faults += [
        Fault("status", on="api", status=503, times=2),
        Fault("status", ONE, on="files", status=503, times=2),
    ]
    machine.fetch(BASE)
    assert [note for note in machine.said.notes if note.endswith(": trying again")] == [
        f"{hub.endpoint}: the Hub answered 503: trying again"
    ]
