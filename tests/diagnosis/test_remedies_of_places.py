"""Remedies that say what else to give, where to put it, or what to leave out: of folders, archives, shards, signatures and pins."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from deltaweights.errors import DeltaweightsError
from deltaweights.jobs.request import find_recipe
from deltaweights.staging.location import HANDOFF
from tests.diagnosis.test_remedies import (
    SHARD,
    Case,
    Line,
    Scene,
    adding,
    command,
    giving,
    load_delta,
    put,
    try_remedy,
    without,
)
from tests.diagnosis.test_remedies_of_tools import base_itself, signed
from tests.support.merging import recipe_file
from tests.support.meta import save_meta
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save

pytestmark = pytest.mark.diagnosis

Run = Callable[..., subprocess.CompletedProcess[str]]
Follow = Callable[[Scene, Line, str], Line]


def follows(says: str, do: Callable[[Scene, Line], Line]) -> Follow:
    """Return what does what a remedy says, which must say so."""

    def follow(scene: Scene, line: Line, remedy: str) -> Line:
        assert says in remedy
        return do(scene, line)

    return follow


# Bases that are something else.


def as_base(of: Callable[[Scene, Path], object]) -> Callable[[Scene], Line]:
    """Give what ``of`` puts at a path as the base."""

    def situation(scene: Scene) -> Line:
        of(scene, scene.root / "given")
        return put(scene.apply(), "--base", scene.root / "given")

    return situation


def dataset_of_a_cache(_scene: Scene, folder: Path) -> None:
    """Make what the Hub's cache has of a dataset."""
    for name in ("blobs", "refs", "snapshots"):
        (folder / "datasets--acme--chats" / name).mkdir(parents=True)


def dataset_as_base(scene: Scene) -> Line:
    dataset_of_a_cache(scene, scene.root / "hub")
    return put(scene.apply(), "--base", scene.root / "hub" / "datasets--acme--chats")


def pipeline(scene: Scene, folder: Path) -> None:
    save(scene.tensors, folder / "text_encoder")
    (folder / "model_index.json").write_text("{}")


def pipeline_alone(_scene: Scene, folder: Path) -> None:
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")


def metas_names(scene: Scene, folder: Path) -> None:
    """Save Meta's tensors as one torch file of Hugging Face's name, as converters leave them."""
    save_meta(small_model(scene), scene.root / "meta")
    tensors = torch.load(scene.root / "meta" / "consolidated.00.pth", weights_only=True)
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")


def small_model(scene: Scene) -> Tensors:
    """Return a pair's base that Meta's format can hold, and save its delta."""
    base = base_tensors(1)
    shutil.rmtree(scene.delta)
    save(load_delta(base), scene.delta)
    return base


def deepspeed(scene: Scene, folder: Path) -> None:
    """Save what DeepSpeed does without ZERO: the whole model in one file."""
    (folder / "global_step1").mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    torch.save({"module": scene.tensors, "dp_world_size": 1}, folder / "global_step1" / "mp_rank_00_model_states.pt")


def loaded_and_saved(scene: Scene, line: Line, remedy: str) -> Line:
    """Do with torch what the remedy says."""
    path = Path(shlex.split(remedy)[1])
    (scene.root / "saved").mkdir()
    torch.save(torch.load(path, weights_only=True)["module"], scene.root / "saved" / "pytorch_model.bin")
    return put(line, "--base", scene.root / "saved")


def adapters(scene: Scene, folder: Path) -> None:
    save({f"{name}.fused": each for name, each in scene.tensors.items()}, folder)


def one_shard(scene: Scene) -> Line:
    """Give one shard of the delta, whose index and other shard are not there."""
    (scene.root / "lone").mkdir()
    shutil.copy(scene.delta / SHARD, scene.root / "lone")
    return put(scene.apply(), "--delta", scene.root / "lone" / SHARD)


def fetched_all(scene: Scene, line: Line) -> Line:
    shutil.copytree(scene.delta, scene.root / "lone", dirs_exist_ok=True)
    return put(line, "--delta", scene.root / "lone")


def script_program(scene: Scene) -> Line:
    """Save the delta as a TorchScript program."""
    module = torch.nn.Module()
    for name, tensor in delta_tensors(scene.tensors).items():
        module.register_buffer(name.replace(".", "_"), tensor)
    torch.jit.script(module).save(str(scene.root / "delta.bin"))  # type: ignore[no-untyped-call]
    return put(scene.apply(), "--delta", scene.root / "delta.bin")


