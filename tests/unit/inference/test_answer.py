"""``try`` answers as the library itself does, wherever the weights are, and refuses what it cannot run."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.errors import CheckFailed, DeltaweightsError, InputOutputError, MalformedInput, Mismatch, UsageError
from deltaweights.inference.answer import Answer, answer, exact_products
from deltaweights.inference.loading import quietly
from deltaweights.inference.memory import WORKSPACE, Memory, Need, Placement, free_memory, group_limits, need_of, place
from deltaweights.inference.prompts import GREETING, QUESTION
from deltaweights.report import Report
from tests.conftest import Run
from tests.support.tiny_llava import edit, edit_tensors, make_llama, make_llava, make_original

SAYS = "AB#"
"""What the models that have an answer say: "AB", and then "#" for ever, of which three are a stop string."""

PLENTY = Memory(10**12)

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
    """Make two images that differ, one of them with a palette and wider than high."""
    folder = tmp_path_factory.mktemp("images")
    one, other = folder / "one.png", folder / "other.gif"
    Image.radial_gradient("L").convert("RGB").save(one)
    Image.linear_gradient("L").resize((60, 40)).convert("P").save(other)
    return one, other


class Heard(Report):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.warnings.append(text)


def by_hand(folder: Path, prompt: str, images: tuple[Path, ...], tokens: int) -> str:
    """Return the greedy answer as a notebook would get it, without anything of ours."""
    model_of: Any = AutoModelForImageTextToText
    processor_of: Any = AutoProcessor
    with quietly():
        model, processor = model_of.from_pretrained(folder), processor_of.from_pretrained(folder)
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        opened = [Image.open(path).convert("RGB") for path in images]
        inputs = processor(images=opened or None, text=text, return_tensors="pt")
        given = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = given[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(new, skip_special_tokens=True).split("###")[0].strip())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_answer_is_the_librarys(count: int, random_llava: Path, pictures: tuple[Path, Path]) -> None:
    """With no, one and two images the answer of random weights is what transformers gives by hand, token for token."""
    images = pictures[:count]
    given = answer(random_llava, "What?", images, max_new_tokens=12, memory=PLENTY)
    assert given.text == by_hand(random_llava, "What?", images, 12)
    assert given.text
    assert given.tokens <= 12
    assert (given.model_class, given.placement) == ("LlavaForConditionalGeneration", "cpu")


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
    with quietly():
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
    with pytest.raises(UsageError) as error:
        answer(random_llava, conversation="none", memory=PLENTY)
    assert str(error.value) == f"{random_llava}: no prompt with --conversation none: found no conversation none"
    folder = Path(shutil.copytree(llama, tmp_path / "llama"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="the model has no forms of conversation to choose from: found short"):
        answer(folder, conversation="short", memory=PLENTY)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_it_runs_in_every_dtype(dtype: str, llava: Path, pictures: tuple[Path, Path]) -> None:
    """Weights, and images with them, are cast to the dtype that is asked for."""
    heard = Heard()
    given = answer(llava, images=pictures[:1], dtype=dtype, memory=PLENTY, report=heard)
    assert given.text == "AB"
    assert heard.notes == [f"loading {300 if dtype == 'float32' else 150} kB of weights as {dtype}"]


def test_it_runs_in_the_dtype_of_the_weights(tmp_path: Path) -> None:
    """What config.json states is not what decides: the weights are used as they are stored."""
    folder = make_llava(tmp_path / "llava", torch.bfloat16, SAYS)
    edit(folder / "config.json", lambda config: config.update(dtype="float32"))
    heard = Heard()
    assert answer(folder, memory=PLENTY, report=heard).text == "AB"
    assert heard.notes == ["loading 150 kB of weights as bfloat16"]


# Memory.


def test_what_does_not_fit_stays_on_the_disk(
    random_llava: Path, pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for half of the weights the answer is the same, the user is told, and nothing is left behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    heard = Heard()
    given = answer(random_llava, "What?", pictures, max_new_tokens=12, memory=Memory(LITTLE), report=heard)
    assert given.placement.endswith(" parts on disk")
    assert "parts on cpu" in given.placement
    assert given.text == answer(random_llava, "What?", pictures, max_new_tokens=12, memory=PLENTY).text
    assert len(heard.warnings) == 1
    assert heard.warnings[0].endswith("the rest of the weights is read from the disk for every token, which is slow")
    assert not list(tmp_path.iterdir())


def test_less_than_that_is_refused(random_llava: Path) -> None:
    """When not even one layer after the other fits, the refusal has both figures, before anything is loaded."""
    with pytest.raises(InputOutputError) as error:
        answer(random_llava, max_new_tokens=1, memory=Memory(100_000_000))
    assert str(error.value) == (
        f"{random_llava}: memory cannot hold the model, even with weights left on the disk: found 100 MB free, expected at"
        " least 537 MB; all of it takes 537 MB; end other programs, or use a machine with more"
    )


GB = 10**9

BIG = Need(weights=14 * GB, layer=GB, tensor=GB // 2, work=GB)


@pytest.mark.parametrize(
    ("memory", "device", "expected"),
    [
        (Memory(16 * GB), "auto", Placement({"": "cpu"})),
        (Memory(15 * GB), "cpu", Placement({"": "cpu"})),
        (Memory(15 * GB, (80 * GB,)), "cpu", Placement({"": "cpu"})),
        (Memory(15 * GB - 1), "auto", Placement("auto", {"cpu": 14 * GB - 1}, spills=True)),
        (Memory(4 * GB, (80 * GB,)), "cuda", Placement({"": "cuda:0"})),
        (Memory(4 * GB, (1, 80 * GB)), "cuda:1", Placement({"": "cuda:1"})),
        (Memory(4 * GB, (80 * GB,)), "auto", Placement("auto", {0: 79 * GB, "cpu": 3 * GB})),
        (Memory(4 * GB, (8 * GB, 9 * GB)), "auto", Placement("auto", {0: 7 * GB, 1: 8 * GB, "cpu": 3 * GB})),
        (Memory(1, (8 * GB, 1)), "auto", Placement("auto", {0: 7 * GB, "cpu": 0}, spills=True)),
        (Memory(16 * GB, (GB,)), "auto", Placement("auto", {"cpu": 15 * GB})),
    ],
)
def test_weights_go_where_there_is_room(memory: Memory, device: str, expected: Placement) -> None:
    """GPUs come first, then main memory, each without what the work itself takes; what fits in neither stays on the disk."""
    assert place(BIG, memory, device, Path("model")) == expected


@pytest.mark.parametrize(
    ("memory", "device", "error", "message"),
    [
        (
            Memory(3 * GB),
            "auto",
            InputOutputError,
            "even with weights left on the disk: found 3 GB free, expected at least 3.5 GB",
        ),
        (Memory(3 * GB, (3 * GB,)), "auto", InputOutputError, "found 3 GB free"),
        (
            Memory(80 * GB, (8 * GB,)),
            "cuda",
            InputOutputError,
            "cuda cannot hold the model: found 8 GB free, expected at least 15 GB",
        ),
        (Memory(80 * GB), "cuda:3", UsageError, "no such device: found cuda:3, of 0 GPUs that torch can use"),
    ],
)
def test_what_has_no_room_is_refused(memory: Memory, device: str, error: type[DeltaweightsError], message: str) -> None:
    """A device that is not there, or too small, is refused with what was found and what is needed."""
    with pytest.raises(error) as refusal:
        place(BIG, memory, device, Path("model"))
    assert message in str(refusal.value)


def test_the_need_is_counted_from_headers() -> None:
    """All weights in the dtype that they run in, the largest layer with all its tensors, and the largest tensor; no buffers."""
    specs = [
        TensorSpec("model.embed_tokens.weight", "F32", (100, 10)),
        TensorSpec("model.layers.0.a.weight", "F32", (30, 10)),
        TensorSpec("model.layers.0.b.weight", "F32", (40, 10)),
        TensorSpec("model.layers.1.a.weight", "F32", (20, 10)),
        TensorSpec("model.layers.1.self_attn.rotary_emb.inv_freq", "F32", (1000, 1000)),
    ]
    need = need_of(specs, "float16", cache=7)
    assert need == Need(weights=2 * 1900, layer=2 * 1000, tensor=2 * 1000, work=WORKSPACE + 7)
    assert need.least == need.all  # two of the largest are more than everything
    assert Need(weights=100, layer=10, tensor=20, work=5).least == 45


def write(folder: Path, **files: str) -> None:
    """Write the files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_control_groups_limit_what_is_free(tmp_path: Path) -> None:
    """Both versions are read, up to the top; a group without a limit says nothing, and cached files are free."""
    version2, version1 = tmp_path / "two", tmp_path / "one"
    write(version2 / "a", memory__max="1000", memory__current="900", memory__stat="anon 5\ninactive_file 300\n")
    write(version2 / "a" / "b", memory__max="max", memory__current="900")
    (tmp_path / "in2").write_text("0::/a/b\n")
    assert group_limits(version2, tmp_path / "in2") == [400]
    write(
        version1 / "memory" / "c",
        memory__limit_in_bytes="500",
        memory__usage_in_bytes="600",
        memory__stat="total_inactive_file 50\n",
    )
    (tmp_path / "in1").write_text("4:cpu,cpuacct:/c\n3:memory:/c\n")
    assert group_limits(version1, tmp_path / "in1") == [0]
    assert group_limits(version1, tmp_path / "nowhere") == []


