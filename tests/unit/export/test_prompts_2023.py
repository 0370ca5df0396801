"""The prompts of LLaVA-Med v1.0.0, as its own code wrote and tokenized them, against those of an export.

tests/fixtures/prompts-2023.json has what the evaluation code of v1.0.0 and LlamaTokenizer of transformers 4.28.1 gave for 60
questions; scripts/original repeats that where both are installed. The 256 ``<im_patch>`` of an image stand there once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from transformers import CLIPImageProcessor, LlavaProcessor

from deltaweights.errors import UsageError
from deltaweights.export.conversation import IMAGE, chat_template
from deltaweights.export.tokenizer import repair_tokenizer
from deltaweights.inference.prompts import make_prompt
from deltaweights.recipes import catalogue
from tests.support.errors import refused
from tests.support.tokenizers_2023 import NEW, SMALL, original_ids, processor, published, trained

DATA = json.loads((Path(__file__).parents[2] / "fixtures" / "prompts-2023.json").read_text(encoding="utf-8"))

PATCHES = 256

PROMPTS: list[dict[str, Any]] = [
    entry
    | {
        "prompt": DATA["openings"][entry["conversation"]]["text"] + entry["prompt"],
        "ids": DATA["openings"][entry["conversation"]]["ids"] + entry["ids"],
    }
    for entry in DATA["prompts"]
]

NAMES = [f"{entry['conversation']}-{'image' if entry['image'] else 'text'}-{entry['question']!r}" for entry in PROMPTS]

pytestmark = pytest.mark.fidelity


def seeing(folder: Path, model: bytes) -> Any:
    """Return the processor of an export with ``model`` as its tokenizer.model."""
    rows = processor(model).get_piece_size() + len(NEW)
    template = chat_template("llava-med")
    result = repair_tokenizer(published(model), rows, where=folder, chat_template=template, stop_strings=["###"])
    for name, data in result.files.items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    loader: Any = transformers.AutoTokenizer
    images = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    maker: Any = LlavaProcessor
    return maker(
        images,
        loader.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the processor for ``SMALL``, whose ids do not depend on a version of sentencepiece."""
    return seeing(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the processor for a tokenizer that sentencepiece trains here."""
    return seeing(tmp_path_factory.mktemp("trained"), trained())


def rendered(tool: Any, entry: dict[str, Any]) -> str:
    """Return the prompt that the chat template makes of a question."""
    content = [*([{"type": "image"}] if entry["image"] else []), {"type": "text", "text": entry["question"]}]
    return str(tool.apply_chat_template([{"role": "user", "content": content}], conv_mode=entry["conversation"]))


def ids_of(tool: Any, text: str, image: bool) -> list[int]:
    """Return the ids that a model gets for a prompt; without an image they are the tokenizer's."""
    made = tool(text=[text], images=[picture()]) if image else tool.tokenizer(text=[text])
    return list(made["input_ids"][0])


def picture() -> Image.Image:
    """Return an image."""
    return Image.new("RGB", (30, 20))


def collapsed(ids: list[int], image: bool, patch: int) -> list[int]:
    """Return ``ids`` with the patches of an image once."""
    if not image:
        return ids
    at = ids.index(patch)
    assert ids[at : at + PATCHES] == [patch] * PATCHES
    return ids[: at + 1] + ids[at + PATCHES :]


def test_there_are_sixty() -> None:
    """The fixture holds both conversations, with and without an image, and no question twice."""
    assert len(PROMPTS) == len(set(NAMES)) == 60
    kinds = {(entry["conversation"], entry["image"]) for entry in PROMPTS}
    assert kinds == {(form, image) for form in ("simple", "multimodal") for image in (False, True)}


@pytest.mark.parametrize("entry", PROMPTS, ids=NAMES)
def test_a_prompt_is_the_original_s(small: Any, entry: dict[str, Any]) -> None:
    """Text and ids, the first one included, are those of v1.0.0."""
    text = rendered(small, entry)
    assert text == entry["prompt"]
    patch = small.tokenizer.convert_tokens_to_ids(IMAGE)
    assert collapsed(ids_of(small, text, entry["image"]), entry["image"], patch) == entry["ids"]
    assert entry["ids"][0] == small.tokenizer.bos_token_id == 2


@pytest.mark.parametrize("entry", PROMPTS, ids=NAMES)
def test_with_a_trained_tokenizer(learned: Any, entry: dict[str, Any]) -> None:
    """With pieces that sentencepiece learned, the ids are those that it gives stretch by stretch, behind ``</s>``."""
    text = entry["prompt"].replace(f"<im_start>{IMAGE}", f"<im_start>{IMAGE * PATCHES}" if entry["image"] else "")
    text = text if entry["image"] else entry["prompt"]
    assert ids_of(learned, rendered(learned, entry), entry["image"]) == [2, *original_ids(trained(), text)]


@pytest.mark.parametrize("entry", PROMPTS, ids=NAMES)
def test_the_rule_gives_these_ids(entry: dict[str, Any]) -> None:
    """The rule by which the other tests tokenize is the original's."""
    assert [2, *original_ids(SMALL, entry["prompt"])] == entry["ids"]


@pytest.mark.slow
def test_a_question_to_try_is_one_of_them(small: Any, tmp_path: Path) -> None:
    """``try`` asks with the same ids, an ``<im_patch>`` in a text without an image included."""
    for entry in PROMPTS:
        if entry["image"] or "im_patch" not in entry["question"]:
            continue
        prompt = make_prompt(small, entry["question"], [], entry["conversation"], tmp_path, vision=True)
        assert prompt.inputs["input_ids"][0].tolist() == entry["ids"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("question", "images", "found"),
    [
        (
            "Are these the same?",
            2,
            "a prompt with 2 images, of which the model's own code used only the last: ask about one image at a time",
        ),
        ("a <im_patch> b", 1, "the text has <im_patch>, which stands for an image here: take it out"),
        ("<im_end>", 1, "the text has <im_end>, which stands for an image here: take it out"),
    ],
)
@pytest.mark.parametrize("conversation", [None, "simple"])
def test_what_the_original_would_not_use_is_refused(
    small: Any, tmp_path: Path, question: str, images: int, found: str, conversation: str | None
) -> None:
    """A second image, which v1.0.0 does not look at, and an image's token in a question about one, are refused in one line."""
    with refused(UsageError, where=tmp_path, found=found, remedy="change the question, --image or --conversation"):
        make_prompt(small, question, [picture()] * images, conversation, tmp_path, vision=True)


def test_every_recipe_says_what_begins_a_text(tmp_path: Path) -> None:
    """LLaVA-Med's says ``</s>``, the others ``<s>``; a file laid over one says otherwise and leaves its other keys."""
    stated = {name: catalogue.load(name).bos_token for name in catalogue.names()}
    assert stated == {name: "</s>" if name.startswith("llava-med") else "<s>" for name in stated}
    own = tmp_path / "own.toml"
    head = 'format = "deltaweights-recipe"\nversion = 1\n'
    own.write_text(f'{head}extends = "llava-med-7b"\n[transformers]\nbos_token = "<s>"\n')
    recipe, known = catalogue.load_file(own), catalogue.load("llava-med-7b")
    assert recipe == replace(known, bos_token="<s>")  # noqa: S106  (no password)
    assert recipe.digest == known.digest
