"""One cache for two programs: ``hf`` uses what we fetched, and we use what ``hf`` fetched."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub as hf
import pytest
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash

from deltaweights.hub import directory as hub_directory
from deltaweights.hub.transfer import DamagedFile
from tests.support.errors import refused
from tests.support.hub_checkpoint import (
    BASE,
    NEEDED,
    ONE,
    assert_whole,
    key,
    sent,
)
from tests.support.hub_client import Machine
from tests.support.hub_server import HubServer


def test_hf_uses_what_we_fetched(machine: Machine, hub: HubServer, folder: Path) -> None:
    """``hf cache verify`` accepts our downloads, and ``hf download`` uses them."""
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
    """Files that ``hf`` downloaded are verified once and used, without downloading them again."""
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
    """A cached file is hashed once, again after a change (mtime, inode), and with --recheck."""
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
    """A damaged cached file is reported and downloaded again; offline it is an error, and kept."""
    commit = machine.fetch(BASE).commit
    blob = machine.repository(BASE) / "blobs" / key(folder / name)
    content = bytearray(blob.read_bytes())
    content[100] ^= 1
    blob.write_bytes(content)
    found = hashlib.sha256(content).hexdigest() if name == ONE else git_hash(bytes(content))
    problem = f"sha256 is {found}, the Hub states {blob.name}" if name == ONE else f"git's hash is {found}"
    with refused(DamagedFile, where=blob, problem=f"damaged in the cache: {problem}"):
        machine.fetch(BASE, offline=True)
    assert blob.read_bytes() == content
    machine.fetch(BASE)
    assert f"{blob}: damaged in the cache: {problem}: fetching it again" in machine.said.warnings
    assert_whole(machine, folder, commit)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", ["--cache-dir", "HF_HUB_CACHE", "HF_HOME"])
def test_where_the_cache_is(machine: Machine, hub: HubServer, folder: Path, how: str) -> None:
    """--cache-dir, HF_HUB_CACHE, HF_HOME and HF_HUB_OFFLINE work as for ``hf``."""
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
