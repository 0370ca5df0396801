"""Every remedy works: each situation is made, its remedy followed, and the command then succeeds or meets the next right error."""

from __future__ import annotations

import codecs
import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from deltaweights.cli.group import deltaweights
from deltaweights.errors import DeltaweightsError
from deltaweights.hub.access import configured_access
from deltaweights.hub.ids import HubId
from deltaweights.recipes.catalogue import load, names
from tests.support.merging import recipe_file
from tests.support.pairs import Tensors, base_tensors, delta_tensors, reference, save

pytestmark = pytest.mark.diagnosis

Line = list[str]
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
INDEX = "pytorch_model.bin.index.json"
MINE = "mine-00002-of-00002.bin"
SHARD = "pytorch_model-00002-of-00002.bin"


class Scene:
    """A base, a delta and a place for the result, of the case's own."""

    def __init__(self, root: Path) -> None:
        self.root, self.base, self.delta, self.target = root, root / "base", root / "delta", root / "out"
        self.tensors = base_tensors(1)
        save(self.tensors, self.base)
        save(delta_tensors(self.tensors), self.delta)

    def apply(self, *more: str | Path) -> Line:
        """Return the command that merges the pair."""
        inputs = ["--base", self.base, "--delta", self.delta, "--target", self.target, *more]
        return ["apply", *map(str, inputs)]

    def make(self, *more: str | Path) -> Path:
        """Make a delta of ours, of float16 arithmetic, and return its folder."""
        made = self.root / "made"
        tuned = save(reference(self.tensors, load_delta(self.tensors)), self.root / "tuned")
        line = ["make", "--base", self.base, "--target", tuned, "--delta", made, *more]
        command(list(map(str, line)))
        return made


def load_delta(base: Tensors) -> Tensors:
    """Return a delta without new tokens and projector."""
    return delta_tensors(base, new_tokens=0, projector=False)


def command(line: Line) -> None:
    """Run ``deltaweights LINE`` in this process."""
    deltaweights.main([*line], standalone_mode=False)


Follow = Callable[[Scene, Line, str], Line]


@dataclass(frozen=True)
class Case:
    """A situation, the error's code, what its remedy says, how it is followed, and the code of the next error, if any."""

    situation: Callable[[Scene], Line]
    code: str
    says: str  # a part of the remedy
    follow: Follow
    then: str | None = None


# How remedies are followed.


def adding(flag: str, value: str = "") -> Follow:
    """Add an option that the remedy names."""

    def follow(_scene: Scene, line: Line, remedy: str) -> Line:
        assert flag in remedy
        return [*line, flag, *([value] if value else [])]

    return follow


def without(flag: str, *, values: int = 1) -> Follow:
    """Leave out an option that the remedy names."""

    def follow(_scene: Scene, line: Line, remedy: str) -> Line:
        assert flag in remedy
        at = line.index(flag)
        return line[:at] + line[at + 1 + values :]

    return follow


def giving(flag: str) -> Follow:
    """Give what the remedy names last as the value of ``flag``."""

    def follow(_scene: Scene, line: Line, remedy: str) -> Line:
        return put(line, flag, shlex.split(remedy)[-1])

    return follow


def put(line: Line, flag: str, value: str | Path) -> Line:
    """Return ``line`` with another value of ``flag``."""
    at = line.index(flag)
    return [*line[: at + 1], str(value), *line[at + 2 :]]


def another_target(scene: Scene, line: Line, _remedy: str) -> Line:
    return put(line, "--target", scene.root / "another")


def emptied(scene: Scene, line: Line, _remedy: str) -> Line:
    (scene.target / "notes.txt").unlink()
    return line


def cleaned(scene: Scene, line: Line, remedy: str) -> Line:
    """Run ``deltaweights clean``, as the remedy says, and the command again."""
    assert "deltaweights clean" in remedy
    command(["clean", str(scene.target)])
    return line


def restored(name: str) -> Follow:
    """Put back a file of the delta that was moved away, as a download would."""

    def follow(scene: Scene, line: Line, remedy: str) -> Line:
        assert "fetch" in remedy or "download" in remedy
        shutil.move(scene.root / name, scene.delta / name)
        return line

    return follow


