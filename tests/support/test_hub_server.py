"""The loopback Hub is faithful: the real client takes it for the Hub, and every fault does what its name says.

Only then do tests of what talks to the Hub mean anything.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage, IncompleteRead, RemoteDisconnected
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import huggingface_hub as hf
import numpy as np
import pytest
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hub_faults import Kind, fault_from
from tests.support.hub_server import Fault, HubServer, bytes_per_second
from tests.support.limits import AT_ONCE, PATIENCE

BASE = "acme/base"
GOOD = "hf_good"
"""A token."""

WEIGHTS = "pytorch_model-00001-of-00002.bin"
SMALL = ("README.md", "config.json", "sub/vocab.txt")
LFS = ("large.dat", "model.safetensors", WEIGHTS, "sub/tokenizer.model")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the files of a repository: small ones, and LFS files by name and by size."""
    made = tmp_path_factory.mktemp("repository")
    bytes_of = np.random.default_rng(5).bytes
    (made / "sub").mkdir()
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    (made / "config.json").write_text(json.dumps({"model_type": "llama", "about": "words " * 300}))
    (made / "sub/vocab.txt").write_text("the\n" * 10)
    (made / "sub/tokenizer.model").write_bytes(bytes_of(1000))
    (made / "model.safetensors").write_bytes(bytes_of(300_000))
    (made / WEIGHTS).write_bytes(bytes_of(2_000_000))
    (made / "large.dat").write_bytes(bytes_of((1 << 20) + 1))
    return made


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the client be nobody in particular, quiet, and without Xet, and keep no connection."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    disable_progress_bars()
    yield
    enable_progress_bars()
    hf.close_session()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let nobody sleep, and say for how long they wanted to; the server has no use for ``time.sleep``."""
    wanted: list[float] = []
    monkeypatch.setattr(time, "sleep", wanted.append)
    return wanted


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    """Serve one repository."""
    with HubServer({BASE: folder}) as served:
        yield served


@dataclass(frozen=True)
class Reply:
    """What came back for a request that follows no redirects."""

    status: int
    headers: HTTPMessage
    body: bytes


def ask(url: str, method: str = "GET", body: str | None = None, **headers: str) -> Reply:
    """Ask for a URL; underscores in the names of headers stand for hyphens."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=PATIENCE)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body, sent)
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def location(hub: HubServer, path: str = WEIGHTS) -> str:
    """Return the signed address of an LFS file."""
    return str(ask(f"{hub.endpoint}/{BASE}/resolve/main/{path}", "HEAD").headers["Location"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(hub: HubServer, path: str, cache: Path, **options: Any) -> bytes:
    """Return a file as the real client downloads it."""
    return Path(hf_hub_download(BASE, path, endpoint=hub.endpoint, cache_dir=cache, **options)).read_bytes()


# What is there.


def test_model_info(hub: HubServer, folder: Path) -> None:
    """model_info gives the commit and each file's size, git hash and, for LFS files, sha256 and pointer."""
    info = HfApi(hub.endpoint).model_info(BASE, files_metadata=True)
    assert (info.id, info.gated, info.private, len(info.sha or "")) == (BASE, False, False, 40)
    found = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert sorted(found) == sorted(SMALL + LFS)
    for path in SMALL:
        content = (folder / path).read_bytes()
        assert (found[path].size, found[path].blob_id, found[path].lfs) == (len(content), git_hash(content), None)
    for path in LFS:
        size, expected, lfs = (folder / path).stat().st_size, sha256(folder / path), found[path].lfs
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{expected}\nsize {size}\n".encode()
        assert lfs is not None
        assert (found[path].size, lfs.size, lfs.sha256, lfs.pointer_size) == (size, size, expected, len(pointer))
        assert found[path].blob_id == git_hash(pointer)
    plain = HfApi(hub.endpoint).model_info(BASE).siblings or []
    assert [(sibling.size, sibling.blob_id, sibling.lfs) for sibling in plain] == [(None, None, None)] * len(found)


def test_revisions(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """A branch, a tag and a full commit are revisions, slashes and all; a push moves its branch and nothing else."""
    api = HfApi(hub.endpoint)
    first = api.model_info(BASE).sha
    hub.tag(BASE, "v1")
    second = hub.push(BASE, {"only.txt": folder / "README.md"})
    other = hub.push(BASE, {}, "refs/pr/1")
    commits = {revision: api.model_info(BASE, revision=revision).sha for revision in ("main", "v1", "refs/pr/1", first)}
    assert commits == {"main": second, "v1": first, "refs/pr/1": other, first: first}
    assert api.resolve_revision(BASE, cache_dir=tmp_path).resolved == second
    refs = api.list_repo_refs(BASE)
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    assert [ref.name for ref in refs.branches] == ["main", "refs/pr/1"]
    assert hub.push(BASE, folder) == first, "the same content is the same commit"


@pytest.mark.parametrize("page_size", [1, 3, 1000])
def test_tree(hub: HubServer, folder: Path, page_size: int) -> None:
    """/tree lists files and folders, page by page, the same whatever the size of a page."""
    hub.page_size = page_size
    entries = list(HfApi(hub.endpoint).list_repo_tree(BASE, recursive=True))
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    assert [entry.path for entry in entries if isinstance(entry, RepoFolder)] == ["sub"]
    assert sorted(files) == sorted(SMALL + LFS)
    assert all(files[path].lfs is None for path in SMALL)
    for path in LFS:
        lfs = files[path].lfs
        assert lfs is not None
        assert (lfs.sha256, lfs.size) == (sha256(folder / path), (folder / path).stat().st_size)
    assert len(hub.requests) == -(-len(entries) // page_size)


def test_tree_of_a_folder(hub: HubServer) -> None:
    """Without recursion, /tree lists one folder; one that is not there is EntryNotFound."""
    api = HfApi(hub.endpoint)
    assert {entry.path for entry in api.list_repo_tree(BASE)} == {"README.md", "config.json", "sub", *LFS[:3]}
    assert [entry.path for entry in api.list_repo_tree(BASE, "sub")] == ["sub/tokenizer.model", "sub/vocab.txt"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(BASE, "none"))


def test_paths_info(hub: HubServer) -> None:
    """/paths-info knows files and folders and is silent about what is missing; asked by a form and by JSON alike."""
    found = HfApi(hub.endpoint).get_paths_info(BASE, ["sub", WEIGHTS, "missing.txt"])
    assert sorted(entry.path for entry in found) == [WEIGHTS, "sub"]
    url, body = f"{hub.endpoint}/api/models/{BASE}/paths-info/main", json.dumps({"paths": ["config.json"]})
    reply = ask(url, "POST", body, Content_Type="application/json")
    assert [entry["path"] for entry in json.loads(reply.body)] == ["config.json"]


@pytest.mark.parametrize("path", [WEIGHTS, "sub/vocab.txt"])
def test_file_metadata(hub: HubServer, folder: Path, path: str) -> None:
    """The metadata of a file are its commit, its size, and its sha256 or git hash; LFS files lie at another origin."""
    found = get_hf_file_metadata(hf_hub_url(BASE, path, endpoint=hub.endpoint))
    content = (folder / path).read_bytes()
    lfs = path in LFS
    assert found.etag == (sha256(folder / path) if lfs else git_hash(content))
    assert (found.size, found.commit_hash) == (len(content), HfApi(hub.endpoint).model_info(BASE).sha)
    assert found.location.startswith(f"{hub.files}/" if lfs else f"{hub.endpoint}/api/resolve-cache/")
    assert found.xet_file_data is None
    statuses = [(request.host, request.method, request.status) for request in hub.requests[:2]]
    assert statuses[0] == ("hub", "HEAD", 302 if lfs else 307)
    assert lfs or statuses[1] == ("hub", "HEAD", 200)


# Downloads by the real client.


@pytest.mark.parametrize("path", SMALL + LFS)
def test_download(hub: HubServer, folder: Path, tmp_path: Path, path: str) -> None:
    """hf_hub_download gets every kind of file as it is, and shows its token to no origin but the Hub's."""
    hub.tokens[GOOD] = set()
    assert fetch(hub, path, tmp_path, token=GOOD) == (folder / path).read_bytes()
    assert {(request.host, request.had_authorization) for request in hub.requests} == (
        {("hub", True), ("files", False)} if path in LFS else {("hub", True)}
    )
    assert {request.file for request in hub.requests} == {f"{BASE}/{path}"}
    if path in LFS:
        assert hub.sent[f"{BASE}/{path}"] == (folder / path).stat().st_size


def run_hf(hub: HubServer, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the ``hf`` command against the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings_ = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=kept | settings_)


@pytest.mark.slow
def test_hf_command(hub: HubServer, tmp_path: Path) -> None:
    """`hf download` and `hf cache verify` agree with what is served; a flipped byte passes the first and not the second."""
    assert run_hf(hub, tmp_path / "good", "download", BASE).returncode == 0
    good = run_hf(hub, tmp_path / "good", "cache", "verify", BASE)
    assert good.returncode == 0, good.stderr
    hub.faults.append(Fault("flip", WEIGHTS, at=1_999_999))
    assert run_hf(hub, tmp_path / "bad", "download", BASE).returncode == 0
    bad = run_hf(hub, tmp_path / "bad", "cache", "verify", BASE)
    assert bad.returncode == 1
    assert WEIGHTS in bad.stdout + bad.stderr
    assert hub.faults[0].served == 1


def test_snapshot(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """snapshot_download gets the whole repository with many connections at once."""
    hub.page_size = 2
    got = Path(snapshot_download(BASE, endpoint=hub.endpoint, cache_dir=tmp_path, max_workers=8))
    assert {path: (got / path).read_bytes() for path in SMALL + LFS} == {
        path: (folder / path).read_bytes() for path in SMALL + LFS
    }
    assert got.name == HfApi(hub.endpoint).model_info(BASE).sha


# Who may see what.


@pytest.fixture
def guarded(folder: Path) -> Iterator[HubServer]:
    """Serve a gated and a private repository beside a public one."""
    tokens = {GOOD: {"acme/gated", "acme/private"}, "hf_other": set[str]()}
    repositories = {BASE: folder, "acme/gated": folder, "acme/private": folder}
    with HubServer(repositories, gated={"acme/gated"}, private={"acme/private"}, tokens=tokens) as served:
        yield served


@pytest.mark.parametrize(
    ("repo", "token", "error", "status", "words"),
    [
        ("acme/gated", False, GatedRepoError, 401, "You must have access to it and be authenticated"),
        ("acme/gated", "hf_other", GatedRepoError, 403, "you are not in the authorized list"),
        ("acme/private", False, RepositoryNotFoundError, 401, "Invalid username or password."),
        ("acme/private", "hf_other", RepositoryNotFoundError, 404, "Repository not found"),
        ("acme/missing", False, RepositoryNotFoundError, 401, "Invalid username or password."),
        ("acme/missing", "hf_other", RepositoryNotFoundError, 404, "Repository not found"),
        (BASE, "hf_bad", HfHubHTTPError, 401, "Invalid credentials in Authorization header"),
        ("acme/gated", "hf_bad", HfHubHTTPError, 401, "Invalid credentials in Authorization header"),
    ],
)
def test_refused(
    guarded: HubServer,
    tmp_path: Path,
    repo: str,
    token: str | bool,
    error: type[HfHubHTTPError],
    status: int,
    words: str,
) -> None:
    """Who may not read a file is told so as on the Hub: by status, code and message."""
    with pytest.raises(error) as caught:
        hf_hub_download(repo, WEIGHTS, endpoint=guarded.endpoint, cache_dir=tmp_path, token=token)
    assert type(caught.value) is error
    assert caught.value.response.status_code == status
    assert words in caught.value.response.headers["X-Error-Message"]
    assert guarded.requests[-1].had_authorization is isinstance(token, str)


@pytest.mark.parametrize("repo", ["acme/gated", "acme/private"])
def test_allowed(guarded: HubServer, folder: Path, tmp_path: Path, repo: str) -> None:
    """With a token that has access, a gated and a private repository are like any other."""
    got = snapshot_download(repo, endpoint=guarded.endpoint, cache_dir=tmp_path, token=GOOD)
    assert (Path(got) / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    HfApi(guarded.endpoint).auth_check(repo, token=GOOD)


def test_gated_listing_is_public(guarded: HubServer) -> None:
    """Anybody may list a gated repository, as on the Hub; whether one may read it, auth_check says."""
    api = HfApi(guarded.endpoint, token=False)
    assert api.model_info("acme/gated").gated == "manual"
    assert len(list(api.list_repo_tree("acme/gated"))) == 6
    with pytest.raises(GatedRepoError):
        api.auth_check("acme/gated")


def test_whoami(guarded: HubServer) -> None:
    """/whoami-v2 knows the tokens; to others it answers 401."""
    assert HfApi(guarded.endpoint).whoami("hf_other")["name"] == "tester"
    with pytest.raises(HfHubHTTPError, match=r"Invalid user token\."):
        HfApi(guarded.endpoint).whoami("hf_bad")


def test_not_found(hub: HubServer, tmp_path: Path) -> None:
    """A missing revision and a missing file are told apart, and the latter names the commit."""
    with pytest.raises(RevisionNotFoundError, match="Invalid rev id: none"):
        fetch(hub, WEIGHTS, tmp_path, revision="none")
    with pytest.raises(RevisionNotFoundError):
        HfApi(hub.endpoint).model_info(BASE, revision="0" * 40)
    with pytest.raises(RemoteEntryNotFoundError) as caught:
        fetch(hub, "none.bin", tmp_path)
    assert caught.value.response.headers["X-Repo-Commit"] == HfApi(hub.endpoint).model_info(BASE).sha
    split = ask(f"{hub.endpoint}/api/models/{BASE}/revision/{quote(chr(10) + 'X-Evil: 1')}")
    assert (split.headers["X-Error-Message"], split.headers["X-Evil"]) == ("Invalid rev id: ?X-Evil: 1", None)
    assert ask(f"{hub.endpoint}/nowhere").status == ask(f"{hub.files}/{BASE}/resolve/main/{WEIGHTS}").status == 404


# The file host.


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_whole_and_head(hub: HubServer, folder: Path, path: str) -> None:
    """A file is sent whole with its exact length; HEAD says the same and sends nothing."""
    reply = ask(f"{hub.endpoint}/{BASE}/resolve/main/{path}")
    url = reply.headers["Location"] if path in LFS else f"{hub.endpoint}{reply.headers['Location']}"
    whole, head = ask(url), ask(url, "HEAD")
    content = (folder / path).read_bytes()
    assert (whole.status, whole.body, head.status, head.body) == (200, content, 200, b"")
    for headers in (whole.headers, head.headers):
        assert (headers["Content-Length"], headers["Accept-Ranges"]) == (str(len(content)), "bytes")
    assert sha256(folder / path) not in whole.headers["ETag"], "the file host's ETag is no sha256"


@given(first=st.integers(0, 400_000), length=st.integers(0, 400_000))
@settings(deadline=None, max_examples=40)
def test_ranges(ranged: tuple[HubServer, str, bytes], first: int, length: int) -> None:
    """Whatever range is asked for, 206 has those bytes and names them, and 416 comes where there are none."""
    _, url, content = ranged
    reply = ask(url, Range=f"bytes={first}-{first + length}")
    expected = content[first : first + length + 1]
    if expected:
        stated = f"bytes {first}-{first + len(expected) - 1}/{len(content)}"
        assert (reply.status, reply.headers["Content-Range"], reply.body) == (206, stated, expected)
    else:
        assert (reply.status, reply.headers["Content-Range"]) == (416, f"bytes */{len(content)}")


@pytest.fixture(scope="module")
def ranged(folder: Path) -> Iterator[tuple[HubServer, str, bytes]]:
    """Serve one file of 300,000 bytes."""
    with HubServer({BASE: folder}) as served:
        yield served, location(served, "model.safetensors"), (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=299999-", slice(299_999, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=-400000", slice(0, None)),
        ("bytes=0-0", slice(0, 1)),
    ],
)
def test_open_ranges(ranged: tuple[HubServer, str, bytes], header: str, part: slice) -> None:
    """Ranges may be open at either end."""
    _, url, content = ranged
    reply = ask(url, Range=header)
    assert (reply.status, reply.body) == (206, content[part])


def test_several_ranges_are_none(ranged: tuple[HubServer, str, bytes]) -> None:
    """Several ranges at once are answered by the whole file, which a server may do."""
    _, url, content = ranged
    reply = ask(url, Range="bytes=0-1,5-6")
    assert (reply.status, reply.body) == (200, content)


def test_signed_addresses(hub: HubServer, folder: Path) -> None:
    """The file host takes an address that the Hub signed, until it expires, and no other; a token beside it is refused."""
    url = location(hub)
    assert ask(url, Authorization=f"Bearer {GOOD}").status == 400
    assert hub.requests[-1].had_authorization
    assert ask(url.replace("X-Amz-Signature=", "X-Amz-Signature=0")).status == 403
    hub.push(BASE, {})
    assert ask(url).body == (folder / WEIGHTS).read_bytes(), "an address is one of content, not of a branch"
    hub.expire()
    assert ask(url).status == 403


def test_compressed(hub: HubServer, folder: Path) -> None:
    """A small text is sent compressed, without a length, to clients that accept it, also when they ask for a range."""
    url = hub.endpoint + ask(f"{hub.endpoint}/{BASE}/resolve/main/config.json").headers["Location"]
    content = (folder / "config.json").read_bytes()
    reply = ask(url, Accept_Encoding="gzip, deflate", Range="bytes=5-9")
    assert (reply.status, reply.headers["Content-Encoding"]) == (200, "gzip")
    assert "Content-Length" not in reply.headers
    assert gzip.decompress(reply.body) == content
    assert ask(url, Range="bytes=5-9").body == content[5:10]


def test_rate_limits_are_stated(hub: HubServer) -> None:
    """Every answer of the Hub says what is left of its limits, which is no reason to wait."""
    for path in (f"api/models/{BASE}", f"{BASE}/resolve/main/{WEIGHTS}", "api/models/acme/none"):
        assert ";r=2999;t=172" in ask(f"{hub.endpoint}/{path}").headers["RateLimit"]


# Faults of bytes.


def test_flip(hub: HubServer, folder: Path) -> None:
    """A flip changes the lowest bit of one byte, as often as it says, and only where that byte is sent."""
    hub.faults.append(Fault(path="*.bin", kind="flip", at=1234, times=2))
    content, url = (folder / WEIGHTS).read_bytes(), location(hub)
    flipped = content[:1234] + bytes([content[1234] ^ 1]) + content[1235:]
    assert ask(url, "HEAD").status == 200
    assert ask(url, Range="bytes=1235-2000").body == content[1235:2001]
    assert ask(url, Range="bytes=1000-2000").body == flipped[1000:2001]
    assert ask(location(hub, "model.safetensors")).body == (folder / "model.safetensors").read_bytes()
    assert [ask(url).body == flipped, ask(url).body == content, hub.faults[0].served] == [True, True, 2]


def test_drop(hub: HubServer, folder: Path) -> None:
    """A drop ends the connection after exactly so many bytes of the file, though more were promised."""
    hub.faults.append(Fault("drop", WEIGHTS, at=1_500_000, times=2))
    content, url = (folder / WEIGHTS).read_bytes(), location(hub)
    for first in (0, 1_000_000):
        with pytest.raises(IncompleteRead) as caught:
            ask(url, Range=f"bytes={first}-")
        assert caught.value.partial == content[first:1_500_000]
        assert caught.value.expected == 500_000
    assert ask(url).body == content


def test_drops_are_resumed(
    hub: HubServer, folder: Path, tmp_path: Path, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client resumes behind a drop, by Range, from its last whole chunk; the server counts all bytes that left."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 400_000)
    hub.faults.append(Fault("drop", WEIGHTS, at=1_500_000, on="files"))
    assert fetch(hub, WEIGHTS, tmp_path) == (folder / WEIGHTS).read_bytes()
    got = [(request.range, request.status) for request in hub.requests if request.host == "files"]
    assert got == [(None, 200), ("bytes=1200000-", 206)]
    assert hub.sent[f"{BASE}/{WEIGHTS}"] == 1_500_000 + 800_000
    assert naps == [1]


def test_reset(hub: HubServer) -> None:
    """A reset is seen as one."""
    hub.faults.append(Fault("reset", WEIGHTS, at=1_000_000))
    with pytest.raises(ConnectionResetError):
        ask(location(hub))
    assert ask(location(hub)).status == 200


def test_short(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """A short body is a well-formed answer; only the size that the metadata state gives it away."""
    hub.faults.append(Fault("short", WEIGHTS, at=1_000_000, times=2))
    reply = ask(location(hub))
    assert (reply.status, reply.headers["Content-Length"], len(reply.body)) == (200, "1000000", 1_000_000)
    with pytest.raises(OSError, match="should be of size 2000000 but has size 1000000"):
        fetch(hub, WEIGHTS, tmp_path)


def test_stall(hub: HubServer, folder: Path) -> None:
    """A stall holds the bytes from one place on back, and then sends them."""
    hub.faults.append(Fault("stall", WEIGHTS, at=1_999_999, seconds=0.3))
    start = time.monotonic()
    assert ask(location(hub)).body == (folder / WEIGHTS).read_bytes()
    assert 0.3 <= time.monotonic() - start < AT_ONCE


def test_faults_of_one_answer(hub: HubServer, folder: Path) -> None:
    """Several faults meet in one answer, in the order of their places."""
    for fault in (Fault("drop", WEIGHTS, at=30), Fault("flip", WEIGHTS, at=10), Fault("flip", WEIGHTS, at=20)):
        hub.faults.append(fault)
    with pytest.raises(IncompleteRead) as caught:
        ask(location(hub))
    content, got = (folder / WEIGHTS).read_bytes(), caught.value.partial
    differs = [at for at, byte in enumerate(got) if byte != content[at]]
    assert (len(got), differs) == (30, [10, 20])


def test_fault_of_a_small_file_and_of_a_listing(hub: HubServer, folder: Path) -> None:
    """Small files, which are then not compressed, and JSON suffer faults like any other bytes."""
    hub.faults += [Fault("flip", "config.json", at=3), Fault("drop", "api/models/*/tree/*", at=50)]
    url = hub.endpoint + ask(f"{hub.endpoint}/{BASE}/resolve/main/config.json").headers["Location"]
    assert ask(url, Accept_Encoding="gzip").body[3] == (folder / "config.json").read_bytes()[3] ^ 1
    with pytest.raises(IncompleteRead):
        ask(f"{hub.endpoint}/api/models/{BASE}/tree/main")
    assert len(list(HfApi(hub.endpoint).list_repo_tree(BASE))) == 6


# Faults of ranges and of answers.


def test_ignored_range(hub: HubServer, folder: Path) -> None:
    """A server that ignores Range sends 200 and everything."""
    hub.faults.append(Fault("no-range", WEIGHTS))
    url = location(hub)
    assert ask(url).status == 200
    reply = ask(url, Range="bytes=7-9")
    assert (reply.status, len(reply.body), "Content-Range" in reply.headers) == (200, 2_000_000, False)
    assert ask(url, Range="bytes=7-9").status == 206


def test_wrong_content_range(hub: HubServer, folder: Path) -> None:
    """A wrong Content-Range lies about the bytes that are sent."""
    hub.faults.append(Fault("content-range", WEIGHTS))
    reply = ask(location(hub), Range="bytes=7-9")
    assert (reply.headers["Content-Range"], reply.body) == (
        "bytes 8-10/2000000",
        (folder / WEIGHTS).read_bytes()[7:10],
    )


@pytest.mark.parametrize(
    ("status", "headers", "nap"),
    [
        (429, {"Retry-After": "7"}, 8),
        (429, {"RateLimit": '"api";r=0;t=3'}, 4),
        (503, {"Retry-After": "2"}, 3),
        (503, {}, 1),
    ],
)
def test_status(hub: HubServer, naps: list[float], status: int, headers: dict[str, str], nap: float) -> None:
    """The real client waits as long as a 429 or a 503 says, and then tries again."""
    hub.faults.append(Fault("status", "api/*/tree/*", status=status, headers=headers))
    assert len(list(HfApi(hub.endpoint).list_repo_tree(BASE))) == 6
    assert naps == [nap]
    assert [request.status for request in hub.requests] == [status, 200]


def test_burst(hub: HubServer) -> None:
    """A burst of errors is over after so many, in the order in which they were set; ``on`` and ``method`` choose whom it meets."""
    hub.faults += [
        Fault("status", WEIGHTS, on="files", times=2),
        Fault("status", WEIGHTS, on="files", status=500),
        Fault("status", WEIGHTS, on="resolve", method="GET", status=502),
    ]
    url = location(hub)
    assert [ask(url).status for _ in range(4)] == [503, 503, 500, 200]
    assert [ask(f"{hub.endpoint}/{BASE}/resolve/main/{WEIGHTS}").status for _ in range(2)] == [502, 302]


def test_hang_up(hub: HubServer, naps: list[float]) -> None:
    """A server may hang up instead of answering; the real client then asks again."""
    hub.faults.append(Fault("hang-up", "api/*/tree/*"))
    with pytest.raises(RemoteDisconnected):
        ask(f"{hub.endpoint}/api/models/{BASE}/tree/main")
    hub.faults.append(Fault("hang-up", "api/*/tree/*"))
    assert len(list(HfApi(hub.endpoint).list_repo_tree(BASE))) == 6
    assert [request.status for request in hub.requests] == [0, 0, 200]
    assert naps == [1]


def test_late(hub: HubServer) -> None:
    """An answer may be late from its first byte on, also one without a body."""
    hub.faults.append(Fault("late", WEIGHTS, on="resolve", seconds=0.2))
    start = time.monotonic()
    assert ask(f"{hub.endpoint}/{BASE}/resolve/main/{WEIGHTS}", "HEAD").status == 302
    assert 0.2 <= time.monotonic() - start < AT_ONCE


def test_missing_header(hub: HubServer, tmp_path: Path) -> None:
    """Headers can be taken out and changed: without X-Repo-Commit the real client does not take this for a Hub."""
    hub.faults.append(Fault("headers", WEIGHTS, headers={"x-repo-commit": None, "X-Extra": "1"}))
    with pytest.raises(LocalEntryNotFoundError) as caught:
        fetch(hub, WEIGHTS, tmp_path)
    assert isinstance(caught.value.__cause__, FileMetadataError)
    assert fetch(hub, WEIGHTS, tmp_path)


def test_redirect_elsewhere(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """A redirect to a third origin works, and there it is seen whether a token came along."""
    hub.tokens[GOOD] = set()
    hub.faults += [Fault("redirect", WEIGHTS, on="files", times=math.inf), Fault("redirect", "api/models/*")]
    assert fetch(hub, WEIGHTS, tmp_path, token=GOOD) == (folder / WEIGHTS).read_bytes()
    assert HfApi(hub.endpoint, token=GOOD).model_info(BASE).id == BASE
    seen = [request for request in hub.requests if request.host == "elsewhere"]
    assert [(request.status, request.had_authorization) for request in seen] == [(200, False), (200, False)]
    assert ask(f"{hub.elsewhere}/api/models/{BASE}", Authorization=f"Bearer {GOOD}").status == 200
    assert hub.requests[-1].had_authorization


def test_moved_repository(hub: HubServer, folder: Path) -> None:
    """A redirect may lead to another path of the Hub, as for a repository that got a new name."""
    hub.push("acme/new", folder)
    hub.faults.append(Fault("redirect", f"api/models/{BASE}", location="/api/models/acme/new"))
    assert HfApi(hub.endpoint).model_info(BASE).id == "acme/new"


def test_expired_address(hub: HubServer) -> None:
    """An address that expires is refused from then on; the Hub gives another."""
    hub.faults.append(Fault("expire", WEIGHTS))
    url = location(hub)
    assert [ask(url).status, ask(url).status, ask(location(hub)).status] == [403, 403, 200]


def test_moved_branch(hub: HubServer, folder: Path) -> None:
    """A branch can move between two requests, whatever the next one is."""
    first = HfApi(hub.endpoint).model_info(BASE).sha
    hub.faults.append(Fault("act", "api/models/*", action=lambda: hub.push(BASE, {WEIGHTS: folder / WEIGHTS})))
    assert HfApi(hub.endpoint).model_info(BASE).sha == first
    assert HfApi(hub.endpoint).model_info(BASE).sha != first


# Faults of the metadata.


@pytest.mark.parametrize(
    ("kind", "value", "path", "etag", "size"),
    [
        ("size", None, WEIGHTS, None, 2_000_001),
        ("size", 5, WEIGHTS, None, 5),
        ("hash", "ab" * 32, WEIGHTS, "ab" * 32, 2_000_000),
        ("hash", "ab" * 20, "sub/vocab.txt", "ab" * 20, 40),
    ],
)
def test_false_metadata(
    hub: HubServer, kind: Kind, value: str | int | None, path: str, etag: str | None, size: int
) -> None:
    """Listings and headers state a wrong size or hash, always, while the bytes are right."""
    true = get_hf_file_metadata(hf_hub_url(BASE, path, endpoint=hub.endpoint))
    hub.faults.append(Fault(kind, path, value=value))
    for _ in range(2):
        head = get_hf_file_metadata(hf_hub_url(BASE, path, endpoint=hub.endpoint))
        (listed,) = HfApi(hub.endpoint).get_paths_info(BASE, [path])
        assert isinstance(listed, RepoFile)
        assert head.etag == (listed.lfs.sha256 if listed.lfs else listed.blob_id) == (etag or true.etag)
        assert listed.size == size
        assert head.size == (size if path in LFS else true.size), "a small file's size is its Content-Length"


def test_hash_differs_by_one_digit(hub: HubServer, folder: Path) -> None:
    """A wrong hash that is not given is the true one but for its last digit, and may be stated in one place only."""
    hub.faults.append(Fault("hash", WEIGHTS, on="api"))
    true = sha256(folder / WEIGHTS)
    (listed,) = HfApi(hub.endpoint).get_paths_info(BASE, [WEIGHTS])
    assert isinstance(listed, RepoFile)
    assert listed.lfs is not None
    assert listed.lfs.sha256[:-1] == true[:-1]
    assert listed.lfs.sha256 != true
    assert get_hf_file_metadata(hf_hub_url(BASE, WEIGHTS, endpoint=hub.endpoint)).etag == true


def test_no_sha256(hub: HubServer) -> None:
    """An LFS file can be without a sha256, in listings and in headers."""
    hub.faults.append(Fault("no-sha256", WEIGHTS))
    (listed,) = HfApi(hub.endpoint).get_paths_info(BASE, [WEIGHTS])
    assert isinstance(listed, RepoFile)
    assert (listed.lfs, listed.size) == (None, 2_000_000)
    assert get_hf_file_metadata(hf_hub_url(BASE, WEIGHTS, endpoint=hub.endpoint)).etag is None


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "a\nb.bin", "nul\0.bin", "\x1b[31m", "C:\\evil", "ä/ö.txt"]
)
def test_hostile_names(hub: HubServer, folder: Path, name: str) -> None:
    """Names are listed as they are given, whatever they are, and served to who asks for them quoted."""
    hub.push(BASE, {name: folder / "README.md"})
    listed = [entry.path for entry in HfApi(hub.endpoint).list_repo_tree(BASE, recursive=True)]
    assert [path for path in listed if not name.startswith(f"{path}/")] == [name]
    assert [sibling.rfilename for sibling in HfApi(hub.endpoint).model_info(BASE).siblings or []] == [name]
    reply = ask(f"{hub.endpoint}/{BASE}/resolve/main/{quote(name, safe='')}")
    assert (reply.status, reply.headers["X-Linked-Size"]) == (
        302 if name.endswith(".bin") else 307,
        str((folder / "README.md").stat().st_size),
    )


# The server itself.


def test_ends_at_once(folder: Path) -> None:
    """Closing ends stalled and idle connections at once and leaves no thread and no port."""
    before = set(threading.enumerate())
    hub = HubServer({BASE: folder})
    hub.faults.append(Fault("stall", at=100, seconds=60))
    with socket.create_connection(("127.0.0.1", int(hub.endpoint.rpartition(":")[2]))), ThreadPoolExecutor(1) as pool:
        stalled = pool.submit(ask, location(hub))
        while hub.sent[f"{BASE}/{WEIGHTS}"] < 100:
            time.sleep(0.01)
        start = time.monotonic()
        hub.close()
        assert time.monotonic() - start < AT_ONCE
        assert isinstance(stalled.exception(), IncompleteRead)
    assert set(threading.enumerate()) == before
    for origin in (hub.endpoint, hub.files, hub.elsewhere):
        with pytest.raises(ConnectionRefusedError):
            ask(origin)


def test_rate_is_shared(folder: Path) -> None:
    """All connections together get the rate and no more."""
    with HubServer({BASE: folder}, rate=10e6) as hub, ThreadPoolExecutor(4) as pool:
        urls = [location(hub) for _ in range(4)]
        start = time.monotonic()
        assert [len(reply.body) for reply in pool.map(ask, urls)] == [2_000_000] * 4
        assert 0.75 < time.monotonic() - start < AT_ONCE


def test_keeps_connections(hub: HubServer, folder: Path) -> None:
    """One connection serves many requests, whatever they are."""
    connection = HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=PATIENCE)
    port: set[int] = set()
    for path in (f"/api/models/{BASE}", f"/{BASE}/resolve/main/none", f"/{BASE}/resolve/main/{WEIGHTS}"):
        connection.request("GET", path)
        connection.getresponse().read()
        port.add(connection.sock.getsockname()[1])
    connection.close()
    assert len(port) == 1


def test_hashes_may_be_given(tmp_path: Path) -> None:
    """A sha256 that is given is not computed, as long as the file stays as it is."""
    file = tmp_path / "model.bin"
    file.write_bytes(b"abc")
    with HubServer({BASE: tmp_path}, hashes={file: "12" * 32}) as hub:
        assert get_hf_file_metadata(hf_hub_url(BASE, file.name, endpoint=hub.endpoint)).etag == "12" * 32
        file.write_bytes(b"abcd")
        hub.push(BASE, tmp_path)
        assert get_hf_file_metadata(hf_hub_url(BASE, file.name, endpoint=hub.endpoint)).etag == sha256(file)


def test_command(folder: Path, tmp_path: Path) -> None:
    """As a process, the server prints its endpoint, obeys its options, keeps hashes, and ends with 0 when it is told to."""
    cache = tmp_path / "hashes.json"
    options = ["--rate", "1GB", "--gated", BASE, "--token", f"hf_good={BASE}", "--hash-cache", str(cache), "--log"]
    options += ["--fault", f"status,path={WEIGHTS},on=files,status=429,times=1,Retry-After=1"]
    command = [sys.executable, str(ROOT / "tests/support/hub_server.py"), f"{BASE}={folder}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        assert ask(f"{endpoint}/{BASE}/resolve/main/{WEIGHTS}").status == 401
        url = ask(f"{endpoint}/{BASE}/resolve/main/{WEIGHTS}", Authorization=f"Bearer {GOOD}").headers["Location"]
        first, second = ask(url), ask(url)
        assert (first.status, first.headers["Retry-After"], second.status) == (429, "1", 200)
        assert hashlib.sha256(second.body).hexdigest() == sha256(folder / WEIGHTS)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert [line.rsplit(maxsplit=1)[1] for line in log.splitlines()] == ["401", "302", "429", "200"]
    assert sha256(folder / WEIGHTS) in cache.read_text()


@pytest.mark.parametrize(("words", "rate"), [("400MB", 400e6), ("1.5GB/s", 1.5e9), ("100", 100.0), ("20 kB", 20e3)])
def test_rates_in_words(words: str, rate: float) -> None:
    """Rates are decimal."""
    assert bytes_per_second(words) == rate


def test_fault_in_words() -> None:
    """A fault can be written down for the command line."""
    made = fault_from("status,path=*.bin,status=429,times=2,Retry-After=1")
    assert made == Fault("status", "*.bin", status=429, times=2, headers={"Retry-After": "1"})
    with pytest.raises(ValueError, match="dropp: no such fault"):
        fault_from("dropp,at=1")
    with pytest.raises(TypeError, match="nonsense"):
        fault_from("drop,nonsense=1")
