"""``answer`` is what transformers itself answers, wherever the weights are; folders that cannot run are refused."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from deltaweights.errors import CheckFailed, DeltaweightsError, InputOutputError, MalformedInput, Mismatch, UsageError
from deltaweights.inference.answer import answer, without_tf32
from deltaweights.inference.memory import (
    WORKSPACE,
    FreeMemory,
)
from deltaweights.inference.prompts import GREETING, QUESTION
from deltaweights.inference.transformers_loader import quiet_and_offline
from tests.support.errors import refused
from tests.support.reports import RecordingReport
from tests.support.tiny_llava import (
    SAYS,
    edit,
    edit_tensors,
    make_images,
    make_llama,
    make_llava,
    make_original,
)

PLENTY = FreeMemory(10**12)


LITTLE = WORKSPACE + 250_000
"""Too little for the tiny LLaVA, and enough with half of it on the disk."""


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a LLaVA that says ``SAYS``."""
    return make_llava(tmp_path_factory.mktemp("says") / "llava", answer=SAYS)


@pytest.fixture(scope="session")
def random_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a LLaVA of random weights, whose answer depends on all that it is given."""
    return make_llava(tmp_path_factory.mktemp("random") / "llava")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a plain LLaMA that says ``SAYS``."""
    return make_llama(tmp_path_factory.mktemp("plain") / "llama", SAYS)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make two images."""
    return make_images(tmp_path_factory.mktemp("images"))


def by_hand(folder: Path, prompt: str, images: tuple[Path, ...], tokens: int) -> str:
    """Return the greedy answer as a notebook would get it, without anything of ours."""
    model_of: Any = AutoModelForImageTextToText
    processor_of: Any = AutoProcessor
    with quiet_and_offline():
        model, processor = model_of.from_pretrained(folder), processor_of.from_pretrained(folder)
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        opened = [Image.open(path).convert("RGB") for path in images]
        inputs = processor(images=opened or None, text=text, return_tensors="pt")
        given = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = given[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(new, skip_special_tokens=True).split("###")[0].strip())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_answer_is_the_librarys(count: int, random_llava: Path, pictures: tuple[Path, Path]) -> None:
    """With no, one and two images the answer of random weights is what transformers gives by hand, token for token."""
    images = pictures[:count]
    given = answer(random_llava, "What?", images, max_new_tokens=12, memory=PLENTY)
    assert given.text == by_hand(random_llava, "What?", images, 12)
    assert given.text
    assert given.tokens <= 12
    assert (given.model_class, given.placement) == ("LlavaForConditionalGeneration", "cpu")


@pytest.mark.slow
def test_images_and_their_order_matter(random_llava: Path, pictures: tuple[Path, Path]) -> None:
    """The images that are given are those that are looked at: other ones, or the same in another order, change the answer."""
    asked = ((), pictures[:1], pictures[1:], pictures, pictures[::-1])
    answers = [answer(random_llava, "What?", images, max_new_tokens=12, memory=PLENTY).text for images in asked]
    assert len(set(answers)) >= 4  # tiny random weights may agree once


def test_an_answer_ends_before_its_stop_string(llava: Path, pictures: tuple[Path, Path]) -> None:
    """The model stops once it has said the stop string, which is no part of the answer; those of the prompt do not count."""
    given = answer(llava, images=pictures[:1], memory=PLENTY)
    assert (given.text, given.tokens) == ("AB", 5)
    assert given.seconds > 0
    assert given.tokens_per_second == pytest.approx(5 / given.seconds)


def test_without_stop_strings_it_goes_on(llava: Path, tmp_path: Path) -> None:
    """What is to be cut is the tokenizer's configuration's to say; without it the answer has all tokens that were asked for."""
    folder = Path(shutil.copytree(llava, tmp_path / "llava"))
    edit(folder / "tokenizer_config.json", lambda config: config.pop("stop_strings"))
    given = answer(folder, max_new_tokens=8, memory=PLENTY)
    assert (given.text, given.tokens) == ("AB######", 8)


def test_a_plain_llama_answers(llama: Path) -> None:
    """A model without eyes answers a question, through its template."""
    given = answer(llama, memory=PLENTY)
    assert (given.text, given.model_class) == ("AB", "LlamaForCausalLM")


def test_a_plain_llama_without_a_template_gets_the_bare_prompt(tmp_path: Path) -> None:
    """Where there is no template, the prompt is what was typed, after the token that begins a text."""
    folder = make_llama(tmp_path / "llama")
    (folder / "chat_template.jinja").unlink()
    model_of: Any = AutoModelForCausalLM
    tokenizer_of: Any = AutoTokenizer
    with quiet_and_offline():
        model, tokenizer = model_of.from_pretrained(folder), tokenizer_of.from_pretrained(folder)
        inputs = tokenizer("What is", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        assert inputs["input_ids"][0, 0] == 1
        new = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected = tokenizer.decode(new, skip_special_tokens=True).strip()
    assert answer(folder, "What is", max_new_tokens=8, memory=PLENTY).text == expected


@pytest.mark.parametrize("name", ["images", "text"])
def test_there_is_a_question_when_none_is_asked(name: str, random_llava: Path, pictures: tuple[Path, Path]) -> None:
    """Without a prompt the model is asked what an image shows, or greeted."""
    images, question = (pictures[:1], QUESTION) if name == "images" else ((), GREETING)
    asked = answer(random_llava, question, images, max_new_tokens=6, memory=PLENTY)
    assert answer(random_llava, None, images, max_new_tokens=6, memory=PLENTY).text == asked.text


def test_a_conversation_is_the_templates(random_llava: Path, llama: Path, tmp_path: Path) -> None:
    """The template gets the name of the form, and what it does not know is the user's mistake, in the template's words."""
    simple, short = (
        answer(random_llava, "What?", conversation=name, max_new_tokens=8, memory=PLENTY).text
        for name in ("simple", "short")
    )
    assert simple == answer(random_llava, "What?", max_new_tokens=8, memory=PLENTY).text != short
    with refused(UsageError, where=random_llava, found="no conversation none"):
        answer(random_llava, conversation="none", memory=PLENTY)
    folder = Path(shutil.copytree(llama, tmp_path / "llama"))
    (folder / "chat_template.jinja").unlink()
    with refused(UsageError, where=folder, found="short"):
        answer(folder, conversation="short", memory=PLENTY)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_it_runs_in_every_dtype(dtype: str, llava: Path, pictures: tuple[Path, Path]) -> None:
    """Weights, and images with them, are cast to the dtype that is asked for."""
    heard = RecordingReport()
    given = answer(llava, images=pictures[:1], dtype=dtype, memory=PLENTY, report=heard)
    assert given.text == "AB"
    assert heard.notes == [f"loading {300 if dtype == 'float32' else 150} kB of weights as {dtype}"]


def test_it_runs_in_the_dtype_of_the_weights(tmp_path: Path) -> None:
    """What config.json states is not what decides: the weights are used as they are stored."""
    folder = make_llava(tmp_path / "llava", torch.bfloat16, SAYS)
    edit(folder / "config.json", lambda config: config.update(dtype="float32"))
    heard = RecordingReport()
    assert answer(folder, memory=PLENTY, report=heard).text == "AB"
    assert heard.notes == ["loading 150 kB of weights as bfloat16"]


def test_what_does_not_fit_stays_on_the_disk(
    random_llava: Path, pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for half of the weights the answer is the same, the user is told, and nothing is left behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    heard = RecordingReport()
    given = answer(random_llava, "What?", pictures, max_new_tokens=12, memory=FreeMemory(LITTLE), report=heard)
    assert given.placement.endswith(" parts on disk")
    assert "parts on cpu" in given.placement
    assert given.text == answer(random_llava, "What?", pictures, max_new_tokens=12, memory=PLENTY).text
    assert len(heard.warnings) == 1
    assert heard.warnings[0].endswith("the rest of the weights is read from the disk for every token, which is slow")
    assert not list(tmp_path.iterdir())


def test_less_than_that_is_refused(random_llava: Path) -> None:
    """When not even one layer after the other fits, the refusal has both figures, before anything is loaded."""
    with refused(InputOutputError, where=random_llava, found="100 MB free", expected="at least 537 MB"):
        answer(random_llava, max_new_tokens=1, memory=FreeMemory(100_000_000))


def damage(folder: Path, change: Callable[[Path], object], tmp_path: Path) -> Path:
    """Return a changed copy of a folder."""
    copy = Path(shutil.copytree(folder, tmp_path / "damaged"))
    change(copy)
    return copy


def test_missing_weights_are_not_made_up(llava: Path, tmp_path: Path) -> None:
    """The library fills what is missing with random numbers; here it is an error that names a tensor."""
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    folder = damage(llava, lambda copy: edit_tensors(copy, lambda tensors: tensors.pop(name)), tmp_path)
    with refused(CheckFailed, where=folder, found="model.language_model.layers.1.mlp.up_proj.weight"):
        answer(folder, memory=PLENTY)


REFUSED: dict[str, tuple[Callable[[Path], object], type[DeltaweightsError], str]] = {
    "a-shape-that-does-not-fit": (
        lambda copy: edit_tensors(
            copy, lambda tensors: tensors.update({"language_model.model.norm.weight": torch.ones(3)})
        ),
        Mismatch,
        "",
    ),
    "a-model-type-that-is-none": (
        lambda copy: edit(copy / "config.json", lambda config: config.update(model_type="none_that_exists")),
        Mismatch,
        "",
    ),
    "a-wrong-number-of-image-tokens": (
        lambda copy: edit(
            copy / "processor_config.json", lambda processor: processor.update(num_additional_image_tokens=0)
        ),
        Mismatch,
        "image tokens do not match",
    ),
    "a-template-that-runs-for-ever": (
        lambda copy: (copy / "chat_template.jinja").write_text(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        ),
        Mismatch,
        "the template runs for more than 2 seconds",
    ),
    "a-tokenizer-that-panics": (
        lambda copy: edit(
            copy / "tokenizer.json",
            lambda given: given.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ),
        Mismatch,
        "Precompiled: Error(",
    ),
    "no-template": (
        lambda copy: (copy / "chat_template.jinja").unlink(),
        Mismatch,
        "no chat template",
    ),
    "more-layers-than-tensors": (
        lambda copy: edit(copy / "config.json", lambda config: config["text_config"].update(num_hidden_layers=10**9)),
        Mismatch,
        "num_hidden_layers is 1,000,000,000, and the folder has 80 tensors",
    ),
    "row10-weights-cut-short": (
        lambda copy: os.truncate(copy / "model-00001-of-00002.safetensors", 60_000),
        MalformedInput,
        "the file is damaged or cut",
    ),
    "config-no-json": (lambda copy: (copy / "config.json").write_text("{"), MalformedInput, "not strict JSON"),
    "folder-gone": (shutil.rmtree, InputOutputError, "no checkpoint here"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_does_not_run_is_refused(
    name: str, llava: Path, tmp_path: Path, pictures: tuple[Path, Path]
) -> None:
    """Whatever the library raises becomes one line of ours, of the right kind."""
    change, kind, words = REFUSED[name]
    folder = damage(llava, change, tmp_path)
    with refused(kind) as error:
        answer(folder, images=pictures[:1], memory=PLENTY)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_gives_up_on_a_prompt_is_refused(llava: Path, tmp_path: Path) -> None:
    """A pattern that takes for ever makes tokenizers panic, which is one line like any other failure."""
    pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    folder = damage(
        llava, lambda copy: edit(copy / "tokenizer.json", lambda given: given.update(pre_tokenizer=pattern)), tmp_path
    )
    with refused(Mismatch, where=folder) as error:
        answer(folder, "x" * 3000, memory=PLENTY)
    assert str(error.value.found).startswith("Onig: ")


@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_the_original_layout_is_refused_with_the_way_out(container: str, tmp_path: Path) -> None:
    """A LLaVA of 2023 does not run here; the error says which command makes one that does."""
    folder = make_original(tmp_path / "it's original", container)
    with refused(Mismatch, where=folder) as error:
        answer(folder, memory=PLENTY)
    quoted = str(folder).replace("'", "'\"'\"'")
    assert f"deltaweights export '{quoted}' --target NEW" in str(error.value.remedy)


def test_pickles_are_not_loaded(llama: Path, tmp_path: Path) -> None:
    """A folder of torch files is refused: the library would run their pickles."""

    def change(copy: Path) -> None:
        torch.save({"a": torch.ones(2)}, copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()

    folder = damage(llama, change, tmp_path)
    with refused(Mismatch, where=folder / "pytorch_model.bin") as error:
        answer(folder, memory=PLENTY)
    assert f"deltaweights convert --base {folder} --target NEW" in str(error.value.remedy)


def test_an_image_for_a_model_without_eyes_is_refused(llama: Path, pictures: tuple[Path, Path]) -> None:
    """A plain LLaMA takes no image, and says so before anything is loaded."""
    with refused(UsageError, where=llama):
        answer(llama, images=pictures[:1], memory=PLENTY)


def test_lack_of_memory_is_told_as_such(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system has less than it said, the error is one of the system, not of the folder."""

    def exhaust(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 13 bytes")

    monkeypatch.setattr("transformers.LlavaForConditionalGeneration.generate", exhaust)
    with refused(InputOutputError, where=llava) as error:
        answer(llava, memory=PLENTY)
    assert str(error.value.found).startswith("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:1000", "disk", ""])
def test_a_device_that_is_none_is_refused(device: str, llava: Path) -> None:
    """A typo is reported before anything is read."""
    with refused(UsageError, found=device):
        answer(llava, device=device, memory=PLENTY)


def test_float32_products_are_exact_while_it_runs() -> None:
    """TF32, which would make the identity layer of the projector inexact, is off, and afterwards as before."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    matmul.allow_tf32 = True
    try:
        with without_tf32():
            assert not matmul.allow_tf32
            assert not cudnn.allow_tf32
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before[0]
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before