# Situations: what is in the target.


def other_model_there(scene: Scene) -> Line:
    save(base_tensors(1, seed=7), scene.target)
    return scene.apply()


def notes_there(scene: Scene) -> Line:
    scene.target.mkdir()
    (scene.target / "notes.txt").write_text("mine")
    return scene.apply()


def damaged_result(scene: Scene) -> Line:
    command(scene.apply())
    (scene.target / "README.md").write_text("changed")
    return scene.apply()


def target_is_base(scene: Scene) -> Line:
    return put(scene.apply(), "--target", scene.base)


# Situations: the inputs.


def base_below(scene: Scene) -> Line:
    (scene.root / "llama").mkdir()
    shutil.move(scene.base, scene.root / "llama" / "7B")
    return put(scene.apply(), "--base", scene.root / "llama")


def archive_in_folder(scene: Scene) -> Line:
    (scene.root / "packed").mkdir()
    with zipfile.ZipFile(scene.root / "packed" / "delta.zip", "w") as archive:
        for path in scene.delta.iterdir():
            archive.write(path, f"delta/{path.name}")
    return put(scene.apply(), "--delta", scene.root / "packed")


def moved_away(*gone: str) -> Callable[[Scene], Line]:
    """Move files of the delta away."""

    def situation(scene: Scene) -> Line:
        for name in gone:
            shutil.move(scene.delta / name, scene.root / name)
        return scene.apply()

    return situation


def two_sets(scene: Scene) -> Line:
    save(load_tensors_of_delta(scene), scene.delta, shards=1)
    return scene.apply()


def load_tensors_of_delta(scene: Scene) -> Tensors:
    return delta_tensors(scene.tensors)


def one_set_dead(scene: Scene) -> Line:
    save(load_tensors_of_delta(scene), scene.delta, shards=1)
    (scene.delta / SHARD).unlink()
    return scene.apply()


def first_named(scene: Scene, line: Line, remedy: str) -> Line:
    """Give the first path that the remedy names."""
    (found, *_) = re.findall(rf"{re.escape(str(scene.root))}[^ ,;]+", remedy)
    return put(line, "--delta", found)


def other_names(scene: Scene) -> Line:
    """Name index and shards in a way that no loader takes by itself."""
    index = (scene.delta / INDEX).read_text().replace("pytorch_model", "mine")
    (scene.delta / "mine.bin.index.json").write_text(index)
    (scene.delta / INDEX).unlink()
    for shard in list(scene.delta.glob("pytorch_model-*")):
        shard.rename(scene.delta / shard.name.replace("pytorch_model", "mine"))
    return scene.apply()


def other_names_cut(scene: Scene) -> Line:
    line = other_names(scene)
    shutil.move(scene.delta / MINE, scene.root / MINE)
    return line


def shard_fetched(scene: Scene, line: Line, remedy: str) -> Line:
    """Fetch the shards that the index names, and give the index."""
    found = re.search(r"that (\S+) names", remedy)
    assert found
    shutil.move(scene.root / MINE, scene.delta / MINE)
    return put(line, "--delta", scene.delta / found[1])


def demo_again(scene: Scene) -> Line:
    (scene.root / "demo").mkdir()
    (scene.root / "demo" / "notes.txt").write_text("mine")
    return ["demo", "--keep", str(scene.root / "demo")]


def new_folder(scene: Scene, line: Line, _remedy: str) -> Line:
    return put(line, "--keep", scene.root / "new")


def bare_weights(scene: Scene) -> Line:
    """Make a model without configuration, for ``check``."""
    save_model(scene.root / "model")
    shutil.move(scene.root / "model" / "config.json", scene.root / "config.json")
    return ["check", str(scene.root / "model")]


def configured(scene: Scene, line: Line, _remedy: str) -> Line:
    shutil.move(scene.root / "config.json", scene.root / "model" / "config.json")
    return line


