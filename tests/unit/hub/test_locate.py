"""Downloads of a checkpoint: which files are needed, and what is reported before they are fetched."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from deltaweights.cli.group import deltaweights
from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from deltaweights.hub.locate import HubOptions
from deltaweights.jobs.download import download
from deltaweights.recipes import catalogue
from tests.support.errors import refused
from tests.support.hub_checkpoint import (
    BASE,
    INDEX,
    LOG_IN,
    NEEDED,
    ONE,
    OTHERS,
    PIECE,
    TWO,
    assert_whole,
    sent,
    snapshot_file,
)
from tests.support.hub_client import Machine
from tests.support.hub_server import Fault, HubServer


def test_what_a_checkpoint_needs_is_fetched(machine: Machine, hub: HubServer, folder: Path) -> None:
    """A download has weights, index and companion files only, and lists their sizes first."""
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
    """Of a repository with both formats, safetensors are downloaded, and only the first bytes of the .bin."""
    hub.push("acme/both", {"model.safetensors": folder / TWO, "pytorch_model.bin": folder / ONE})
    assert list(machine.fetch("acme/both").files) == ["model.safetensors"]
    assert hub.sent["acme/both/pytorch_model.bin"] < PIECE // 2
    assert not any("partial" in name for name in machine.blobs("acme/both"))


def test_include(machine: Machine, hub: HubServer, folder: Path) -> None:
    """--include downloads matching files, needed or not; a pattern that matches nothing is refused."""
    found = machine.fetch(BASE, "*.json", "opt*")
    assert_whole(machine, folder, found.commit, ("config.json", INDEX, "optimizer.pt"))
    assert list(found.files) == ["config.json", INDEX, "optimizer.pt"]
    assert sent(hub, ONE) == 0
    with refused(UsageError, problem="no file matches", found="*.gguf"):
        machine.fetch(BASE, "*.gguf")


def test_a_revision_is_resolved_first(machine: Machine, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """A branch that moves between two requests does not mix two commits."""
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
    """A tag, a branch with a slash and a commit work after the @ and with --revision."""
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
    """A recipe's name downloads its base and delta at pinned commits, after its notice."""
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
    """--json prints what the function returns; without it, stdout says what is verified and where; -q the path alone."""
    done = machine.run("download", BASE, "--json", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    found = machine.fetch(BASE)
    expected = asdict(found) | {"fetched": found.bytes}
    assert json.loads(done.stdout) == [expected]
    assert machine.run("download", BASE, "-q").stdout == f"{found.path}\n"
    done = machine.run("download", BASE)
    assert done.stdout.splitlines() == [
        f"{BASE} at {found.commit}: 8 files, 4.6 MB, 0 bytes of it fetched now",
        f"verified        {found.path}",
    ]


def test_no_weights(machine: Machine, hub: HubServer, folder: Path) -> None:
    """A repository without weights is refused before anything is downloaded, unless --include names files."""
    commit = hub.push("acme/words", {"README.md": folder / "README.md"})
    where = machine.repository("acme/words") / "snapshots" / commit
    with refused(MalformedInput, where=where, problem="no weights here", found="README.md"):
        machine.fetch("acme/words")
    assert hub.sent["acme/words/README.md"] == 0
    assert list(machine.fetch("acme/words", "*").files) == ["README.md"]


def test_weights_in_a_folder_of_a_repository(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Weights that are not at the repository's top are named, with the command that fetches them."""
    files = {"README.md": folder / "README.md", "7B/pytorch_model.bin": folder / "README.md"}
    commit = hub.push("acme/nested", files)
    where = machine.repository("acme/nested") / "snapshots" / commit
    fetch = f"deltaweights download acme/nested --revision {commit} --include '7B/*'"
    remedy = f"fetch it with {fetch}, and then: give {where / '7B'}"
    with refused(MalformedInput, where=where, found="weights in 7B/ (pytorch_model.bin)", remedy=remedy):
        machine.fetch("acme/nested")


def test_large_files_are_not_fetched_to_say_what_they_are(machine: Machine, hub: HubServer, tmp_path: Path) -> None:
    """Of a repository in another format the beginnings are fetched, no more."""
    (tmp_path / "vicuna.bin").write_bytes(b"tjgg" + bytes(10**7))
    commit = hub.push("acme/ggml", {"vicuna.bin": tmp_path / "vicuna.bin"})
    where = machine.repository("acme/ggml") / "snapshots" / commit
    with refused(MalformedInput, where=where, found="GGML of llama.cpp (vicuna.bin)"):
        machine.fetch("acme/ggml")
    assert hub.sent["acme/ggml/vicuna.bin"] < 10**6  # one piece


@pytest.mark.parametrize(
    "model", ["acme/base/x", "acme/../x", "acme/", "acme/b@a..b", "hf://", "hf://a/b/c", "llava-med"]
)
def test_a_malformed_id(machine: Machine, hub: HubServer, model: str) -> None:
    """What is neither an id nor a recipe's name is refused (2) without a request."""
    with refused(UsageError, found=model):
        deltaweights.main(["download", model], standalone_mode=False)
    assert hub.requests == []


def test_offline(machine: Machine, hub: HubServer, folder: Path) -> None:
    """Offline, nothing is requested: a missing or incomplete cache is an error."""
    with refused(InputOutputError, where=f"hf://{BASE}", problem="not in the cache", found=machine.cache):
        machine.fetch(BASE, offline=True)
    assert hub.requests == []
    commit = machine.fetch(BASE, "*.json", "*.model").commit
    asked = len(hub.requests)
    with pytest.raises(MalformedInput):
        machine.fetch(BASE, offline=True)
    assert list(machine.fetch(f"{BASE}@{commit}", "*.model", offline=True).files) == ["tokenizer.model"]
    with refused(InputOutputError, where=f"hf://{BASE}@v1", problem="not in the cache"):
        machine.fetch(f"{BASE}@v1", offline=True)
    assert len(hub.requests) == asked


def test_the_command_line_ends_with_five(machine: Machine, hub: HubServer) -> None:
    """On the command line, a refusal is one line on stderr, and exit code 5."""
    done = machine.run("download", "acme/nothing")
    problem = f"no such model, or a private one; check the name; if it is private, {LOG_IN}"
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == f"deltaweights: error: hf://acme/nothing: {problem}\n"


def test_a_full_disk_is_told_before(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Insufficient disk space is reported before weights are requested."""
    usage = shutil.disk_usage(machine.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000_000))
    with refused(InputOutputError, where=machine.repository(BASE), found="20 MB free", expected="21.4 MB"):
        machine.fetch(BASE)
    assert sent(hub, ONE) == 0


def test_options_without_sense(machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download with --stream, and of a local path, is refused."""
    with pytest.raises(UsageError):
        download(BASE, options=HubOptions(stream=True))
    (machine.folder / "acme/base").mkdir(parents=True)
    monkeypatch.chdir(machine.folder)
    with refused(UsageError, found=BASE):
        machine.fetch(BASE)
    assert machine.fetch(f"hf://{BASE}").repo == BASE