def state_saved(scene: Scene, line: Line) -> Line:
    torch.save(delta_tensors(scene.tensors), scene.root / "state.bin")
    return put(line, "--delta", scene.root / "state.bin")


def renamed_base(old: str, new: str) -> Callable[[Scene], Line]:
    """Rename a file of the base as browsers, wget and editors do."""

    def situation(scene: Scene) -> Line:
        shutil.rmtree(scene.base)
        save(scene.tensors, scene.base, "safetensors", 2 if "-of-" in old or "index" in old else 1)
        (scene.base / old).rename(scene.base / new)
        return scene.apply()

    return situation


def named_back(scene: Scene, line: Line, remedy: str) -> Line:
    """Rename as the remedy says; a name alone is one in the same folder."""
    _, old, _, new = shlex.split(remedy)
    (scene.base / old).rename(scene.base / new)
    return line


def without_prefix(scene: Scene) -> Line:
    """Name the base's tensors as a LlamaModel does, beside the head of a LlamaForCausalLM."""
    save({name.removeprefix("model."): each for name, each in scene.tensors.items()}, scene.root / "bare")
    return put(scene.apply(), "--base", scene.root / "bare")


def prefix_put(scene: Scene, line: Line, remedy: str) -> Line:
    assert remedy.endswith("put model. before all of its names but lm_head.weight")
    bare = {name.removeprefix("model."): each for name, each in scene.tensors.items()}
    named = {name if name == "lm_head.weight" else f"model.{name}": each for name, each in bare.items()}
    return put(line, "--base", save(named, scene.root / "named"))


# Archives.


def packed_delta(scene: Scene) -> Line:
    """Leave the archive in the folder that it should be unpacked into."""
    (scene.root / "packed").mkdir()
    with tarfile.open(scene.root / "packed" / "delta.tar", "w") as archive:
        archive.add(scene.delta, "delta")
    return put(scene.apply(), "--delta", scene.root / "packed")


def untarred(scene: Scene, line: Line) -> Line:
    with tarfile.open(scene.root / "packed" / "delta.tar") as archive:
        archive.extractall(scene.root / "packed", filter="data")
    return put(line, "--delta", scene.root / "packed" / "delta")


def archive_of_words(scene: Scene) -> Line:
    with zipfile.ZipFile(scene.root / "words.zip", "w") as archive:
        archive.writestr("delta/README.md", "# words")
    return put(scene.apply(), "--delta", scene.root / "words.zip")


def archive_of_weights(scene: Scene, line: Line) -> Line:
    with zipfile.ZipFile(scene.root / "delta.zip", "w") as archive:
        for path in scene.delta.iterdir():
            archive.write(path, f"delta/{path.name}")
    return put(line, "--delta", scene.root / "delta.zip")


