"""Names of files in a Hub's listing."""

from __future__ import annotations

from pathlib import Path

from deltaweights.errors import MalformedInput
from deltaweights.jobs.download import download
from tests.support.errors import refused
from tests.support.hub_checkpoint import (
    TWO,
    key,
)
from tests.support.hub_client import Machine
from tests.support.hub_server import HubServer


def test_hostile_names(machine: Machine, hub: HubServer, folder: Path) -> None:
    """File names that lead out of the folder, or are not plain, never reach the disk."""
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
    with refused(MalformedInput, problem="unusable file name"):  # that asks for all of them
        machine.fetch("acme/evil", "*")
    (found,) = download("acme/evil", include=["*"], exclude=hostile)
    assert sorted(found.files) == ["model.safetensors", "ok.bin"]
    assert {Path(name).name for name in machine.sizes()} == {key(folder / TWO), "main"}
    assert sorted(path.name for path in machine.folder.rglob("*evil*")) == ["models--acme--evil"]
