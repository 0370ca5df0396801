"""Models of the Hub give what the same folders give: fetched before, during the job, or streamed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltaweights.checkpoint.directory import LocalDirectory
from deltaweights.cli.group import deltaweights
from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import CheckFailed, InputOutputError, TargetBusy
from deltaweights.hub.ids import HubId
from deltaweights.hub.locate import Hub, HubOptions
from deltaweights.hub.memory_pool import MemoryPool
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.convert import convert_checkpoint
from deltaweights.jobs.inspect import inspect_checkpoint
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.verify import verify
from tests.support.errors import refused
from tests.support.hub_client import Machine
from tests.support.hub_pair import (
    BASE,
    DELTA,
    STREAM,
    Pair,
    arrived,
    local,
    make,
    results,
    serve,
    weights_of,
)
from tests.support.hub_server import Fault, HubServer
from tests.support.meta import save_meta
from tests.support.pairs import base_tensors, delta_tensors, load, same_bits, save
from tests.support.params import few

UNVERIFIED = "not cryptographically verified"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """Serve nothing yet."""
    with HubServer() as served:
        yield served


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_apply_from_the_hub(machine: Machine, hub: HubServer, pair: Pair) -> None:
    """A merge from the Hub equals the merge of the folders, and records repositories, commits and hashes."""
    commits = serve(hub, pair)
    expected = local(pair, machine.folder / "local")
    found = apply_delta(BASE, f"hf://{DELTA}@main", machine.folder / "out", report=machine.said)
    assert results(machine.folder / "out") == results(machine.folder / "local")
    card = (machine.folder / "out" / "README.md").read_text()
    for name, commit in zip((BASE, DELTA), commits.values(), strict=True):
        assert f"[`{name}`](https://huggingface.co/{name}), commit `{commit}`" in card
    assert (machine.folder / "out/tokenizer.model").read_bytes() == (pair[1] / "tokenizer.model").read_bytes()
    assert (found.content_digest, found.streamed) == (expected.content_digest, False)
    assert verify(machine.folder / "out", expect=expected.content_digest).ok
    ours, theirs = (manifest_of(machine.folder / name) for name in ("out", "local"))
    assert ours["inputs"]["plan"] == theirs["inputs"]["plan"]
    for role, folder in zip(("base", "delta"), pair, strict=True):
        record = ours["inputs"][role]
        assert (record["repo"], record["commit"]) == (f"acme/{role}", commits[role])
        assert "verification" not in record
        for name, file in record["files"].items():
            assert file["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
            assert file["checks"][-1] == "sha256"
    cached = machine.repository(DELTA) / "snapshots" / commits["delta"]
    assert {path.name for path in cached.iterdir()} == {path.name for path in pair[1].iterdir()}
    again = apply_delta(BASE, DELTA, machine.folder / "out")
    assert again.status == "already complete"


def test_stream(machine: Machine, hub: HubServer, pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """--stream publishes the same files, stores nothing, and states in manifest and summary that nothing was verified."""
    serve(hub, pair)
    expected = local(pair, machine.folder / "local")
    arguments = ["apply", "--base", BASE, "--delta", DELTA, "--target", str(machine.folder / "out"), "--stream", "-q"]
    deltaweights.main(arguments, standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert f"inputs          {UNVERIFIED}: they were streamed, or no hash of them is stated" in lines
    assert f"content digest  {expected.content_digest}" in lines
    assert not machine.cache.exists()
    assert results(machine.folder / "out") == results(machine.folder / "local")
    ours, theirs = (manifest_of(machine.folder / name) for name in ("out", "local"))
    assert ours["inputs"]["plan"] == theirs["inputs"]["plan"]
    for role in ("base", "delta"):
        record = ours["inputs"][role]
        assert (record["repo"], record["verification"]) == (f"acme/{role}", UNVERIFIED)
        assert not any("sha256" in file or "sha256" in file["checks"] for file in record["files"].values())


@pytest.mark.sampled(1)
def test_what_is_large(machine: Machine, hub: HubServer, large: Pair) -> None:
    """Large files, merged while they arrive or streamed, give the same result, and each byte is fetched about once."""
    serve(hub, large)
    expected = local(large, machine.folder / "local")
    for name, options in (("out", HubOptions()), ("streamed", STREAM)):
        before = arrived(hub)
        found = apply_delta(BASE, DELTA, machine.folder / name, hub=options, max_shard_size="2MB")
        assert found.content_digest == expected.content_digest
        assert found.proof == expected.proof
        assert arrived(hub) - before < 1.3 * weights_of(large)
        assert same_bits(load(machine.folder / name), load(machine.folder / "local"))
        assert (machine.cache.exists(), found.streamed) == (True, name == "streamed")
        shutil.rmtree(machine.cache)
        machine.cache.mkdir()
    assert list(machine.cache.iterdir()) == []


def test_a_folder_and_an_id(machine: Machine, hub: HubServer, large_torch: Pair) -> None:
    """One input may be a folder and the other an id; only the latter is recorded as from the Hub."""
    serve(hub, large_torch)
    expected = local(large_torch, machine.folder / "local")
    found = apply_delta(large_torch[0], DELTA, machine.folder / "out")
    assert found.content_digest == expected.content_digest
    inputs = manifest_of(machine.folder / "out")["inputs"]
    assert ("repo" in inputs["base"], inputs["delta"]["repo"]) == (False, DELTA)


def test_from_the_cache_offline(machine: Machine, hub: HubServer, pair: Pair) -> None:
    """Cached models are merged offline, with --stream too, and count as verified."""
    serve(hub, pair)
    expected = local(pair, machine.folder / "local")
    for name in (BASE, DELTA):
        machine.fetch(name)
    asked = len(hub.requests)
    for name, stream in (("out", False), ("streamed", True)):
        options = HubOptions(offline=True, stream=stream)
        found = apply_delta(BASE, DELTA, machine.folder / name, hub=options, require_verified=True)
        assert (found.content_digest, found.streamed) == (expected.content_digest, False)
        assert "sha256" in str(manifest_of(machine.folder / name)["inputs"]["base"]["files"])
    assert len(hub.requests) == asked


def test_a_dry_run_fetches_little(
    machine: Machine, hub: HubServer, large: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run with Hub models shows the same plan as with folders, and stores nothing."""
    serve(hub, large)
    plans = []
    for base, delta in ((BASE, DELTA), tuple(map(str, large))):
        arguments = ["apply", "--base", base, "--delta", delta, "--target", str(machine.folder / "out"), "--dry-run"]
        deltaweights.main([*arguments, "--json", "-q"], standalone_mode=False)
        plans.append(json.loads(capsys.readouterr().out))
    assert {**plans[0], "disk_free": 0} == {**plans[1], "disk_free": 0}
    assert not machine.cache.exists()