def packed_result(scene: Scene, change: Callable[[tarfile.TarInfo], tarfile.TarInfo] | None = None) -> Path:
    """Merge, sign and pack."""
    signed(scene)
    with tarfile.open(scene.root / "result.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(scene.target, "result", filter=change)
    return scene.root / "result.tar"


def signed_archive(scene: Scene) -> Line:
    return ["verify", str(packed_result(scene)), "--public-key", str(scene.root / "open.pub")]


def sparse_archive(scene: Scene) -> Line:
    """Pack as GNU tar does files with holes."""

    def sparse(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if member.name.endswith(".safetensors"):
            member.pax_headers = {"GNU.sparse.name": member.name}
        return member

    return ["verify", str(packed_result(scene, sparse))]


def result_untarred(scene: Scene, line: Line) -> Line:
    with tarfile.open(line[1]) as archive:
        archive.extractall(scene.root / "there", filter="data")
    return [line[0], str(scene.root / "there" / "result")]


def signature_named(scene: Scene, line: Line) -> Line:
    return [*line, "--signature", str(scene.target / "model.sig")]


# Files in the way.


def fifo(scene: Scene) -> Line:
    """Put a FIFO in the place of a shard, as a download that is piped leaves it."""
    shutil.move(scene.delta / SHARD, scene.root / SHARD)
    os.mkfifo(scene.delta / SHARD)
    return scene.apply()


def file_itself(scene: Scene, line: Line) -> Line:
    (scene.delta / SHARD).unlink()
    shutil.move(scene.root / SHARD, scene.delta / SHARD)
    return line


def two_licences(scene: Scene) -> Line:
    (scene.delta / "LICENSE").write_text("one")
    (scene.delta / "license").write_text("two")
    return scene.apply()


def one_licence(scene: Scene, line: Line) -> Line:
    (scene.delta / "license").unlink()
    return line


# Signatures, manifests and pins.


def verified(*more: str) -> Callable[[Scene], Line]:
    """Merge, sign with a key, and verify with further options."""

    def situation(scene: Scene) -> Line:
        signed(scene)
        return ["verify", str(scene.target), *(word.format(scene.root) for word in more)]

    return situation


KEY = ("--public-key", "{}/open.pub")
IDENTITY = ("--identity", "me@example.org", "--issuer", "https://accounts.example.org")


def by_key(scene: Scene, line: Line) -> Line:
    at = line.index("--identity")
    return [*line[:at], "--public-key", str(scene.root / "open.pub"), *line[at + 4 :]]


def without_identity(_scene: Scene, line: Line) -> Line:
    at = line.index("--identity")
    return [*line[:at], *line[at + 4 :]]


def signed_under_another_name(scene: Scene) -> Line:
    signed(scene)
    more = ["--private-key", str(scene.root / "open.pem"), "--signature", str(scene.target / "mine.sig")]
    return ["sign", str(scene.target), *more]


def other_manifest(scene: Scene) -> Line:
    command(scene.apply())
    (scene.root / "mine.json").write_text("{}")
    return ["verify", str(scene.target), "--manifest", str(scene.root / "mine.json")]


def two_pinned(scene: Scene) -> Line:
    signed(scene)
    shutil.copytree(scene.target, scene.root / "second")
    more = [word.format(scene.root) for word in (*KEY, "--signature", "{}/out/model.sig")]
    return [
        "pin",
        str(scene.target),
        str(scene.root / "second"),
        "--output",
        str(scene.root / "deltaweights.lock"),
        *more,
    ]


def first_alone(scene: Scene, line: Line) -> Line:
    return [word for word in line if word != str(scene.root / "second")]


def pinned_twice(scene: Scene) -> Line:
    command(scene.apply())
    lock = scene.root / "deltaweights.lock"
    command(["pin", str(scene.target), "--output", str(lock)])
    block = lock.read_text().partition("[[model]]")[2]
    lock.write_text(f"{lock.read_text()}\n[[model]]{block}")
    return ["verify", "--lock", str(lock)]


def one_left_out(scene: Scene, line: Line) -> Line:
    lock = scene.root / "deltaweights.lock"
    head, *blocks = lock.read_text().split("[[model]]")
    assert blocks[0].split() == blocks[1].split()
    lock.write_text(f"{head}[[model]]{blocks[0]}")
    return line


def unspeakable_name(scene: Scene) -> Line:
    command(scene.apply())
    scene.target.rename(scene.root / os.fsdecode(b"caf\xe9"))
    return ["pin", str(scene.root / os.fsdecode(b"caf\xe9")), "--output", str(scene.root / "deltaweights.lock")]


def folder_renamed(scene: Scene, line: Line) -> Line:
    Path(line[1]).rename(scene.root / "coffee")
    return [line[0], str(scene.root / "coffee"), *line[2:]]


# Parts.


def damaged_handoff(scene: Scene) -> Line:
    """Damage what the parts leave for ``finish``."""
    command(scene.apply("--part", "1/1"))
    (scene.root / ".out.deltaweights" / HANDOFF).write_text("{}")
    return ["finish", "--target", str(scene.target)]


def part_again(scene: Scene, line: Line) -> Line:
    command(scene.apply("--part", "1/1"))
    return line


def discarded(scene: Scene, _line: Line) -> Line:
    command(["clean", str(scene.target)])
    return scene.apply()


# Recipes and the arithmetic.


def with_recipe(more: str) -> Callable[[Scene], Line]:
    return lambda scene: scene.apply("--recipe", recipe_file(scene.root, more=more, stated=False))


def without_recipe(_scene: Scene, line: Line) -> Line:
    at = line.index("--recipe")
    return [*line[:at], *line[at + 2 :]]


def required_projector(scene: Scene) -> Line:
    """Leave the projector out of the delta, where the recipe wants it; it is published in a file of its own."""
    shutil.rmtree(scene.delta)
    save(delta_tensors(scene.tensors, projector=False), scene.delta)
    return with_recipe('[rules]\nrequired = ["model.mm_projector.weight", "model.mm_projector.bias"]\n')(scene)


def projector_beside(scene: Scene, line: Line) -> Line:
    whole = delta_tensors(scene.tensors)
    torch.save({name: each for name, each in whole.items() if "mm_projector" in name}, scene.delta / "mm_projector.bin")
    return line


def larger_pair(scene: Scene) -> Tensors:
    """Make a pair with enough weights to prove something."""
    base = base_tensors(2, 512, 128)
    for folder in (scene.base, scene.delta):
        shutil.rmtree(folder)
    save(base, scene.base)
    save(load_delta(base), scene.delta)
    return base


def wrong_base(scene: Scene) -> Line:
    larger_pair(scene)
    save(base_tensors(2, 512, 128, seed=5), scene.root / "wrong")
    return put(scene.apply(), "--base", scene.root / "wrong")


def merge_of_ours(scene: Scene) -> Line:
    """Merge a delta without projector, and give the result as its base."""
    larger_pair(scene)
    command(put(scene.apply(), "--target", scene.root / "merged"))
    return put(scene.apply(), "--base", scene.root / "merged")


def checked_wrong_base(scene: Scene) -> Line:
    line = wrong_base(scene)
    return ["check-base", *line[1:5]]


def other_arithmetic(scene: Scene) -> Line:
    """Check a delta that was computed in float32 of float32 weights."""
    base = {name: each.float() for name, each in larger_pair(scene).items()}
    delta = {name: torch.randn(each.shape) * 4e-4 for name, each in base.items()}
    save({name: each + torch.randn(each.shape) * 1e-6 for name, each in base.items()}, scene.base)
    save(delta, scene.delta)
    return ["check-base", *scene.apply()[1:5]]


def whole_head(scene: Scene) -> Line:
    """Store the head whole, as some scripts did."""
    base = larger_pair(scene)
    delta = load_delta(base)
    delta["lm_head.weight"] = (base["lm_head.weight"].float() + delta["lm_head.weight"].float()).half()
    save(delta, scene.delta)
    return scene.apply()


def other_target(scene: Scene) -> Line:
    """Make a delta on a base of fewer layers than the target has."""
    save(base_tensors(2), scene.root / "tuned")
    line = ["make", "--base", scene.base, "--target", scene.root / "tuned", "--delta", scene.root / "made"]
    return list(map(str, line))


def base_of_the_target(scene: Scene, line: Line) -> Line:
    save(base_tensors(2, seed=3), scene.root / "two")
    return put(line, "--base", scene.root / "two")


def checked_file(scene: Scene) -> Line:
    save(scene.tensors, scene.root / "model", "safetensors", 1)
    return ["check", str(scene.root / "model" / "model.safetensors")]


CASES: dict[str, Case] = {
    "a dataset of the Hub's cache": Case(dataset_as_base, "E-NO-WEIGHTS", "give a model's folder", base_itself),
    "a pipeline": Case(as_base(pipeline), "E-NO-WEIGHTS", "give the folder of one model in it", giving("--base")),
    "a pipeline without a language model": Case(
        as_base(pipeline_alone), "E-NO-WEIGHTS", "give the folder of a language model", base_itself
    ),
    "Meta's names in a file of Hugging Face's": Case(
        as_base(metas_names),
        "E-OTHER-TENSORS",
        "give the folder with all its consolidated",
        follows("params.json", lambda scene, line: put(line, "--base", scene.root / "meta")),
    ),
    "DeepSpeed without ZERO": Case(as_base(deepspeed), "E-NO-WEIGHTS", "torch.save its 'module'", loaded_and_saved),
    "one shard": Case(
        one_shard, "E-INCOMPLETE", "and give their folder", follows("pytorch_model.bin.index.json", fetched_all)
    ),
    "a TorchScript program": Case(
        script_program, "E-MALFORMED", "state_dict", follows("with torch.save", state_saved)
    ),
    "a copy that wget numbered": Case(
        renamed_base("model.safetensors", "model.safetensors.1"), "E-NO-WEIGHTS", "rename ", named_back
    ),
    "a copy that a browser numbered": Case(
        renamed_base("model.safetensors", "model (1).safetensors"), "E-NO-WEIGHTS", "rename ", named_back
    ),
    "an index that an editor renamed": Case(
        renamed_base("model.safetensors.index.json", "model.safetensors.index.json.txt"),
        "E-NO-WEIGHTS",
        "rename ",
        named_back,
    ),
    "a shard that a browser numbered": Case(
        renamed_base("model-00002-of-00002.safetensors", "model-00002-of-00002 (1).safetensors"),
        "E-INCOMPLETE",
        "rename ",
        named_back,
    ),
    "names without their prefix": Case(without_prefix, "E-OTHER-TENSORS", "put model. before", prefix_put),
    "an archive in its folder": Case(
        packed_delta, "E-NO-WEIGHTS", "unpack it", follows("give the folder in it", untarred)
    ),
    "an archive of words": Case(
        archive_of_words, "E-NO-WEIGHTS", "give the archive of a folder with weights", follows("weights", archive_of_weights)
    ),
    "a signature of an archive": Case(
        signed_archive, "E-USAGE", "--signature FILE", follows("say where it is", signature_named)
    ),
    "an archive of files with holes": Case(
        sparse_archive, "E-MALFORMED", "unpack it, and give the folder", follows("unpack", result_untarred)
    ),
    "a FIFO for a shard": Case(fifo, "E-MALFORMED", "give the file itself", follows("itself", file_itself)),
    "two licences": Case(two_licences, "E-MALFORMED", "give a folder with one of them", follows("one of them", one_licence)),
    "a key and an identity: the key": Case(
        verified(*KEY, *IDENTITY), "E-USAGE", "leave --public-key or --identity out", follows("--identity", without_identity)
    ),
    "an identity for a key's signature": Case(
        verified(*IDENTITY), "E-NO-SIGNATURE", "give --public-key of who signed", follows("--identity", by_key)
    ),
    "a trust configuration alone": Case(
        verified("--trust-config", "{}/none.json"),
        "E-USAGE",
        "give --identity and --issuer, too",
        follows("too", lambda _, line: [*line, *IDENTITY]),
        "E-NO-SIGNATURE",  # it was signed with a key
    ),
    "a digest without weights": Case(
        verified("--expect", f"dw1:{'0' * 64}", "--no-weights"),
        "E-USAGE",
        "--no-weights",
        without("--no-weights", values=0),
        "E-NOT-AS-RECORDED",  # it is not this one
    ),
    "a signature under another name": Case(
        signed_under_another_name,
        "E-CHECK-FAILED",
        "write it there",
        follows("there", lambda scene, line: put(line, "--signature", scene.target / "model.sig")),
    ),
    "a signature outside of the folder": Case(
        signed_under_another_name,
        "E-CHECK-FAILED",
        "or outside of the folder",
        follows("outside", lambda scene, line: put(line, "--signature", scene.root / "mine.sig")),
    ),
    "another document for a manifest": Case(
        other_manifest,
        "E-MALFORMED",
        "give one that deltaweights wrote",
        follows("wrote", lambda scene, line: put(line, "--manifest", scene.target / "manifest.json")),
    ),
    "one signature of two models": Case(two_pinned, "E-USAGE", "pin it alone", follows("alone", first_alone)),
    "a model that is pinned twice": Case(pinned_twice, "E-MALFORMED", "leave one out", follows("one", one_left_out)),
    "a folder whose name is no text": Case(
        unspeakable_name, "E-USAGE", "rename the folder", follows("rename", folder_renamed)
    ),
    "a damaged handoff: again": Case(
        damaged_handoff, "E-MALFORMED", "run a part again", follows("run a part again", part_again)
    ),
    "a damaged handoff: clean": Case(
        damaged_handoff, "E-MALFORMED", "deltaweights clean", follows("discard it", discarded)
    ),
    "a recipe of other sizes": Case(
        with_recipe("[shapes]\ndelta_rows = 60\n"),
        "E-OTHER-TENSORS",
        "use the delta that the recipe names, or another recipe",
        follows("another recipe", without_recipe),
    ),
    "a projector in a file of its own": Case(
        required_projector,
        "E-OTHER-TENSORS",
        "is mm_projector.bin missing beside the shards?",
        follows("missing", projector_beside),
    ),
    "a wrong base: allowed": Case(
        wrong_base, "E-WRONG-BASE", "--allow-unproved-base publishes it anyway", adding("--allow-unproved-base")
    ),
    "a wrong base: the right one": Case(
        wrong_base, "E-WRONG-BASE", "use the right base", base_itself
    ),
    "a merge of ours as the base": Case(
        merge_of_ours, "E-WRONG-BASE", "use the base that it was merged from", base_itself
    ),
    "a unit of one letter": Case(
        lambda scene: scene.apply("--max-shard-size", "0.5g"),
        "E-NOT-A-SIZE",
        "write 0.5gB",
        lambda _, line, remedy: put(line, "--max-shard-size", remedy.split()[1]),
    ),
    "a wrong base that is checked": Case(
        checked_wrong_base, "E-WRONG-BASE", "use the base that the delta was made from", base_itself
    ),
    "whole tensors: allowed": Case(
        whole_head,
        "E-STORED-WHOLE",
        "--allow-unproved-base adds the base to them all the same",
        adding("--allow-unproved-base"),
    ),
    "a target of another base": Case(
        other_target,
        "E-OTHER-TENSORS",
        "use the base that the target was fine-tuned from",
        follows("base", base_of_the_target),
    ),
    "a file to check": Case(
        checked_file,
        "E-INPUT-OUTPUT",
        "give the folder that holds weights and config.json",
        follows("folder", lambda _, line: [line[0], str(Path(line[1]).parent)]),
        "E-DOES-NOT-LOAD",  # its configuration is none
    ),
}  # fmt: skip


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", CASES)
def test_the_remedy_works(tmp_path: Path, name: str) -> None:
    """The remedy is what the table says; followed, the command succeeds, or fails with the next right error."""
    try_remedy(CASES[name], Scene(tmp_path))


def test_a_command_line_that_does_not_parse(run: Run) -> None:
    """The command that the remedy names runs, and tells of the options that there are."""
    done = run("apply", "--bass", "b", "--json")
    assert done.returncode == 2
    remedy = json.loads(done.stdout)["error"]["remedy"]
    program, *line = remedy.removeprefix("see ").split()
    assert program == "deltaweights"
    told = run(*line)
    assert told.returncode == 0
    assert "--base" in told.stdout


def test_nothing_to_pin_is_kept_by_a_manifest(tmp_path: Path) -> None:
    """A folder with a list of hashes alone has no manifest to pin: one is made, kept, and verified with."""
    scene = Scene(tmp_path)
    sums = "".join(f"{sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(scene.base.iterdir()))
    (scene.base / "SHA256SUMS").write_text(sums)
    with pytest.raises(DeltaweightsError) as caught:
        command(["pin", str(scene.base), "--output", str(tmp_path / "deltaweights.lock")])
    assert caught.value.remedy == "keep one in git: deltaweights manifest, and verify --manifest"
    command(["manifest", str(scene.base), "--output", str(tmp_path / "kept.json")])
    command(["verify", str(scene.base), "--manifest", str(tmp_path / "kept.json")])


def test_a_recipe_that_extends_another_one_than_is_named(tmp_path: Path) -> None:
    """One of the two is left out: the recipe is then found."""
    (tmp_path / "own.toml").write_text(
        'format = "deltaweights-recipe"\nversion = 1\nname = "own"\nextends = "llava-med-7b"\n'
    )
    with pytest.raises(DeltaweightsError) as caught:
        find_recipe("vicuna-7b-v1.1", tmp_path / "own.toml")
    assert caught.value.remedy == "name one of them"
    assert find_recipe(None, tmp_path / "own.toml") is not None
    assert find_recipe("llava-med-7b", tmp_path / "own.toml") is not None


def test_a_repository_of_several_snapshots(tmp_path: Path) -> None:
    """One of the snapshots that are named is given."""
    scene = Scene(tmp_path)
    command(scene.apply())
    repository = tmp_path / "models--acme--model"
    for name in ("blobs", "refs"):
        (repository / name).mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(scene.target, repository / "snapshots" / commit)
    with pytest.raises(DeltaweightsError) as caught:
        command(["verify", str(repository)])
    assert caught.value.remedy == "give one of them"
    first, _ = str(caught.value.found).split(", ")
    command(["verify", str(Path(str(caught.value.where)) / first)])
