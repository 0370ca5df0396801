"""What a signature does not cover never passes because something else was not looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.manifest.verify import verify
from deltaweights.signing.folder import read_signature
from tests.receiver.forms import as_snapshot
from tests.support.hub_client import Machine, forget_connections
from tests.support.hub_server import HubServer
from tests.support.results import MANIFEST, SUMS, forge_file, merged, original
from tests.support.signing import make_key, stock

__all__ = ["merged", "original"]  # fixtures

pytestmark = pytest.mark.receiver

SHARD = "model-00001-of-00002.safetensors"


def stock_signs(folder: Path, *more: str | Path) -> Path:
    """Sign a folder with the reference implementation; return the public key."""
    private, public = make_key(folder.parent)
    done = stock("sign", "key", folder, "--signature", folder / "model.sig", "--private_key", private, *more)
    assert done.returncode == 0, done.stderr
    return public


def test_a_file_alone_that_the_signer_left_out(merged: Path) -> None:
    """The manifest that is signed still says what it is: one that was forged together with the file does not count."""
    public = stock_signs(merged, "--ignore-paths", merged / SHARD)
    signed = read_signature(merged, public)
    assert verify(merged / SHARD, signed=signed).ok
    forge_file(merged, SHARD, (merged / SHARD).read_bytes()[:-1] + b"?")
    assert verify(merged / SHARD).ok  # nothing but the signature shows it
    assert [(each.file, each.problem) for each in verify(merged / SHARD, signed=signed).problems] == [
        (MANIFEST, "is not what was signed")
    ]


def test_a_folder_in_a_snapshot_without_a_manifest(merged: Path, original: Path) -> None:
    """Folders inside are not looked at where there is no manifest: a signature that does not name them covers none."""
    for name in (MANIFEST, SUMS):
        (merged / name).unlink()
    public = stock_signs(merged)
    snapshot = as_snapshot(merged, original)
    signed = read_signature(snapshot, public)
    assert verify(snapshot, signed=signed).ok
    (snapshot / "code").mkdir()
    (snapshot / "code" / "serve.py").write_text("?")
    assert verify(snapshot).ok
    assert [(each.file, each.problem) for each in verify(snapshot, signed=signed).problems] == [
        ("code", "is not signed")
    ]


@pytest.mark.parametrize("extra", ["weights.gguf", "code/serve.py"])
def test_a_repository_without_a_manifest(
    extra: str, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files of a repository are not fetched where there is no manifest: then they are not signed, either."""
    for name in (MANIFEST, SUMS):
        (merged / name).unlink()
    public = stock_signs(merged)
    files = {path.name: path for path in merged.iterdir()}
    with HubServer({"org/plain": files}) as hub:
        machine = Machine(monkeypatch, tmp_path, hub)
        done = machine.run("verify", "org/plain", "--public-key", public)
        assert done.returncode == 0, done.stdout
        (tmp_path / "other").write_text("?")
        hub.push("org/plain", files | {extra: tmp_path / "other"})
        done = machine.run("verify", "org/plain", "--public-key", public)
        assert done.returncode == 6, done.stdout
        assert f"{extra.split('/', maxsplit=1)[0]}: is not signed" in done.stdout
        assert machine.run("verify", "org/plain").returncode == 0
    forget_connections()