def test_free_memory_is_that_of_the_machine() -> None:
    """What is free now is more than nothing, and no more than the machine has."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory("cpu").host < pages * size
    assert free_memory("cpu").gpus == ()


# What is refused.


def damage(folder: Path, change: Callable[[Path], object], tmp_path: Path) -> Path:
    """Return a changed copy of a folder."""
    copy = Path(shutil.copytree(folder, tmp_path / "damaged"))
    change(copy)
    return copy


def test_missing_weights_are_not_made_up(llava: Path, tmp_path: Path) -> None:
    """The library fills what is missing with random numbers; here it is an error that names a tensor."""
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    folder = damage(llava, lambda copy: edit_tensors(copy, lambda tensors: tensors.pop(name)), tmp_path)
    with pytest.raises(CheckFailed) as error:
        answer(folder, memory=PLENTY)
    assert str(error.value) == (
        f"{folder}: lacks 1 tensor: found model.language_model.layers.1.mlp.up_proj.weight; deltaweights check {folder}"
        " tells what else is wrong"
    )


REFUSED: dict[str, tuple[Callable[[Path], object], type[DeltaweightsError], str]] = {
    "a-shape-that-does-not-fit": (
        lambda copy: edit_tensors(
            copy, lambda tensors: tensors.update({"language_model.model.norm.weight": torch.ones(3)})
        ),
        Mismatch,
        ": transformers does not run it: found ",
    ),
    "a-model-type-that-is-none": (
        lambda copy: edit(copy / "config.json", lambda config: config.update(model_type="none_that_exists")),
        Mismatch,
        ": transformers does not run it: found ",
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
        "found the template runs for more than 2 seconds",
    ),
    "a-tokenizer-that-panics": (
        lambda copy: edit(
            copy / "tokenizer.json",
            lambda given: given.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ),
        Mismatch,
        ": transformers does not run it: found Precompiled: Error(",
    ),
    "no-template": (
        lambda copy: (copy / "chat_template.jinja").unlink(),
        Mismatch,
        "found it has no chat template, which says where images stand",
    ),
    "more-layers-than-tensors": (
        lambda copy: edit(copy / "config.json", lambda config: config["text_config"].update(num_hidden_layers=10**9)),
        Mismatch,
        "config.json: states a size that no model has: found num_hidden_layers is 1,000,000,000, and the folder has 80 tensors",
    ),
    "row10-weights-cut-short": (
        lambda copy: os.truncate(copy / "model-00001-of-00002.safetensors", 60_000),
        MalformedInput,
        "the file is damaged or cut",
    ),
    "config-no-json": (lambda copy: (copy / "config.json").write_text("{"), MalformedInput, "not strict JSON"),
    "folder-gone": (shutil.rmtree, InputOutputError, "no checkpoint here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_does_not_run_is_refused(
    name: str, llava: Path, tmp_path: Path, pictures: tuple[Path, Path]
) -> None:
    """Whatever the library raises becomes one line of ours, of the right kind."""
    change, kind, words = REFUSED[name]
    folder = damage(llava, change, tmp_path)
    with pytest.raises(kind) as error:
        answer(folder, images=pictures[:1], memory=PLENTY)
    assert type(error.value) is kind
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_gives_up_on_a_prompt_is_refused(llava: Path, tmp_path: Path) -> None:
    """A pattern that takes for ever makes tokenizers panic, which is one line like any other failure."""
    pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    folder = damage(
        llava, lambda copy: edit(copy / "tokenizer.json", lambda given: given.update(pre_tokenizer=pattern)), tmp_path
    )
    with pytest.raises(Mismatch) as error:
        answer(folder, "x" * 3000, memory=PLENTY)
    assert str(error.value).startswith(f"{folder}: transformers does not run it: found Onig: ")


@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_the_original_layout_is_refused_with_the_way_out(container: str, tmp_path: Path) -> None:
    """A LLaVA of 2023 does not run here; the error says which command makes one that does."""
    folder = make_original(tmp_path / "it's original", container)
    with pytest.raises(Mismatch) as error:
        answer(folder, memory=PLENTY)
    quoted = str(folder).replace("'", "'\"'\"'")
    assert str(error.value) == (
        f"{folder}: a LLaVA in its original layout, which current libraries do not run; deltaweights export '{quoted}'"
        " --target NEW writes a folder that they run"
    )


def test_pickles_are_not_loaded(llama: Path, tmp_path: Path) -> None:
    """A folder of torch files is refused: the library would run their pickles."""

    def change(copy: Path) -> None:
        torch.save({"a": torch.ones(2)}, copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()

    folder = damage(llama, change, tmp_path)
    with pytest.raises(Mismatch) as error:
        answer(folder, memory=PLENTY)
    assert str(error.value) == (
        f"{folder}/pytorch_model.bin: weights in pickles, which are not loaded; deltaweights convert --base {folder} --target"
        " NEW writes it in safetensors"
    )


def test_an_image_for_a_model_without_eyes_is_refused(llama: Path, pictures: tuple[Path, Path]) -> None:
    """A plain LLaMA takes no image, and says so before anything is loaded."""
    with pytest.raises(UsageError) as error:
        answer(llama, images=pictures[:1], memory=PLENTY)
    assert str(error.value) == f"{llama}: an image for a model that takes none; leave out --image"


BAD_IMAGES: dict[str, tuple[Callable[[Path], object], type[DeltaweightsError], str]] = {
    "missing": (Path.exists, InputOutputError, "cannot open the image: No such file or directory"),
    "no-image": (lambda path: path.write_text("<html>"), MalformedInput, "not an image"),
    "empty": (lambda path: path.write_bytes(b""), MalformedInput, "not an image"),
    "row60-folder": (lambda path: path.mkdir(), MalformedInput, "not a regular file"),
    "row60-fifo": (os.mkfifo, MalformedInput, "not a regular file"),
    "cut-short": (lambda path: path.write_bytes(png()[:120]), MalformedInput, "a damaged image"),
    "bomb": (
        lambda path: path.write_bytes(bomb()),
        MalformedInput,
        "too large an image",
    ),
}


def png() -> bytes:
    """Return the bytes of an image that does not compress."""
    path = Path(tempfile.mkdtemp()) / "x.png"
    Image.effect_noise((40, 40), 90).save(path)
    data = path.read_bytes()
    shutil.rmtree(path.parent)
    return data


def bomb() -> bytes:
    """Return the bytes of an image whose header states 400 million pixels."""
    import zlib  # noqa: PLC0415

    data = bytearray(png())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_one_line(name: str, llava: Path, tmp_path: Path) -> None:
    """An image that is not there, or none, or larger than any, ends the run with the file's name, before anything is loaded."""
    make, kind, words = BAD_IMAGES[name]
    path = tmp_path / "image.png"
    make(path)
    with pytest.raises(kind) as error:
        answer(llava, images=[path], memory=Memory(0))
    assert type(error.value) is kind
    assert str(error.value).startswith(f"{path}: {words}")