def damaged_index(scene: Scene) -> Line:
    shutil.copy(scene.delta / INDEX, scene.root / INDEX)
    (scene.delta / INDEX).write_text('{"weight_map": {')
    return scene.apply()


def swapped(scene: Scene) -> Line:
    scene.base, scene.delta = scene.delta, scene.base
    return scene.apply()


def swapped_back(_scene: Scene, line: Line, remedy: str) -> Line:
    words = shlex.split(remedy)
    for flag in ("--base", "--delta"):
        line = put(line, flag, words[words.index(flag) + 1])
    return line


def finished_model(scene: Scene) -> Line:
    norm = {NORM: torch.full_like(scene.tensors[NORM], 0.5)}
    save(scene.tensors | norm, scene.base)
    save(reference(scene.tensors | norm, delta_tensors(scene.tensors)), scene.root / "merged")
    return put(scene.apply(), "--delta", scene.root / "merged")


def delta_itself(scene: Scene, line: Line, remedy: str) -> Line:
    assert "give the delta itself" in remedy
    return put(line, "--delta", scene.delta)


def padded_base(scene: Scene) -> Line:
    """Make a pair of real models, whose base somebody grew by the row of [PAD]."""
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=92, num_hidden_layers=1, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    torch.nn.Module.half(model)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shutil.rmtree(scene.delta)
    save(load_delta(base), scene.delta)
    model.resize_token_embeddings(49)
    shutil.rmtree(scene.base)
    model.save_pretrained(scene.base)
    return scene.apply()


def rows_left_out(scene: Scene, line: Line, remedy: str) -> Line:
    """Do with transformers what the remedy says."""
    found = re.search(r"resize_token_embeddings\((\d+)\)", remedy)
    assert found
    model = LlamaForCausalLM.from_pretrained(scene.base, torch_dtype=torch.float16)
    model.resize_token_embeddings(int(found[1]))
    model.save_pretrained(scene.root / "without")
    return put(line, "--base", scene.root / "without")


def other_base(scene: Scene) -> Line:
    made = scene.make()
    save(base_tensors(1, seed=9), scene.root / "other")
    return put(put(scene.apply(), "--delta", made), "--base", scene.root / "other")


def right_base(scene: Scene, line: Line, remedy: str) -> Line:
    assert "use that base" in remedy
    return put(line, "--base", scene.base)


def marked_manifest(scene: Scene) -> Line:
    made = scene.make() / "manifest.json"
    made.write_bytes(codecs.BOM_UTF8 + made.read_bytes())
    return put(scene.apply(), "--delta", scene.root / "made")


def marked_manifest_elsewhere(scene: Scene) -> Line:
    command(scene.apply())
    (scene.root / "kept.json").write_bytes(codecs.BOM_UTF8 + (scene.target / "manifest.json").read_bytes())
    return ["verify", str(scene.target), "--manifest", str(scene.root / "kept.json")]


def unmarked(name: str) -> Follow:
    """Save a file as UTF-8 without BOM."""

    def follow(scene: Scene, line: Line, _remedy: str) -> Line:
        path = scene.root / name
        path.write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        return line

    return follow


def checked_with_mark(scene: Scene) -> Line:
    save_model(scene.root / "model")
    path = scene.root / "model" / "config.json"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    return ["check", str(scene.root / "model")]


def save_model(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=92, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"\n\x07\n\x05<unk>")


# Situations: options and recipes.


def with_options(*more: str) -> Callable[[Scene], Line]:
    return lambda scene: scene.apply(*more)


def made_in_bfloat16(scene: Scene) -> Line:
    made = scene.make("--compute-dtype", "bfloat16")
    return put(scene.apply("--compute-dtype", "float16"), "--delta", made)


def recipe_in_float32(scene: Scene) -> Line:
    return scene.apply("--recipe", recipe_file(scene.root, "float32"), "--compute-dtype", "float16")


def recipe_as_argument(scene: Scene) -> Line:
    return [*scene.apply(), str(recipe_file(scene.root))]


def as_an_option(_scene: Scene, line: Line, remedy: str) -> Line:
    return [*line[:-1], *shlex.split(remedy)]


