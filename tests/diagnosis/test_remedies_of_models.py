"""Remedies about models that run: towers, tokenizers, images and layouts. Each is followed, and then the same call works."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deltaweights.errors import DeltaweightsError
from deltaweights.inference import rendering
from deltaweights.inference.answer import answer
from deltaweights.inference.memory import FreeMemory
from deltaweights.inference.structure import check_structure
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.convert import convert_checkpoint, export_checkpoint
from tests.support.fork_server import run_python_in_fork
from tests.support.llava_2023 import RECIPE, Published, make_tower, publish
from tests.support.pairs import load, save
from tests.support.tiny_llava import make_images, make_llama, make_llava

pytestmark = pytest.mark.diagnosis

Run = Callable[..., subprocess.CompletedProcess[str]]

PLENTY = FreeMemory(10**12)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Make a tiny LLaVA-Med as it was published; not to be changed."""
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def published(original: Published, tmp_path: Path) -> Published:
    """Return a copy, to be changed."""
    base, delta, tower = (
        Path(shutil.copytree(folder, tmp_path / folder.name))
        for folder in (original.base, original.delta, original.tower)
    )
    return replace(original, base=base, delta=delta, tower=tower)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a LLaVA in the layout of transformers."""
    return make_llava(tmp_path_factory.mktemp("llava") / "llava")


@pytest.fixture(autouse=True)
def _forked_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "run_python", run_python_in_fork)


def remedy_of(call: Callable[[], object]) -> str:
    """Return the remedy of the error that ends a call."""
    with pytest.raises(DeltaweightsError) as caught:
        call()
    return caught.value.remedy or ""


def merge(published: Published, target: Path, **options: Any) -> Any:
    """Merge in the layout of transformers."""
    return apply_delta(
        published.base, published.delta, target, layout="transformers", allow_unproved_base=True, **options
    )


def ask(folder: Path, **options: Any) -> str:
    """Return the beginning of a model's answer."""
    return answer(folder, "What?", max_new_tokens=1, device="cpu", memory=PLENTY, **options).text


# Vision towers.


def test_no_tower_is_known(published: Published, tmp_path: Path) -> None:
    """The tower that is asked for is given."""
    says = "give --vision-tower, for LLaVA and LLaVA-Med openai/clip-vit-large-patch14"
    assert remedy_of(lambda: merge(published, tmp_path / "out")) == says
    merge(published, tmp_path / "out", vision_tower=published.tower)


def test_the_weights_of_a_tower_alone(published: Published, tmp_path: Path) -> None:
    """The folder that has the configuration, too, is given."""
    (tmp_path / "alone").mkdir()
    shutil.copy(published.tower / "model.safetensors", tmp_path / "alone")
    says = remedy_of(lambda: merge(published, tmp_path / "out", vision_tower=tmp_path / "alone"))
    assert says == "give the folder of config.json and the weights"
    merge(published, tmp_path / "out", vision_tower=published.tower)


def test_a_tower_that_is_another_than_it_says(published: Published, tmp_path: Path) -> None:
    """A CLIP checkpoint that is whole is given."""
    broken = Path(shutil.copytree(published.tower, tmp_path / "broken"))
    tensors = load(broken)
    del tensors["vision_model.post_layernorm.weight"]
    shutil.rmtree(broken)
    save(tensors, broken, "safetensors", 1, config=False)
    shutil.copy(published.tower / "config.json", broken)
    says = remedy_of(lambda: merge(published, tmp_path / "out", vision_tower=broken))
    assert says == "give a CLIP checkpoint, such as openai/clip-vit-large-patch14"
    merge(published, tmp_path / "out", vision_tower=published.tower)


def test_the_tower_of_another_model(published: Published, tmp_path: Path) -> None:
    """The one of this width is given, or the original layout is kept, as the remedy says."""
    other = make_tower(tmp_path / "other", hidden_size=32)
    says = remedy_of(lambda: merge(published, tmp_path / "out", vision_tower=other))
    keep = "keep it in the original layout, which apply writes without --layout"
    assert says == f"{keep}, or give the --vision-tower that belongs to it"
    apply_delta(published.base, published.delta, tmp_path / "original", allow_unproved_base=True)
    merge(published, tmp_path / "out", vision_tower=published.tower)


