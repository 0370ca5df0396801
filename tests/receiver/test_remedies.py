"""What ``verify``, ``pin`` and ``sign`` tell a receiver to do, done."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.receiver.forms import DAMAGES
from tests.support.limits import PATIENCE
from tests.support.results import digest_of, forge_file, merged, original, sha256

__all__ = ["merged", "original"]  # fixtures

pytestmark = pytest.mark.receiver

Run = Callable[..., subprocess.CompletedProcess[str]]


def refused(run: Run, *arguments: object, code: int) -> str:
    """Run a command that must end with ``code``; return its remedy."""
    done = run(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return str(json.loads(done.stdout)["error"]["remedy"])


def test_an_edited_card_and_other_pins(merged: Path, tmp_path: Path, run: Run) -> None:
    """The files named are fetched again, or not counted; what was looked at is pinned."""
    whole = (merged / "README.md").read_bytes()
    DAMAGES["edited README"][0](merged)
    remedy = refused(run, "verify", merged, code=6)
    assert remedy == "fetch what is named again or give --weights-only"
    assert run("verify", merged, "--weights-only").returncode == 0
    (merged / "README.md").write_bytes(whole)
    assert run("verify", merged).returncode == 0
    remedy = refused(run, "verify", merged, "--expect-manifest", "0" * 64, code=6)
    assert remedy == "fetch what you pinned, or look at this one and pin it"
    lock = tmp_path / "deltaweights.lock"
    assert run("pin", merged, "--output", lock).returncode == 0
    assert run("verify", "--lock", lock).returncode == 0
    assert run("verify", merged, "--expect-manifest", sha256(merged / "manifest.json")).returncode == 0


def test_extra_files(merged: Path, run: Run) -> None:
    """A file that a loader would read is removed; what is changed besides is fetched again."""
    (merged / "adapter_config.json").write_text("{}")
    assert refused(run, "verify", merged, code=6) == "remove what is named: loaders read such files"
    whole = (merged / "README.md").read_bytes()
    DAMAGES["edited README"][0](merged)
    remedy = refused(run, "verify", merged, code=6)
    assert remedy == "fetch what is named again, remove the extra files, or give --weights-only"
    (merged / "adapter_config.json").unlink()
    (merged / "README.md").write_bytes(whole)
    assert run("verify", merged).returncode == 0


def test_a_lock_that_fails(merged: Path, tmp_path: Path, run: Run) -> None:
    """A change that is wanted is pinned anew; a lock that is none is made again."""
    lock = tmp_path / "deltaweights.lock"
    assert run("pin", merged, "--output", lock).returncode == 0
    whole = lock.read_text()
    lock.write_text(
        "".join(line + "\n" for line in whole.splitlines() if "_digest" not in line and "_sha256" not in line)
    )
    assert "make it again with deltaweights pin" in refused(run, "verify", "--lock", lock, code=3)
    lock.write_text(whole.replace(sha256(merged / "manifest.json"), "0" * 64))
    remedy = refused(run, "verify", "--lock", lock, code=6)
    assert remedy == "do not use what failed: fetch it again, or pin it anew if the change is wanted"
    assert run("pin", merged, "--output", lock).returncode == 0
    assert run("verify", "--lock", lock).returncode == 0


def test_a_folder_outside_of_the_lock(merged: Path, tmp_path: Path, run: Run) -> None:
    """A lock above the folder takes it."""
    (tmp_path / "below").mkdir()
    remedy = refused(run, "pin", merged, "--output", tmp_path / "below" / "deltaweights.lock", code=2)
    assert remedy.startswith("name a lock above it with --output")
    assert run("pin", merged, "--output", tmp_path / "deltaweights.lock").returncode == 0


USAGE: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "nothing to verify": ((), "give PATH or ORG/NAME, or --lock FILE", ("MERGED",)),
    "a manifest of a folder": (("MERGED/manifest.json",), "give the folder: deltaweights verify MERGED", ("MERGED",)),
    "listed alone, of a folder": (
        ("MERGED", "--no-weights"),
        "leave --no-weights out, or give ORG/NAME",
        ("MERGED",),
    ),
    "an issuer without an identity": (
        ("MERGED", "--issuer", "https://example.org"),
        "give --identity, too",
        ("MERGED",),
    ),
}
"""A command line that says nothing, its remedy, and the line as it is told."""


@pytest.mark.parametrize("case", USAGE)
def test_a_command_line_that_says_nothing(case: str, merged: Path, run: Run) -> None:
    """What to give or leave out is said, and the line then works."""
    given, says, told = ([each.replace("MERGED", str(merged)) for each in words] for words in _words(USAGE[case]))
    assert refused(run, "verify", *given, code=2) == says[0]
    assert run("verify", *told).returncode == 0


def _words(case: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    given, says, told = case
    return given, (says,), told


def test_an_archive_that_cannot_be_read(merged: Path, tmp_path: Path, run: Run) -> None:
    """An archive in a form that this Python cannot read is unpacked; its folder verifies."""
    packed = tmp_path / "merged.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(merged, "merged")
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    remedy = refused(run, "verify", packed, code=3)
    assert "get it again" in remedy
    packed.write_bytes(whole)
    assert run("verify", packed).returncode == 0
    (tmp_path / "there").mkdir()
    subprocess.run(["tar", "xzf", packed, "-C", tmp_path / "there"], check=True, timeout=PATIENCE)
    assert run("verify", tmp_path / "there/merged").returncode == 0


def test_weights_that_were_changed_after_their_manifest(
    merged: Path, pair: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    """``verify`` says where, also if the manifest was made to list them; without the manifest, the weights are used."""
    digest = digest_of(merged)
    shard = min(merged.glob("*.safetensors"))
    forge_file(merged, shard.name, shard.read_bytes()[:-1] + b"?")
    made = ("make", "--base", pair[0], "--target", merged, "--delta", tmp_path / "delta")
    remedy = refused(run, *made, code=6)
    assert remedy.startswith(f"find out where with deltaweights verify --expect {digest}; or remove its manifest.json")
    done = run("verify", merged, "--expect", digest)
    assert done.returncode == 6
    assert "tensor is not what the manifest says" in done.stdout
    (merged / "manifest.json").unlink()
    assert run(*made).returncode == 0


def test_a_refuted_merge_is_made_again(pair: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    """The right base gives a merge that is exported; the wrong one is exported as it is if told so."""
    wrong = tmp_path / "wrong"
    inputs = ("--base", pair[0], "--delta", pair[1])
    assert run("apply", *inputs, "--target", wrong).returncode == 0
    document = json.loads((wrong / "manifest.json").read_text())
    proof = document["result"]["proof"]
    proof |= {"verdict": "violated", "violations": 1, "allowed": True}
    (wrong / "manifest.json").write_text(json.dumps(document))
    remedy = refused(run, "export", wrong, "--target", tmp_path / "out", code=4)
    assert remedy == "merge the delta with the right base; --allow-unproved-base exports it as it is"
    assert run("apply", *inputs, "--target", tmp_path / "right").returncode == 0
    assert run("convert", "--base", tmp_path / "right", "--target", tmp_path / "copy").returncode == 0