def listed_recipes(_scene: Scene, _line: Line, remedy: str) -> Line:
    (found,) = re.findall("`deltaweights ([a-z ]+)`", remedy)
    return [*found.split()]


def no_base(scene: Scene) -> Line:
    line = scene.apply()
    return [line[0], *line[3:]]


def base_given(scene: Scene, line: Line, remedy: str) -> Line:
    assert "give it" in remedy
    return [*line, "--base", str(scene.base)]


def size_in_gigabytes(_scene: Scene, line: Line, remedy: str) -> Line:
    return put(line, "--max-shard-size", remedy.split()[1])


def nan_weights(scene: Scene) -> Line:
    delta = delta_tensors(scene.tensors)
    delta["model.mm_projector.bias"][0] = torch.nan
    save(delta, scene.delta)
    return scene.apply("--strict")


def cleaned_and_mended(scene: Scene, line: Line, remedy: str) -> Line:
    save(delta_tensors(scene.tensors), scene.delta)
    return cleaned(scene, line, remedy)


# Situations: parts.


def finish_without_parts(scene: Scene) -> Line:
    return ["finish", "--target", str(scene.target)]


def one_part_run(scene: Scene) -> Line:
    command(scene.apply("--part", "1/2", "--max-shard-size", "20KB"))
    return ["finish", "--target", str(scene.target)]


def all_parts(count: int, *more: str) -> Follow:
    """Run the parts, then the command again."""

    def follow(scene: Scene, line: Line, remedy: str) -> Line:
        assert "run the" in remedy
        for part in range(1, count + 1):
            command(scene.apply("--part", f"{part}/{count}", *more))
        return line

    return follow


def another_plan(scene: Scene) -> Line:
    command(scene.apply("--part", "1/2", "--max-shard-size", "20KB"))
    return scene.apply("--part", "2/2", "--max-shard-size", "30KB")


def options_of_the_others(_scene: Scene, line: Line, remedy: str) -> Line:
    assert "use the inputs and options of the other parts" in remedy
    return put(line, "--max-shard-size", "20KB")


def strict_finish(scene: Scene, line: Line, remedy: str) -> Line:
    assert "deltaweights finish" in remedy
    command([word for word in line if word != "--strict"])
    return ["finish", "--target", str(scene.target), "--strict"]


BIN = ("--layout", "transformers", "--format", "bin")