def test_a_tower_of_too_few_layers(published: Published, tmp_path: Path) -> None:
    """A tower that has the layer is given."""
    edit_json(published.delta / "config.json", mm_vision_select_layer=-4)
    shallow = make_tower(tmp_path / "shallow", num_hidden_layers=2)
    says = remedy_of(lambda: merge(published, tmp_path / "out", vision_tower=shallow))
    assert says == "give the --vision-tower that belongs to it"
    merge(published, tmp_path / "out", vision_tower=published.tower)


def test_a_tower_without_a_repository(published: Published, tmp_path: Path) -> None:
    """A recipe of one's own names a model that is nowhere to be fetched: the tower is given, and the merge warns of it."""
    recipe = tmp_path / "own.toml"
    recipe.write_text(RECIPE.replace("clip-vit-l-14", "llama-1-30b"))
    assert "llama-1-30b" in recipe.read_text()
    says = remedy_of(lambda: merge(published, tmp_path / "out", recipe_file=recipe))
    assert says == "give --vision-tower"
    merge(published, tmp_path / "out", recipe_file=recipe, vision_tower=published.tower)


# Tokenizers.


def test_no_added_tokens(published: Published, tmp_path: Path) -> None:
    """The file that the delta was published with is put back."""
    added = published.delta / "added_tokens.json"
    data = added.read_bytes()
    added.unlink()
    says = remedy_of(lambda: merge(published, tmp_path / "out", vision_tower=published.tower))
    assert says == "add added_tokens.json, or name the recipe: deltaweights recipes"
    added.write_bytes(data)
    merge(published, tmp_path / "out", vision_tower=published.tower)


def test_an_id_without_a_token(published: Published, tmp_path: Path) -> None:
    """The token is named in the file again."""
    added = published.delta / "added_tokens.json"
    whole = added.read_text()
    tokens = json.loads(whole)
    del tokens[min(tokens, key=lambda token: int(tokens[token]))]
    added.write_text(json.dumps(tokens))
    says = remedy_of(lambda: merge(published, tmp_path / "out", vision_tower=published.tower))
    assert says == "name it in added_tokens.json, or name the recipe: deltaweights recipes"
    added.write_text(whole)
    merge(published, tmp_path / "out", vision_tower=published.tower)


# Layouts.


def test_a_model_in_the_layout_already(published: Published, tmp_path: Path) -> None:
    """It is used as it is; the merge in the original layout is exported."""
    merge(published, tmp_path / "new", vision_tower=published.tower)
    tower: dict[str, Any] = {"vision_tower": published.tower, "allow_unproved_base": True}
    says = remedy_of(lambda: export_checkpoint(tmp_path / "new", tmp_path / "out", **tower))
    assert says == "use it as it is, or give the merge in the original layout"
    assert check_structure(tmp_path / "new").problems == ()
    apply_delta(published.base, published.delta, tmp_path / "old", allow_unproved_base=True)
    export_checkpoint(tmp_path / "old", tmp_path / "out", **tower)


def test_the_original_layout_is_exported(published: Published, tmp_path: Path) -> None:
    """What ``try`` cannot run, and ``check`` says that no library loads, runs once it is exported."""
    old = tmp_path / "old"
    apply_delta(published.base, published.delta, old, allow_unproved_base=True)
    assert remedy_of(lambda: ask(old)) == f"deltaweights export {old} --target NEW writes a folder that they can"
    (note,) = (note for note in check_structure(old).notes if "current transformers does not load this layout" in note)
    assert "deltaweights apply --layout transformers, or deltaweights export, writes a folder that it loads" in note
    export_checkpoint(old, tmp_path / "new", vision_tower=published.tower, allow_unproved_base=True)
    assert check_structure(tmp_path / "new").loads_in == "transformers"
    ask(tmp_path / "new")


def test_weights_in_pickles_are_converted(tmp_path: Path) -> None:
    """Pickles, which are not loaded, become safetensors."""
    llama = make_llama(tmp_path / "llama")
    tensors = load(llama)
    (llama / "model.safetensors").unlink()
    save(tensors, tmp_path / "pickled", "torch", 1, config=False)
    for path in (tmp_path / "pickled").iterdir():
        shutil.move(path, llama)
    says = remedy_of(lambda: ask(llama))
    assert says == f"deltaweights convert --base {llama} --target NEW writes safetensors"
    convert_checkpoint(llama, tmp_path / "new")
    ask(tmp_path / "new")