def test_lack_of_memory_is_told_as_such(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system has less than it said, the error is one of the system, not of the folder."""

    def exhaust(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 13 bytes")

    monkeypatch.setattr("transformers.LlavaForConditionalGeneration.generate", exhaust)
    with pytest.raises(InputOutputError, match="memory ran out: found DefaultCPUAllocator: can't allocate memory"):
        answer(llava, memory=PLENTY)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:1000", "disk", ""])
def test_a_device_that_is_none_is_refused(device: str, llava: Path) -> None:
    """A slip of the pen is told before anything is read."""
    with pytest.raises(UsageError, match="no such device"):
        answer(llava, device=device, memory=PLENTY)


def test_float32_products_are_exact_while_it_runs() -> None:
    """TF32, which would make the identity layer of the projector inexact, is off, and afterwards as before."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    matmul.allow_tf32 = True
    try:
        with exact_products():
            assert not matmul.allow_tf32
            assert not cudnn.allow_tf32
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before[0]
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


# The command.

NOTICE = "deltaweights: warning: for research use only; not for clinical care or for any clinical decision"


def test_the_command_prints_the_answer(run: Run, llava: Path, pictures: tuple[Path, Path]) -> None:
    """The answer alone is on stdout; the notice, what was loaded and how fast it went are on stderr, and nothing else."""
    done = run("try", llava, "--image", pictures[0], "--image", pictures[1], "--prompt", "What?", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "AB\n")
    loading, notice, speed = done.stderr.splitlines()
    assert (loading, notice) == ("loading 300 kB of weights as float32", NOTICE)
    assert speed.startswith("LlavaForConditionalGeneration on cpu: 5 tokens in ")
    assert speed.endswith(" tokens per second")


def test_the_command_gives_json(run: Run, llama: Path) -> None:
    """The JSON object is the answer with its figures, and the notice; quiet leaves only the notice on stderr."""
    done = run("try", llama, "--json", "-q", "--max-new-tokens", "4")
    assert (done.returncode, done.stderr) == (0, f"{NOTICE}\n")
    told = json.loads(done.stdout)
    assert told.pop("notice") == NOTICE.removeprefix("deltaweights: warning: ")
    given = Answer(**told)
    assert (given.text, given.tokens, given.placement) == ("AB##", 4, "cpu")


def test_the_command_refuses_in_one_line(run: Run, llama: Path, tmp_path: Path) -> None:
    """An error is one line and an exit code."""
    done = run("try", llama, "--image", tmp_path / "none.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"deltaweights: error: {llama}: an image for a model that takes none; leave out --image\n"