CASES: dict[str, Case] = {
    "another model in the target: overwrite": Case(
        other_model_there, "E-TARGET-NOT-EMPTY", "replace it with --overwrite", adding("--overwrite")
    ),
    "another model in the target: elsewhere": Case(
        other_model_there, "E-TARGET-NOT-EMPTY", "choose another", another_target
    ),
    "notes in the target: empty it": Case(notes_there, "E-TARGET-NOT-EMPTY", "empty it", emptied),
    "notes in the target: elsewhere": Case(notes_there, "E-TARGET-NOT-EMPTY", "choose another", another_target),
    "a damaged result": Case(damaged_result, "E-TARGET-DAMAGED", "--overwrite", adding("--overwrite")),
    "the target is an input": Case(target_is_base, "E-TARGET-IS-INPUT", "choose another output folder", another_target),
    "weights in a folder below": Case(base_below, "E-NO-WEIGHTS", "give ", giving("--base")),
    "an archive in a folder": Case(archive_in_folder, "E-NO-WEIGHTS", "give the archive itself", giving("--delta")),
    "an index is missing": Case(moved_away(INDEX), "E-NO-WEIGHTS", f"fetch {INDEX}", restored(INDEX)),
    "a shard is missing": Case(moved_away(SHARD), "E-INCOMPLETE", "finish the download", restored(SHARD)),
    "index and shard are missing: the index alone": Case(
        moved_away(INDEX, SHARD), "E-NO-WEIGHTS", "and the other shards", restored(INDEX), "E-INCOMPLETE"
    ),
    "a damaged index": Case(damaged_index, "E-MALFORMED", "fetch it again", restored(INDEX)),
    "two sets of weights": Case(two_sets, "E-SEVERAL-WEIGHTS", "give the one you mean", first_named),
    "two sets, one of them dead": Case(one_set_dead, "E-SEVERAL-WEIGHTS", "give the complete one", first_named),
    "index and shards of other names": Case(other_names, "E-NO-WEIGHTS", "give ", giving("--delta")),
    "an index of another name, without a shard": Case(
        other_names_cut, "E-NO-WEIGHTS", "fetch the other shards that", shard_fetched
    ),
    "something in the demo's folder": Case(demo_again, "E-TARGET", "name a new folder", new_folder),
    "no configuration": Case(bare_weights, "E-INPUT-OUTPUT", "has one", configured),
    "swapped": Case(swapped, "E-SWAPPED", "give --base", swapped_back),
    "a finished model: the delta": Case(finished_model, "E-ALREADY-MERGED", "give the delta itself", delta_itself),
    "a finished model: allowed": Case(
        finished_model, "E-ALREADY-MERGED", "lets it pass", adding("--allow-unproved-base")
    ),
    "a row of [PAD]": Case(padded_base, "E-OTHER-TENSORS", "leave them out", rows_left_out),
    "another base than the delta states": Case(other_base, "E-WRONG-BASE", "use that base", right_base),
    "another base, allowed": Case(other_base, "E-WRONG-BASE", "lets it pass", adding("--allow-unproved-base")),
    "a marked manifest of an input": Case(
        marked_manifest, "E-MALFORMED", "save it as UTF-8 without BOM", unmarked("made/manifest.json")
    ),
    "a marked manifest that is kept elsewhere": Case(
        marked_manifest_elsewhere, "E-MALFORMED", "save it as UTF-8 without BOM", unmarked("kept.json")
    ),
    "a marked config that transformers would refuse": Case(
        checked_with_mark, "E-MALFORMED", "save it as UTF-8 without BOM", unmarked("model/config.json")
    ),
    "another dtype than the delta's": Case(
        made_in_bfloat16, "E-OTHER-DTYPE", "leave --compute-dtype out", without("--compute-dtype")
    ),
    "another dtype than the recipe's": Case(
        recipe_in_float32,
        "E-OTHER-DTYPE",
        "leave --compute-dtype out",
        without("--compute-dtype"),
        "E-BASE-NOT-PROVED",  # for the recipe is wrong
    ),
    "a recipe's file as an argument": Case(recipe_as_argument, "E-USAGE", "--recipe ", as_an_option),
    "no recipe of this name": Case(
        with_options("--recipe", "vicunia"), "E-UNKNOWN-RECIPE", "`deltaweights recipes`", listed_recipes
    ),
    "no base": Case(no_base, "E-NO-INPUT-GIVEN", "give it", base_given),
    "a size without a unit": Case(
        with_options("--max-shard-size", "5"), "E-NOT-A-SIZE", "write 5GB", size_in_gigabytes
    ),
    "NaN with --strict: without": Case(nan_weights, "E-WEIGHTS-SUSPECT", "--strict", without("--strict", values=0)),
    "NaN with --strict: clean": Case(nan_weights, "E-WEIGHTS-SUSPECT", "deltaweights clean", cleaned_and_mended),
    "torch files in layout transformers": Case(
        with_options(*BIN), "E-USAGE", "leave --format out", without("--format"), "E-USAGE"
    ),
    "a vision tower in the original layout": Case(
        with_options("--vision-tower", "tower"), "E-USAGE", "leave --vision-tower out", without("--vision-tower")
    ),
    "unverified inputs": Case(
        with_options("--require-verified"), "E-INPUTS-UNVERIFIED", "--hash-inputs", adding("--hash-inputs")
    ),
    "finish before the parts": Case(finish_without_parts, "E-NO-PARTS", "run the parts first", all_parts(1)),
    "a part is missing": Case(
        one_part_run, "E-PARTS-MISSING", "run the missing parts again", all_parts(2, "--max-shard-size", "20KB")
    ),
    "parts of two plans: the options": Case(
        another_plan, "E-TARGET-IN-USE", "use the inputs and options", options_of_the_others
    ),
    "parts of two plans: clean": Case(another_plan, "E-TARGET-IN-USE", "deltaweights clean", cleaned),
    "a part with --strict": Case(
        with_options("--part", "1/1", "--strict"), "E-USAGE", "give them to deltaweights finish", strict_finish
    ),
}


