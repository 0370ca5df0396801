"""Every layout of the cache that ``hf`` 0.34 to 2.4 writes, and what ``hf`` does to what we fetched."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub as hf
import pytest

from deltaweights.checkpoint.safe_open import LeadsOutside
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed, InputOutputError
from deltaweights.hub import directory as hub_directory
from deltaweights.hub.locate import HubOptions
from deltaweights.hub.repo_cache import OTHER_CACHE, RepoCache
from deltaweights.hub.repo_listing import HubFile
from deltaweights.hub.snapshot import stated_sha256
from deltaweights.hub.transfer import DamagedFile
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.download import download
from tests.support.errors import refused
from tests.support.hub_checkpoint import BASE, NEEDED, ONE, TWO, key, sent
from tests.support.hub_client import Machine
from tests.support.hub_pair import Pair, serve
from tests.support.hub_server import HubServer
from tests.support.other_user import OTHER, common_folder, needs_other_user
from tests.support.reports import RecordingReport

XET_HASH = "ab" + "0" * 62


def fetch_by_hf(machine: Machine, hub: HubServer) -> Path:
    return Path(hf.snapshot_download(BASE, cache_dir=machine.cache, endpoint=hub.endpoint))


def with_links(machine: Machine, hub: HubServer) -> None:
    fetch_by_hf(machine, hub)


def without_links(machine: Machine, hub: HubServer) -> None:
    done = machine.hf("download", BASE, HF_HUB_DISABLE_SYMLINKS="1")
    assert done.returncode == 0, done.stderr


def shared(machine: Machine, hub: HubServer) -> None:
    """Move the LFS files into the store of all repositories, as the client does after a transfer by Xet."""
    store = pytest.importorskip("huggingface_hub.utils._shared_blobs", reason="huggingface_hub has no shared blobs")
    fetch_by_hf(machine, hub)
    for name, blob in machine.blobs(BASE).items():
        if len(name) == 64:
            xet_hash, size = hashlib.sha256(name.encode()).hexdigest(), blob.stat().st_size
            assert store.publish_blob_to_shared_store(
                blob_path=str(blob), xet_hash=xet_hash, cache_dir=machine.cache, expected_size=size
            )
            assert blob.is_symlink()


def copied(machine: Machine, hub: HubServer) -> None:
    """Copy the cache as ``cp -rL`` does."""
    fetch_by_hf(machine, hub)
    shutil.copytree(machine.cache, machine.folder / "copy", symlinks=False)
    shutil.rmtree(machine.cache)
    (machine.folder / "copy").rename(machine.cache)


def shared_and_copied(machine: Machine, hub: HubServer) -> None:
    shared(machine, hub)
    shutil.copytree(machine.cache, machine.folder / "copy", symlinks=False)
    shutil.rmtree(machine.cache)
    (machine.folder / "copy").rename(machine.cache)


LAYOUTS: dict[str, Callable[[Machine, HubServer], None]] = {
    "links": with_links,
    "no links": without_links,
    "shared blobs": shared,
    "cp -rL": copied,
    "shared blobs, cp -rL": shared_and_copied,
}


def forget_trees(machine: Machine) -> None:
    """Remove what only ``hf`` 2 writes."""
    shutil.rmtree(machine.repository(BASE) / "trees", ignore_errors=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("client", ["2", "0.34"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(machine: Machine, hub: HubServer, folder: Path, layout: str, client: str) -> None:
    """Offline and online, each file is read, and nothing is fetched again."""
    LAYOUTS[layout](machine, hub)
    if client == "0.34":
        forget_trees(machine)
    before = sent(hub, ONE)
    for offline in (True, False):
        found = machine.fetch(BASE, offline=offline)
        assert set(found.files) == set(NEEDED)
        assert found.fetched == 0
        for name in NEEDED:
            assert (Path(found.path) / name).read_bytes() == (folder / name).read_bytes()
    assert sent(hub, ONE) == before


@pytest.mark.sampled(2)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_hash_that_a_snapshot_states(machine: Machine, hub: HubServer, folder: Path, layout: str) -> None:
    """It is the sha256, not Xet's hash; also behind a link of the user's."""
    LAYOUTS[layout](machine, hub)
    (snapshot,) = (machine.repository(BASE) / "snapshots").iterdir()
    (machine.folder / "mine").symlink_to(snapshot / ONE)
    for path in (snapshot / ONE, machine.folder / "mine"):
        assert stated_sha256(path) == key(folder / ONE)
    assert stated_sha256(snapshot / "config.json") is None


def test_no_hash_is_stated_anywhere(machine: Machine, hub: HubServer) -> None:
    """Of a file that is no link, in a cache of an older client, nothing is known: it is used, and that is said."""
    without_links(machine, hub)
    forget_trees(machine)
    machine.fetch(BASE, offline=True)
    assert any(f"{ONE}: the cache states no hash of this file" in note for note in machine.said.notes)
    assert any("hashes not stated" in warning for warning in machine.said.warnings), "-q shows warnings alone"


def test_a_merge_of_what_no_hash_is_stated_of(machine: Machine, hub: HubServer, large_torch: Pair) -> None:
    """Its manifest says so, and --require-verified refuses it."""
    serve(hub, large_torch)
    for role in ("base", "delta"):
        done = machine.hf("download", f"acme/{role}", HF_HUB_DISABLE_SYMLINKS="1")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(machine.repository(f"acme/{role}") / "trees", ignore_errors=True)
    options = HubOptions(offline=True)
    with refused(CheckFailed, code=ErrorCode.INPUTS_UNVERIFIED):
        apply_delta("acme/base", "acme/delta", machine.folder / "out", hub=options, require_verified=True)
    apply_delta("acme/base", "acme/delta", machine.folder / "out", hub=options)
    inputs = json.loads((machine.folder / "out" / "manifest.json").read_text())["inputs"]
    assert {inputs[role]["verification"] for role in ("base", "delta")} == {"hashes not stated"}


@pytest.mark.parametrize("layout", ["no links", "shared blobs"])
def test_a_damaged_file_of_any_layout(machine: Machine, hub: HubServer, folder: Path, layout: str) -> None:
    """It is refused offline, and fetched again online."""
    LAYOUTS[layout](machine, hub)
    (snapshot,) = (machine.repository(BASE) / "snapshots").iterdir()
    damaged = (snapshot / ONE).resolve()
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with refused(DamagedFile, remedy="fetch it again, without --offline"):
        machine.fetch(BASE, offline=True)
    machine.fetch(BASE)
    assert (snapshot / ONE).read_bytes() == (folder / ONE).read_bytes()


@pytest.mark.parametrize("where", ["beside the cache", "in another folder of the cache"])
def test_a_blob_elsewhere_is_not_opened(tmp_path: Path, where: str) -> None:
    """Only the store of shared blobs is in the cache; whatever else a blob leads to is out of it."""
    secret = tmp_path / ("ab" if where == "beside the cache" else "cache/other/ab") / XET_HASH
    secret.parent.mkdir(parents=True)
    secret.write_text("secret")
    cache, file = RepoCache.of(tmp_path / "cache", BASE), HubFile(ONE, 6, "c" * 64, "")
    cache.create()
    cache.blob(file.key).symlink_to(secret)
    with pytest.raises(LeadsOutside):
        cache.open("0" * 40, file)


@pytest.mark.parametrize("revision", ["", "@COMMIT"])
def test_prune_keeps_what_was_fetched(machine: Machine, hub: HubServer, folder: Path, revision: str) -> None:
    """``hf cache prune`` removes what no ref names: a commit that was asked for by its hash has one, too."""
    commit = hub.push(BASE, folder)
    machine.fetch(BASE + revision.replace("COMMIT", commit))
    done = machine.hf("cache", "prune", "--yes")
    assert done.returncode == 0, done.stderr
    before = sent(hub, ONE)
    assert machine.fetch(BASE, offline=not revision).fetched == 0
    assert sent(hub, ONE) == before


def test_prune_keeps_what_is_being_fetched(machine: Machine, hub: HubServer, folder: Path) -> None:
    """The pieces of a download, and the snapshot that is not yet complete, are kept."""
    cache, commit = RepoCache.of(machine.cache, BASE), hub.push(BASE, folder)
    cache.create()
    cache.hold(commit)
    pieces = cache.incomplete(key(folder / ONE))
    pieces.write_bytes(b"some")
    done = machine.hf("cache", "prune", "--yes")
    assert done.returncode == 0, done.stderr
    assert pieces.read_bytes() == b"some"
    assert cache.snapshot(commit).is_dir()


def test_leftovers_are_removed_once_hf_has_the_file(machine: Machine, hub: HubServer, folder: Path) -> None:
    """After a kill, ``hf download`` fetches anew; what we gathered is removed, unless a process has it."""
    fetch_by_hf(machine, hub)
    blobs = machine.repository(BASE) / "blobs"
    left = [
        blobs / f"{key(folder / name)}.deltaweights.{what}" for name in (ONE, TWO) for what in ("partial", "pieces")
    ]
    for path in left:
        path.write_bytes(b"some")
    with left[2].open() as used:
        fcntl.flock(used, fcntl.LOCK_EX)
        machine.fetch(BASE)
        assert [path.exists() for path in left] == [False, False, True, True]
    machine.fetch(BASE)
    assert not any(path.exists() for path in left)


def test_files_are_hashed_once_a_run_without_records(
    machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no record can be written, a run hashes each file once."""
    fetch_by_hf(machine, hub)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    hashed: list[str] = []
    real = hub_directory._hash_of

    def count(file: HubFile, content: Any) -> str:
        hashed.append(file.name)
        return real(file, content)

    monkeypatch.setattr(hub_directory, "_hash_of", count)
    for run in (1, 2):
        download(BASE, report=RecordingReport())
        assert sorted(hashed) == sorted(NEEDED * run)


@needs_other_user
def test_a_cache_of_another_user() -> None:
    """Under umask 022 nothing can be put into it: the remedy is said before anything is fetched."""
    with common_folder() as folder:
        cache = RepoCache.of(folder / "cache", BASE)
        cache.create()
        for path in (folder / "cache", *(folder / "cache").rglob("*")):
            path.chmod(0o755)
        child = os.fork()
        if child == 0:  # becomes the other user
            code = 1
            try:
                os.setuid(OTHER)
                cache.create()
            except InputOutputError as error:
                code = 0 if (error.remedy, error.code.text) == (OTHER_CACHE, "E-NO-PERMISSION") else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