def test_a_model_that_lacks_tensors(tmp_path: Path) -> None:
    """``check`` names the one that is missing, as the remedy says."""
    llama = make_llama(tmp_path / "llama")
    tensors = load(llama)
    del tensors["model.norm.weight"]
    save(tensors, tmp_path / "lacking", "safetensors", 1, config=False)
    shutil.copy(tmp_path / "lacking" / "model.safetensors", llama)
    assert remedy_of(lambda: ask(llama)) == f"run deltaweights check {llama} for the rest"
    assert any(problem.tensor == "model.norm.weight" for problem in check_structure(llama).problems)


def test_what_no_library_loads_is_made_again(published: Published, tmp_path: Path, run: Run) -> None:
    """A merge that lost a tensor is exported again, as the remedy of ``check`` says, and then loads."""
    apply_delta(published.base, published.delta, tmp_path / "old", allow_unproved_base=True)
    tower: dict[str, Any] = {"vision_tower": published.tower, "allow_unproved_base": True}
    export_checkpoint(tmp_path / "old", tmp_path / "new", **tower)
    tensors = load(tmp_path / "new")
    del tensors[min(tensors)]
    for path in (tmp_path / "new").glob("*.safetensors*"):
        path.unlink()
    save(tensors, tmp_path / "lacking", "safetensors", 1, config=False)
    shutil.copy(tmp_path / "lacking" / "model.safetensors", tmp_path / "new")
    done = run("check", tmp_path / "new")
    assert done.returncode == 6
    again = "make a merge again with deltaweights export, or with apply --layout transformers; "
    assert f"{again}fetch or save another model again" in done.stderr
    export_checkpoint(tmp_path / "old", tmp_path / "again", **tower)
    merge(published, tmp_path / "merged", vision_tower=published.tower)
    for folder in ("again", "merged"):
        assert run("check", tmp_path / folder).returncode == 0


def test_a_model_that_transformers_cannot_run(tmp_path: Path, run: Run) -> None:
    """``check`` says what is wrong with it, as the remedy says."""
    llama = make_llama(tmp_path / "llama")
    edit_json(llama / "config.json", hidden_act="nonesuch")
    says = remedy_of(lambda: ask(llama))
    assert says == f"run deltaweights check {llama}, which may tell why"
    done = run("check", llama)
    assert done.returncode == 6
    assert "nonesuch" in done.stdout + done.stderr


# Images.


def test_images_that_are_none(llava: Path, tmp_path: Path) -> None:
    """The image itself is given, converted, or made smaller; then it is answered about."""
    picture, _ = make_images(tmp_path)
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    folder, pixmap, wide = tmp_path / "folder", tmp_path / "image.xbm", tmp_path / "wide.png"
    folder.mkdir()
    image.convert("1").save(pixmap)
    Image.new("RGB", (100_000, 1)).save(wide)
    for given, says in ((folder, "give the image itself"), (pixmap, "convert it"), (wide, "make it smaller")):
        assert remedy_of(lambda given=given: ask(llava, images=[given])) == says  # type: ignore[misc]
    with Image.open(pixmap) as opened:
        opened.convert("RGB").save(tmp_path / "converted.png")
    with Image.open(wide) as opened:
        opened.resize((100, 100)).save(tmp_path / "smaller.png")
    for name in ("converted.png", "smaller.png"):
        ask(llava, images=[tmp_path / name])
    ask(llava, images=[picture])


def test_an_image_for_a_model_that_takes_none(tmp_path: Path) -> None:
    """The question is asked without it."""
    picture, _ = make_images(tmp_path)
    llama = make_llama(tmp_path / "llama")
    assert remedy_of(lambda: ask(llama, images=[picture])) == "omit --image"
    ask(llama)


def test_more_images_than_the_original_takes(published: Published, tmp_path: Path) -> None:
    """The question is changed to one about a single image."""
    pictures = make_images(tmp_path)
    recipe = tmp_path / "own.toml"
    recipe.write_text(RECIPE)
    merge(published, tmp_path / "out", vision_tower=published.tower, recipe_file=recipe)
    says = remedy_of(lambda: ask(tmp_path / "out", images=list(pictures)))
    assert says == "change the question, --image or --conversation"
    ask(tmp_path / "out", images=[pictures[0]])


def edit_json(path: Path, **values: Any) -> None:
    """Change values of a JSON document."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