@pytest.mark.sampled(15)
@pytest.mark.parametrize("name", CASES)
def test_the_remedy_works(tmp_path: Path, name: str) -> None:
    """The remedy is what the table says; followed, the command succeeds, or fails with the next right error."""
    try_remedy(CASES[name], Scene(tmp_path))


def try_remedy(case: Case, scene: Scene) -> None:
    """Make the situation of a case, and follow the remedy."""
    line = case.situation(scene)
    with pytest.raises(DeltaweightsError) as info:
        command(line)
    assert str(info.value.code) == case.code, info.value
    remedy = str(info.value.remedy)
    assert case.says in remedy, info.value
    line = case.follow(scene, line, remedy)
    if case.then is None:
        command(line)
    else:
        with pytest.raises(DeltaweightsError) as info:
            command(line)
        assert str(info.value.code) == case.then, info.value


# What is better read than refused, and what is not a command.


def marked(path: Path) -> Path:
    """Put a byte-order mark before a file, as Windows' Notepad did."""
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    return path


@pytest.mark.sampled(2)
@pytest.mark.parametrize("role", ["base", "delta"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", INDEX])
def test_a_byte_order_mark_is_harmless(tmp_path: Path, name: str, role: str) -> None:
    """Other people's JSON is read with a mark, and copied without: transformers would refuse it."""
    scene = Scene(tmp_path)
    command(scene.apply())
    plain, scene.target = scene.target, tmp_path / "again"
    marked(tmp_path / role / name)
    command(scene.apply())
    for file in plain.iterdir():
        if file.name.endswith((".safetensors", "config.json")):
            assert (scene.target / file.name).read_bytes() == file.read_bytes(), file.name
    config = json.loads((scene.target / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llava"


def test_a_marked_configuration_is_converted_for_transformers(tmp_path: Path) -> None:
    """What ``convert`` writes of a model whose configuration has a mark is loaded by transformers, which refuses the input."""
    save_model(tmp_path / "model")
    marked(tmp_path / "model" / "config.json")
    with pytest.raises(OSError, match="valid JSON"):
        AutoConfig.from_pretrained(tmp_path / "model")
    command(["convert", "--base", str(tmp_path / "model"), "--target", str(tmp_path / "out")])
    assert AutoConfig.from_pretrained(tmp_path / "out").vocab_size == 48


@pytest.mark.parametrize("code", [None, "Forbidden"])
def test_no_token_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str | None) -> None:
    """Without a token, none is blamed; with one, it is."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    url = f"{configured_access(cache=tmp_path).endpoint}/acme/model"
    answer = SimpleNamespace(status_code=403, url=url, headers={} if code is None else {"x-error-code": code})
    access = configured_access(cache=tmp_path)
    error = access.refusal(answer, HubId("acme/model"))
    assert (error.problem, str(error.code)) == ("access is refused (403)", "E-NO-ACCESS")
    assert "token" not in str(error.remedy)
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", "hf_one")
    error = configured_access(cache=tmp_path).refusal(answer, HubId("acme/model"))
    assert (error.problem, error.remedy) == ("the token does not give access", "check the token's permissions")


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    "form", ["{}", "hf://{}", "{}@main", "https://huggingface.co/{}", "https://huggingface.co/{}/tree/main"]
)
def test_an_id_names_its_recipe(name: str, form: str) -> None:
    """Each id or address of a delta that has a recipe is as good as the name of that recipe."""
    repo = load(name).delta.repo
    if repo is None:
        pytest.skip("no repository of this delta is known")
    first = next(each for each in names() if load(each).delta.repo == repo)
    assert load(form.format(repo)) == load(first)
