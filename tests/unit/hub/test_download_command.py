"""``download`` as those know it who come from ``hf download``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deltaweights.errors import TargetBusy, UsageError
from deltaweights.jobs.download import download
from tests.support.errors import refused
from tests.support.hub_checkpoint import BASE, NEEDED, ONE, TWO, assert_whole, sent
from tests.support.hub_client import Machine
from tests.support.hub_server import HubServer


def test_files_by_name(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Only the files that are named are fetched; ``hf`` leaves the same."""
    done = machine.run("download", BASE, TWO, "config.json", "-q")
    assert done.returncode == 0, done.stderr
    (path,) = done.stdout.splitlines()
    assert sorted(each.name for each in Path(path).iterdir()) == sorted([TWO, "config.json"])
    assert sent(hub, ONE) == 0
    assert machine.hf("download", BASE, TWO, "config.json").stdout.count(path) == 1


@pytest.mark.parametrize("arguments", [("nothing.json",), ("config.json", "--include", "*.bin")])
def test_names_that_cannot_be_meant(machine: Machine, arguments: tuple[str, ...]) -> None:
    """A file that is not there, and names beside patterns, end with 2, before anything is fetched."""
    done = machine.run("download", BASE, *arguments)
    assert done.returncode == 2
    assert machine.blobs(BASE) == {}
    with refused(UsageError, found="nothing.json"):
        download(BASE, files=["config.json", "nothing.json"])


def test_a_dry_run_fetches_nothing(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """What would be fetched is listed with sizes, in JSON, too; neither cache nor folder is made."""
    total = sum((folder / name).stat().st_size for name in NEEDED)
    done = machine.run("download", BASE, "--dry-run", "--local-dir", tmp_path / "there", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["fetched"], found["bytes"], set(found["files"])) == (total, total, set(NEEDED))
    assert not machine.cache.exists()
    assert not (tmp_path / "there").exists()
    assert sent(hub, ONE) == 0
    machine.fetch(BASE)
    assert json.loads(machine.run("download", BASE, "--dry-run", "--json").stdout)[0]["fetched"] == 0
    forced = machine.run("download", BASE, "--dry-run", "--force-download", "--json")
    assert json.loads(forced.stdout)[0]["fetched"] == total
    assert "to fetch" in machine.run("download", BASE, "--dry-run").stdout


def test_forced(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Cached files are fetched again, and are whole."""
    done = machine.fetch(BASE)
    before = sent(hub, ONE)
    again = machine.run("download", BASE, "--force-download", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)[0]["fetched"] == done.bytes
    assert sent(hub, ONE) > before + (folder / ONE).stat().st_size // 2
    assert_whole(machine, folder, done.commit)


def test_forced_into_a_folder_replaces_no_file_of_the_users(machine: Machine, tmp_path: Path) -> None:
    """A file that was changed after it was downloaded stays, and ends the download."""
    there = tmp_path / "there"
    download(BASE, local_dir=there)
    (there / "config.json").write_text("{}")
    os.utime(there / "config.json", (4e9, 4e9))  # some time later
    with pytest.raises(TargetBusy):
        download(BASE, local_dir=there, force=True)
    assert (there / "config.json").read_text() == "{}"