def test_make_from_the_hub(machine: Machine, hub: HubServer, pair: Pair) -> None:
    """``make`` with base and target from the Hub gives the same delta as with folders."""
    merged = machine.folder / "merged"
    apply_delta(*pair, merged)
    serve(hub, (pair[0], merged))  # the model under the name of its delta
    expected = make_delta(pair[0], merged, machine.folder / "local")
    for name, options in (("out", HubOptions()), ("streamed", STREAM)):
        found = make_delta(BASE, DELTA, machine.folder / name, hub=options)
        assert (found.content_digest, found.inexact) == (expected.content_digest, expected.inexact)
        assert results(machine.folder / name) == results(machine.folder / "local")
        assert manifest_of(machine.folder / name)["inputs"]["target"]["repo"] == DELTA


def test_convert_from_the_hub(machine: Machine, hub: HubServer, pair: Pair) -> None:
    """``convert`` of a Hub model gives the same copy as of the folder."""
    serve(hub, pair)
    expected = convert_checkpoint(pair[0], machine.folder / "local", dtype="float16")
    for name, options in (("out", HubOptions()), ("streamed", STREAM)):
        found = convert_checkpoint(BASE, machine.folder / name, dtype="float16", hub=options)
        assert found.content_digest == expected.content_digest
        assert results(machine.folder / name) == results(machine.folder / "local")


def test_meta_from_the_hub(machine: Machine, hub: HubServer) -> None:
    """A repository in Meta's format is converted as the folder is."""
    save_meta(base_tensors(), machine.folder / "meta", parts=2)
    hub.push("acme/meta", machine.folder / "meta")
    expected = convert_checkpoint(machine.folder / "meta", machine.folder / "local")
    assert convert_checkpoint("acme/meta", machine.folder / "out").content_digest == expected.content_digest
    assert convert_checkpoint("acme/meta", machine.folder / "s", hub=STREAM).content_digest == expected.content_digest


@pytest.mark.parametrize("options", [HubOptions(), STREAM], ids=["fetched", "streamed"])
def test_check_base_from_the_hub(machine: Machine, hub: HubServer, large: Pair, options: HubOptions) -> None:
    """``check-base`` gives the same result for Hub models as for folders."""
    serve(hub, large)
    found = check_base(BASE, DELTA, hub=options)
    assert found.proved
    assert found.proof == check_base(*large).proof


def test_inspect_from_the_hub(machine: Machine, hub: HubServer, large: Pair) -> None:
    """``inspect`` reports the same of a Hub model as of the folder, and stores nothing."""
    commits = serve(hub, large)
    found, expected = asdict(inspect_checkpoint(f"hf://{BASE}")), asdict(inspect_checkpoint(large[0]))
    assert found.pop("path") == f"hf://{BASE}"
    del expected["path"], expected["notes"], found["notes"]
    assert found == expected
    assert not machine.cache.exists()
    hashed = inspect_checkpoint(BASE, hash_inputs=True)
    assert [file.sha256 for file in hashed.files] == [
        hashlib.sha256((large[0] / file.name).read_bytes()).hexdigest() for file in hashed.files
    ]
    assert (machine.repository(BASE) / "snapshots" / commits["base"]).is_dir()


def test_diff_from_the_hub(machine: Machine, hub: HubServer, large: Pair) -> None:
    """``diff`` compares Hub models with folders and with each other."""
    serve(hub, large)
    for options in (HubOptions(), STREAM):
        assert diff_checkpoints(BASE, large[0], hub=options).identical
        found = diff_checkpoints(BASE, DELTA, hub=options)
        assert not found.identical
        assert found.tensors == diff_checkpoints(*large).tensors


def test_require_verified(machine: Machine, hub: HubServer, pair: Pair) -> None:
    """--require-verified refuses streamed inputs and unhashed folders, and accepts downloads."""
    commits = serve(hub, pair)
    with pytest.raises(CheckFailed) as caught:
        apply_delta(BASE, DELTA, machine.folder / "out", hub=STREAM, require_verified=True)
    first = next(path for path in sorted(pair[0].iterdir()) if path.suffix in {".bin", ".safetensors"}).name
    where = machine.repository(BASE) / "snapshots" / commits["base"] / first
    assert (caught.value.where, caught.value.remedy) == (where, "leave --stream out")
    with refused(CheckFailed, where=pair[0] / first, remedy="give --hash-inputs, or an id of the Hub"):
        apply_delta(pair[0], DELTA, machine.folder / "out", require_verified=True)
    assert not (machine.folder / "out").exists()
    apply_delta(BASE, DELTA, machine.folder / "out", require_verified=True)
    assert apply_delta(*pair, machine.folder / "hashed", require_verified=True, hash_inputs=True).status == "merged"


def test_a_repository_that_is_missing(machine: Machine, hub: HubServer, pair: Pair) -> None:
    """A missing base ends the run with 5 before the delta is requested."""
    hub.push(DELTA, pair[1])
    done = machine.run("apply", "--base", BASE, "--delta", DELTA, "--target", machine.folder / "out")
    problem = "no such model, or a private one; check the name; if it is private, log in with: hf auth login, or set"
    assert (done.returncode, done.stderr) == (5, f"deltaweights: error: hf://{BASE}: {problem} HF_TOKEN\n")
    assert {request.file for request in hub.requests} == {""}


def test_a_full_disk(machine: Machine, hub: HubServer, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Insufficient disk space for the cache is reported before weights are requested."""
    serve(hub, pair)
    usage = shutil.disk_usage(machine.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=16_800_000))
    with refused(InputOutputError, problem="not enough free disk for the download", found="16.8 MB free"):
        apply_delta(BASE, DELTA, machine.folder / "out")
    assert arrived(hub) == 0


HEAD = 'format = "deltaweights-recipe"\nversion = 1\n'


SHAPES = "[shapes]\nhidden_size = 32\nintermediate_size = 92\nlayers = 2\nheads = 4\nbase_rows = 48\ndelta_rows = 52\n"


def recipe_file(machine: Machine, **delta: str) -> Path:
    """Write a recipe of LLaVA-Med's kind with the sizes of the tiny pair."""
    path = machine.folder / "tiny.toml"
    keys = "".join(f'{key} = "{value}"\n' for key, value in delta.items())
    path.write_text(f'{HEAD}extends = "llava-med-7b"\n[delta]\nfiles = {{}}\n{keys}{SHAPES}')
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Make a tiny pair in torch's format."""
    base = base_tensors()
    return make(tmp_path_factory.mktemp("tiny"), base, delta_tensors(base), "torch", 2)


def test_a_recipe_knows_where_its_delta_is(machine: Machine, hub: HubServer, tiny: Pair) -> None:
    """``apply`` with a recipe and without --delta downloads the recipe's delta, after the licence notice."""
    commits = serve(hub, tiny)
    recipe = recipe_file(machine, repo=DELTA, revision=commits["delta"])
    expected = apply_delta(*tiny, machine.folder / "local", recipe_file=recipe)
    found = apply_delta(BASE, None, machine.folder / "out", recipe_file=recipe, report=machine.said)
    assert found.content_digest == expected.content_digest
    notice = next(note for note in machine.said.notes if note.startswith("licence "))
    assert "research use only" in notice
    assert machine.said.requests_at[notice] == 0
    assert manifest_of(machine.folder / "out")["inputs"]["delta"]["commit"] == commits["delta"]
    command: list[str | Path] = [
        "apply",
        "--recipe",
        recipe,
        "--base",
        BASE,
        "--target",
        machine.folder / "again",
        "--json",
        "-q",
    ]
    done = machine.run(*command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["content_digest"] == expected.content_digest


LLAMA = "huggyllama/llama-7b"


@pytest.mark.parametrize("given", ["by the recipe", "by its id"])
def test_a_recipe_pins_the_format_of_its_base(machine: Machine, hub: HubServer, tiny: Pair, given: str) -> None:
    """Of a base in two formats, the one whose hashes the recipe knows is used, even if the id is given."""
    both = machine.folder / "both"
    shutil.copytree(tiny[0], both)
    other = {name: tensor + 1 for name, tensor in base_tensors().items()}
    save(other, both, "safetensors", 1, config=False)
    hub.push(LLAMA, both)
    hub.tag(LLAMA, "8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16")
    hub.push(DELTA, tiny[1])
    recipe = recipe_file(machine)
    expected = apply_delta(*tiny, machine.folder / "local", recipe_file=recipe)
    base = LLAMA if given == "by its id" else None
    found = apply_delta(base, DELTA, machine.folder / "out", recipe_file=recipe)
    assert found.content_digest == expected.content_digest
    assert hub.sent[f"{LLAMA}/model.safetensors"] == 0
    assert list(manifest_of(machine.folder / "out")["inputs"]["base"]["files"]) == [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    ]


def test_a_delta_is_recognised_by_its_repository(machine: Machine, hub: HubServer, tiny: Pair) -> None:
    """The recipe is recognised by the delta's id, and its notice is shown before the first request."""
    hub.push("microsoft/llava-med-7b-delta", tiny[1])
    hub.push(BASE, tiny[0])
    with pytest.raises(Exception, match="recipe llava-med-7b"):
        apply_delta(BASE, "microsoft/llava-med-7b-delta", machine.folder / "out", report=machine.said)
    assert machine.said.notes[0].startswith("recipe          llava-med-7b: the delta is that of LLaVA-Med v1, 7B (")
    assert machine.said.notes[1].startswith("licence         LLaVA-Med v1, 7B: LLaVA-Med is for research use only.")
    assert machine.said.requests_at[machine.said.notes[1]] == 0


def test_an_existing_path_wins(machine: Machine, hub: HubServer, tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing path wins over an id of the same name; hf:// forces the id."""
    hub.push(BASE, tiny[1])
    (machine.folder / "acme").mkdir()
    shutil.copytree(tiny[0], machine.folder / BASE)
    monkeypatch.chdir(machine.folder)
    assert inspect_checkpoint(BASE).tensors == inspect_checkpoint(tiny[0]).tensors
    assert hub.requests == []
    assert inspect_checkpoint(f"hf://{BASE}").tensors == inspect_checkpoint(tiny[1]).tensors


def test_a_target_that_is_called_as_an_id(
    machine: Machine, hub: HubServer, tiny: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target can overlap with a path, but not with an id of the same name."""
    serve(hub, tiny)
    monkeypatch.chdir(machine.folder)
    assert apply_delta(BASE, DELTA, BASE).status == "merged"
    assert convert_checkpoint(DELTA, "acme/delta", dtype="float16").status == "converted"
    with pytest.raises(TargetBusy):
        apply_delta(tiny[0], DELTA, tiny[0] / "out")


@pytest.fixture
def opened(machine: Machine, hub: HubServer) -> Iterator[Hub]:
    """Open the Hub without keeping anything."""
    opened = Hub(STREAM, machine.said)
    yield opened
    opened.close()


def test_a_read_that_is_larger_than_what_is_kept(opened: Hub, hub: HubServer, machine: Machine) -> None:
    """A single read of a streamed file can exceed what is kept in memory."""
    opened.downloads.pool = MemoryPool(24)
    content = np.random.default_rng(9).bytes(9_000_000)
    (machine.folder / "model.safetensors").write_bytes(content)
    hub.push(BASE, {"model.safetensors": machine.folder / "model.safetensors"})
    file = opened.open(HubId(BASE)).open("model.safetensors")
    assert file.read(1234, 8_900_000) == content[1234 : 1234 + 8_900_000]


def test_hints_outside_the_file(opened: Hub, hub: HubServer, machine: Machine) -> None:
    """Hints outside the file are harmless, and reads outside it are refused."""
    (machine.folder / "model.safetensors").write_bytes(b"x" * 1000)
    hub.push(BASE, {"model.safetensors": machine.folder / "model.safetensors"})
    file = opened.open(HubId(BASE)).open("model.safetensors")
    file.prefetch([(10**15, 10), (-5, 3), (990, 10**15), (0, 0)])
    assert file.read(990, 10) == b"x" * 10
    with refused(InputOutputError, where=file.path, found="1000 bytes"):
        file.read(990, 11)


def test_the_first_bytes_are_those_of_the_file(opened: Hub, hub: HubServer, tiny: Pair) -> None:
    """A Hub directory lists the same names as the folder, and each file begins with the same bytes."""
    hub.push(BASE, tiny[0])
    there, here = opened.open(HubId(BASE)), LocalDirectory(tiny[0])
    assert there.names() == here.names()
    assert {name: there.head(name) for name in there.names()} == {name: here.head(name) for name in here.names()}
    assert not there.has("nothing")
    with refused(InputOutputError, where=f"{there.id}/nothing", problem="no such file"):
        there.open("nothing")


def test_weights_without_a_stated_sha256(machine: Machine, hub: HubServer) -> None:
    """Git's hash of an LFS file is that of its pointer: it is not taken for the weights' own, and they are fetched once."""
    tensors = {"w": torch.arange(64, dtype=torch.float16)}
    folder = save(tensors, machine.folder / "plain", "safetensors", 1)
    hub.push("acme/plain", {"model.safetensors": folder / "model.safetensors", "config.json": folder / "config.json"})
    hub.faults.append(Fault("no-sha256", "model.safetensors"))
    done = machine.fetch("acme/plain")
    assert (Path(done.path) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert [warning for warning in machine.said.warnings if "hashes not stated" in warning]
    assert sum(request.file.endswith(".safetensors") and request.method == "GET" for request in hub.requests) == 2


@pytest.mark.parametrize("command", few(["apply", "make", "convert"], 1))
def test_a_dry_run_keeps_nothing(machine: Machine, hub: HubServer, pair: Pair, tmp_path: Path, command: str) -> None:
    """A dry run from the Hub leaves neither a cache nor a target."""
    serve(hub, pair)
    inputs = {
        "apply": ("--base", BASE, "--delta", DELTA),
        "make": ("--base", BASE, "--target", BASE),
        "convert": ("--base", BASE),
    }
    output = "--delta" if command == "make" else "--target"
    done = machine.run(command, *inputs[command], output, tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not machine.cache.exists()
    assert not (tmp_path / "out").exists()
