"""``check`` says whether a library will load a folder, as the library itself has it, and reads no weights for that."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from deltaweights.errors import CheckFailed, DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.inference.bounds import LARGEST_VOCABULARY
from deltaweights.inference.child import check_in_child
from deltaweights.inference.findings import Problem
from deltaweights.inference.loading import Refusal, quietly, refusals
from deltaweights.inference.structure import check_structure
from deltaweights.inference.tensors import StoredNames
from deltaweights.report import Report
from deltaweights.util.interruption import Interrupted
from tests.conftest import Run
from tests.support.limits import PATIENCE
from tests.support.tiny_llava import (
    FEATURES,
    HIDDEN,
    PATCHES,
    Tensors,
    edit,
    edit_tensors,
    id_of,
    make_llama,
    make_llava,
    make_original,
    stored_name,
    tokenizer,
)

ROWS = len(tokenizer())

FIRST, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

INDEX = "model.safetensors.index.json"

Change = Callable[[Path], object]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a LLaVA, not to be changed."""
    return make_llava(tmp_path_factory.mktemp("whole") / "llava")


@pytest.fixture
def llava(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of a LLaVA, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "llava"))


class Heard(Report):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.warnings.append(text)


def lines(findings: tuple[Problem, ...]) -> list[str]:
    """Return findings as people see them."""
    return list(map(str, findings))


def tensors(change: Callable[[Tensors], object]) -> Change:
    """Return what changes the tensors of a folder."""
    return lambda folder: edit_tensors(folder, change)


def document(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Return what changes a JSON document of a folder."""
    return lambda folder: edit(folder / name, change)


def set_text(**values: object) -> Change:
    """Return what changes the text model's part of config.json."""
    return document("config.json", lambda config: config["text_config"].update(values))


def set_config(**values: object) -> Change:
    """Return what changes config.json."""
    return document("config.json", lambda config: config.update(values))


def set_shape(name: str, *shape: int) -> Change:
    """Return what gives a tensor another shape."""
    return tensors(lambda given: given.update({name: torch.zeros(shape)}))


def remove(*names: str) -> Change:
    """Return what removes files."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def template(text: str) -> Change:
    """Return what writes another chat template."""
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def both(*changes: Change) -> Change:
    """Return what makes several changes."""
    return lambda folder: [change(folder) for change in changes]


def fewer_rows(given: Tensors) -> None:
    """Cut the last row off both ends of the language model."""
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        given[name] = given[name][:-1].clone()


UP = "language_model.model.layers.1.mlp.up_proj.weight"

DAMAGE: dict[str, tuple[Change, list[str] | None]] = {
    "missing-tensor": (
        tensors(lambda given: given.pop(UP)),
        [
            (
                "model.safetensors: tensor model.language_model.layers.1.mlp.up_proj.weight: is missing:"
                f" expected [{3 * HIDDEN - 4}, {HIDDEN}]"
            )
        ],
    ),
    "missing-output": (
        tensors(lambda given: given.pop("language_model.lm_head.weight")),
        [f"model.safetensors: tensor lm_head.weight: is missing: expected [{ROWS}, {HIDDEN}]"],
    ),
    "unexpected-tensor": (
        set_shape("language_model.model.layers.1.extra.weight", 3),
        ["model.safetensors: tensor language_model.model.layers.1.extra.weight: is none of the model's"],
    ),
    "wrong-shape": (
        set_shape("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", 3, 4),
        [
            (
                "model.safetensors: tensor vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight: has the wrong"
                f" shape: found [3, 4], expected [{FEATURES}, {FEATURES}]"
            )
        ],
    ),
    "wrong-shape-of-the-same-name-in-both-halves": (
        set_shape("language_model.model.layers.0.self_attn.q_proj.weight", 3, 4),
        [
            (
                "model.safetensors: tensor language_model.model.layers.0.self_attn.q_proj.weight: has the wrong"
                f" shape: found [3, 4], expected [{HIDDEN}, {HIDDEN}]"
            )
        ],
    ),
    "tied-and-both-stored": (
        both(set_text(tie_word_embeddings=True), set_config(tie_word_embeddings=True)),
        [
            (
                "config.json: ties output and input embeddings (tie_word_embeddings), and both are stored: found"
                " language_model.lm_head.weight and language_model.model.embed_tokens.weight, expected one of them, or"
                " tie_word_embeddings false"
            )
        ],
    ),
    "vocabulary-too-long": (
        both(tensors(fewer_rows), set_text(vocab_size=ROWS - 1)),
        [
            (
                f"tokenizer_config.json: has more tokens than the embeddings have rows: found {ROWS} tokens, expected at most"
                f" {ROWS - 1}"
            )
        ],
    ),
    "vocabulary-of-the-config-alone": (
        set_text(vocab_size=ROWS + 4),
        [
            (
                f"{FIRST}: tensor language_model.lm_head.weight: has the wrong shape: found [{ROWS}, {HIDDEN}],"
                f" expected [{ROWS + 4}, {HIDDEN}]"
            ),
            (
                f"{FIRST}: tensor language_model.model.embed_tokens.weight: has the wrong shape: found [{ROWS}, {HIDDEN}],"
                f" expected [{ROWS + 4}, {HIDDEN}]"
            ),
        ],
    ),
    "wrong-eos-in-generation": (
        document("generation_config.json", lambda ids: ids.update(eos_token_id=1)),
        ["generation_config.json: eos_token_id is not the tokenizer's: found 1, expected 2 (</s>)"],
    ),
    "wrong-eos-in-the-text-model": (
        set_text(eos_token_id=1),
        ["config.json: eos_token_id is not the tokenizer's: found 1, expected 2 (</s>)"],
    ),
    "wrong-bos-at-the-top": (
        set_config(bos_token_id=0),
        ["config.json: bos_token_id is not the tokenizer's: found 0, expected 1 (<s>)"],
    ),
    "wrong-pad": (
        document("generation_config.json", lambda ids: ids.update(pad_token_id=0)),
        [f"generation_config.json: pad_token_id is not the tokenizer's: found 0, expected {ROWS - 4} ([PAD])"],
    ),
    "several-ends-of-which-none-is-right": (
        document("generation_config.json", lambda ids: ids.update(eos_token_id=[0, 1])),
        ["generation_config.json: eos_token_id is not the tokenizer's: found [0, 1], expected 2 (</s>)"],
    ),
    "an-end-outside-the-embeddings": (
        document("generation_config.json", lambda ids: ids.update(eos_token_id=[2, 9999])),
        [
            f"generation_config.json: eos_token_id is not among the embeddings: found [2, 9999], expected 0 to {ROWS - 1}"
        ],
    ),
    "an-end-that-is-no-number": (
        document("generation_config.json", lambda ids: ids.update({"eos_token_id": "</s>"})),
        ["generation_config.json: eos_token_id is not an id: found </s>"],
    ),
    "wrong-image-token": (
        set_config(image_token_index=5),
        [
            (
                "config.json: image_token_index is not the processor's: found 5,"
                f" expected {id_of('<im_patch>')} (<im_patch>)"
            )
        ],
    ),
    "image-token-that-is-none": (
        document("processor_config.json", lambda processor: processor.update({"image_token": "<image>"})),
        None,
    ),
    "wrong-image-count": (
        document("processor_config.json", lambda processor: processor.update(num_additional_image_tokens=0)),
        [
            (
                f"processor_config.json: inserts another number of image tokens: found {PATCHES - 1}, expected {PATCHES}, as"
                " many features as the vision tower gives"
            )
        ],
    ),
    "wrong-image-length": (
        set_config(image_seq_length=576),
        [f"config.json: image_seq_length is not the number of an image's tokens: found 576, expected {PATCHES}"],
    ),
    "no-tokenizer": (
        remove("tokenizer.json"),
        [
            (
                "tokenizer_config.json: transformers loads no tokenizer: found no tokenizer.json or tokenizer.model or"
                " vocab.json"
            )
        ],
    ),
    "more-layers-than-tensors": (
        set_text(num_hidden_layers=10**9),
        [
            (
                "config.json: states a size that no model has: found num_hidden_layers is 1,000,000,000, and the folder has"
                " 80 tensors"
            )
        ],
    ),
    "a-name-for-each-of-a-billion-labels": (
        document("config.json", lambda config: config["vision_config"].update(num_labels=10**9)),
        ["config.json: states a size that no model has: found num_labels is 1,000,000,000, more than any model has"],
    ),
    "an-image-larger-than-memory": (
        document("preprocessor_config.json", lambda given: given.update(crop_size={"height": 10**9, "width": 28})),
        [
            (
                "preprocessor_config.json: states a size that no model has: found height is 1,000,000,000, more than the"
                " model takes, 1,024"
            )
        ],
    ),
    "an-image-wider-than-the-model-takes": (
        document(
            "preprocessor_config.json", lambda given: given.update(size={"shortest_edge": 2000}, do_center_crop=False)
        ),
        [
            (
                "preprocessor_config.json: states a size that no model has: found shortest_edge is 2,000, more than the model"
                " takes, 1,024"
            )
        ],
    ),
    "an-image-of-a-million-tokens": (
        both(
            document("preprocessor_config.json", lambda given: given.update(crop_size={"height": 1024, "width": 1024})),
            document("processor_config.json", lambda given: given.update(patch_size=1)),
        ),
        [
            (
                "processor_config.json: states a size that no model has: found patch_size is 1, of images that are 1,024"
                " wide"
            )
        ],
    ),
    "a-vision-layer-that-is-none": (
        set_config(vision_feature_layer=-5),
        [
            (
                "config.json: vision_feature_layer is no layer: found -5, expected -4 to 3, as many as the vision tower has"
            )
        ],
    ),
    "a-list-of-a-vision-layer-that-is-none": (
        set_config(vision_feature_layer=[4]),
        [
            (
                "config.json: vision_feature_layer is no layer: found [4], expected -4 to 3, as many as the vision tower"
                " has"
            )
        ],
    ),
    "a-template-that-refuses": (
        template("{{ raise_exception('not today') }}"),
        ["chat_template.jinja: makes no prompt of a question: found not today"],
    ),
    "a-template-that-is-none": (template("{% for %}"), None),
    "a-template-that-runs-for-ever": (
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        ["chat_template.jinja: makes no prompt of a question: found the template runs for more than 2 seconds"],
    ),
    "a-template-larger-than-memory": (
        template("{% set a = 'x' * 4000000000 %}{{ a }}"),
        ["chat_template.jinja: makes no prompt of a question: found MemoryError"],
    ),
    "a-template-without-end": (
        template("{{ 'x' * 2000000 }}"),
        [
            (
                "chat_template.jinja: makes no prompt of a question: found the template makes 2,000,000 characters of one"
                " question"
            )
        ],
    ),
    "a-template-without-the-question": (
        template("<im_patch>"),
        ["chat_template.jinja: leaves out the question: found <im_patch>"],
    ),
    "a-template-without-the-image": (
        template("{{ messages[0].content[1].text }}"),
        ["chat_template.jinja: does not write one image token for one image: found 0, expected 1 <im_patch>"],
    ),
    "a-template-that-leaves-the-image-open": (
        template("<im_start><im_patch>{{ messages[0].content[1].text }}"),
        ["chat_template.jinja: does not write as many <im_start> as <im_end>: found 1 and 0"],
    ),
    "a-tokenizer-that-panics": (
        document(
            "tokenizer.json",
            lambda given: given.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ),
        None,
    ),
    "unknown-model-type": (
        set_config(model_type="none_that_exists"),
        None,
    ),
    "a-tokenizer-that-is-none": (lambda folder: (folder / "tokenizer.json").write_text("{}"), None),
    "no-processor": (remove("processor_config.json", "preprocessor_config.json"), None),
}
"""What is done to a folder, and the lines that are due; None where the words are the library's, which change."""

IN_ITS_WORDS = {
    "a-template-that-is-none": "chat_template.jinja: makes no prompt of a question: found Expected an expression",
    "a-tokenizer-that-panics": "tokenizer_config.json: transformers loads no tokenizer: found Precompiled: Error(",
    "image-token-that-is-none": "processor_config.json: image_token is not a token of the tokenizer: found <image>, which",
    "unknown-model-type": "config.json: transformers makes no model of it: found ",
    "a-tokenizer-that-is-none": "tokenizer_config.json: transformers loads no tokenizer: found ",
    "no-processor": "processor_config.json: transformers loads no processor: found ",
}


def test_a_whole_folder_passes(whole: Path) -> None:
    """A model that transformers' own classes made has no finding, and the report has the library's own count of parameters."""
    report = check_structure(whole)
    assert (report.problems, report.warnings, report.notes) == ((), (), ())
    assert report.ok
    report.raise_if_failed()
    assert (report.model_class, report.loads_in) == ("LlavaForConditionalGeneration", "transformers")
    model = AutoModelForImageTextToText.from_pretrained(whole)
    assert report.parameters == model.num_parameters()
    assert report.tensors == len(model.state_dict())
    assert report.tokenizer_size == ROWS
    assert report.target == str(whole)


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_is_found(name: str, llava: Path) -> None:
    """Each fault gives exactly its lines, one each, and the first of them when the report is asked to fail."""
    change, expected = DAMAGE[name]
    change(llava)
    report = check_structure(llava)
    found = lines(report.problems)
    if expected is None:
        assert len(found) == 1
        assert found[0].startswith(IN_ITS_WORDS[name])
        assert "\n" not in found[0]
        assert len(found[0]) < 500
    else:
        assert found == expected
    assert not report.ok
    with pytest.raises(CheckFailed) as error:
        report.raise_if_failed()
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    assert str(error.value) == f"{llava}: {found[0]}{more}"


@pytest.mark.parametrize("name", ["missing-tensor", "missing-output", "unexpected-tensor", "wrong-shape"])
def test_the_library_says_the_same_when_it_loads_the_weights(name: str, llava: Path) -> None:
    """What is listed from headers is what ``from_pretrained`` lists when it really loads the folder."""
    DAMAGE[name][0](llava)
    with quietly():
        loader: Any = AutoModelForImageTextToText
        _, told = loader.from_pretrained(llava, output_loading_info=True, ignore_mismatched_sizes=True)
    listed = {str(key[0] if isinstance(key, tuple) else key) for kind in told.values() for key in kind}
    report = check_structure(llava)
    assert listed
    stored = {problem.tensor for problem in report.problems}
    assert stored in ({stored_name(key) for key in listed}, listed)


@pytest.mark.parametrize("layer", [-4, 0, 3, [-2]])
def test_the_vision_towers_first_and_last_layers_pass(layer: object, llava: Path) -> None:
    """Three layers have four outputs, that which enters the first one included; a list of one is that one."""
    set_config(vision_feature_layer=layer)(llava)
    assert check_structure(llava).ok


def test_a_folder_without_a_template_is_warned_of(llava: Path) -> None:
    """Such a folder loads, and whoever asks it about an image writes the prompt by hand."""
    (llava / "chat_template.jinja").unlink()
    report = check_structure(llava)
    assert report.ok
    assert lines(report.warnings) == ["tokenizer_config.json: has no chat template, which says where images stand"]


def test_a_text_models_template_is_rendered(tmp_path: Path) -> None:
    """A plain LLaMA that does not claim to run is warned of a template that fails; one with no template has nothing to tell."""
    folder = make_llama(tmp_path / "llama")
    template("{{ messages.none.at_all }}")(folder)
    report = check_structure(folder)
    assert report.ok
    assert str(report.warnings[0]).startswith("chat_template.jinja: makes no prompt of a question: found ")
    (folder / "chat_template.jinja").unlink()
    assert check_structure(folder).warnings == ()


def test_panics_are_refusals_and_signals_are_not() -> None:
    """What Rust raises is no ``Exception``, and is turned into a refusal; a signal, an exit and our own errors pass."""
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(Refusal, match="gave up"), refusals():
        raise panic("gave up")
    for passing in (KeyboardInterrupt(), SystemExit(3), Interrupted(15), GeneratorExit()):
        with pytest.raises(type(passing)), refusals():
            raise passing


def test_a_panic_writes_nothing(run: Run, llava: Path) -> None:
    """The traceback of code in Rust, which goes past Python, is not on stderr: the problem alone is told."""
    DAMAGE["a-tokenizer-that-panics"][0](llava)
    done = run("check", llava)
    assert done.returncode == 6
    assert len(done.stdout.splitlines()) == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"deltaweights: error: {llava}: 1 problem; ")


def test_stderr_is_back_when_the_last_thread_has_left(capfd: pytest.CaptureFixture[str]) -> None:
    """While any thread is within the library nothing is written; afterwards stderr is what it was."""
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with refusals():
            entered.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=stay)
    with refusals():
        thread.start()
        entered.wait(PATIENCE)
    os.write(2, b"within")
    leave.set()
    thread.join()
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_several_ends_with_the_right_one_pass(llava: Path) -> None:
    """A generation may end at several tokens, as long as the tokenizer's is among them."""
    edit(llava / "generation_config.json", lambda ids: ids.update(eos_token_id=[2, 5]))
    assert check_structure(llava).ok


def test_the_librarys_default_counts_where_nothing_is_stated(llava: Path) -> None:
    """An id that config.json leaves out is the one that transformers puts there, and is told as such."""
    edit(llava / "config.json", lambda config: config["text_config"].pop("bos_token_id"))
    edit(llava / "tokenizer_config.json", lambda config: config.update(bos_token="<im_end>"))  # noqa: S106
    found = lines(check_structure(llava).problems)
    assert found[0] == (
        "config.json: bos_token_id is not the tokenizer's: found 1, the library's value where none is stated, expected"
        f" {ROWS - 1} (<im_end>)"
    )


def test_padding_rows_and_mixed_dtypes_are_notes(llava: Path) -> None:
    """More rows than tokens, and weights of two dtypes, are remarks: libraries load both."""

    def change(given: Tensors) -> None:
        for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
            given[name] = torch.cat([given[name], torch.zeros(4, HIDDEN)])
        given[UP] = given[UP].half()

    edit_tensors(llava, change)
    set_text(vocab_size=ROWS + 4)(llava)
    report = check_structure(llava)
    assert report.ok
    assert not report.warnings
    weights = (3 * HIDDEN - 4) * HIDDEN
    assert report.notes[0].startswith(f"{llava}: weights of several dtypes: F32 (")
    assert report.notes[0].endswith(f" weights), F16 ({weights:,} weights)")
    assert report.notes[1:] == (
        f"tokenizer_config.json: {ROWS} tokens for {ROWS + 4} rows of embeddings; the rest stands for nothing",
    )


def test_another_class_in_config_is_a_warning(llava: Path) -> None:
    """The class that config.json names is a hint: AutoModel goes by the model_type, and so it loads."""
    set_config(architectures=["LlavaLlamaForCausalLM"])(llava)
    report = check_structure(llava)
    assert report.ok
    assert lines(report.warnings) == [
        (
            "config.json: names a class that transformers does not have for it: found LlavaLlamaForCausalLM, expected"
            " LlavaForConditionalGeneration"
        )
    ]


@pytest.mark.parametrize("named", ["os", "AutoModel", "PreTrainedModel", "LlamaForCausalLM", "../x", "CLIPModel"])
def test_only_classes_of_the_library_for_the_configuration_are_made(named: str, llava: Path) -> None:
    """Whatever a config.json names, what is made is a model class of transformers for that very configuration."""
    set_config(architectures=[named])(llava)
    report = check_structure(llava)
    assert report.model_class == "LlavaForConditionalGeneration"
    assert len(report.warnings) == 1


def test_a_model_that_reads_no_text_is_refused(llava: Path) -> None:
    """A configuration of another kind of model is told in one line, whatever its class lacks."""
    (llava / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"]}))
    found = lines(check_structure(llava).problems)
    assert len(found) == 1
    assert found[0].startswith("config.json: transformers makes no model of it: found ")


def test_code_in_the_folder_is_never_run(llava: Path, tmp_path: Path) -> None:
    """A folder that brings its own classes, and asks for them, is loaded without them."""
    trace = tmp_path / "trace"
    for name in ("modeling_own", "configuration_own", "tokenization_own", "processing_own"):
        (llava / f"{name}.py").write_text(f"open({str(trace)!r}, 'w')\nOwn = object\n")
    set_config(auto_map={"AutoConfig": "configuration_own.Own", "AutoModel": "modeling_own.Own"})(llava)
    own = {"AutoTokenizer": ["tokenization_own.Own", None], "AutoProcessor": "processing_own.Own"}
    edit(llava / "tokenizer_config.json", lambda config: config.update(auto_map=own))
    edit(llava / "processor_config.json", lambda config: config.update(auto_map=own))
    report = check_structure(llava)
    assert not trace.exists()
    assert report.model_class == "LlavaForConditionalGeneration"


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_llama_passes(tied: bool, tmp_path: Path) -> None:
    """A LLaMA has no processor to look for; with its output tied to its embeddings one of the two is enough."""
    report = check_structure(make_llama(tmp_path / "llama", tied=tied))
    assert (report.problems, report.warnings, report.notes) == ((), (), ())
    assert (report.model_class, report.loads_in) == ("LlamaForCausalLM", "transformers")


@pytest.mark.parametrize("layout", [None, "original", "transformers"])
def test_a_llama_is_held_to_what_its_manifest_claims(layout: str | None, tmp_path: Path) -> None:
    """Ids that contradict are the publisher's, and warnings, until a manifest says that the folder was made to run."""
    folder = make_llama(tmp_path / "llama")
    edit(folder / "generation_config.json", lambda ids: ids.update(eos_token_id=1))
    if layout is not None:
        result = {"files": {}, "tensors": {}, "content_digest": "dw1:0", "options": {"layout": layout}}
        manifest = {"format": "deltaweights-manifest", "version": 1, "result": result, "inputs": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    report = check_structure(folder)
    wrong = ["generation_config.json: eos_token_id is not the tokenizer's: found 1, expected 2 (</s>)"]
    assert lines(report.problems) == (wrong if layout == "transformers" else [])
    assert lines(report.warnings) == ([] if layout == "transformers" else wrong)


PUBLISHED = [
    f"{file}: {key}_token_id is not the tokenizer's: found {found}, expected {expected}"
    for key, expected, wrong in (
        ("bos", "1 (<s>)", (0, 0)),
        ("eos", "2 (</s>)", (1, 1)),
        ("pad", f"{ROWS - 4} ([PAD])", (-1, 0)),
    )
    for file, found in zip(("config.json", "generation_config.json"), wrong, strict=True)
]


@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_the_original_layout_passes_with_the_publishers_ids_as_warnings(container: str, tmp_path: Path) -> None:
    """A LLaVA of 2023 is what its own code expects; its wrong ids are told, and which command makes a folder that runs."""
    folder = make_original(tmp_path / "original", container)
    report = check_structure(folder)
    assert report.ok
    assert (report.model_class, report.loads_in) == ("LlavaLlamaForCausalLM", "the original LLaVA code")
    assert lines(report.warnings) == PUBLISHED
    assert report.notes == (
        (
            f"{folder}: current transformers does not load this layout; deltaweights apply --layout transformers, or"
            " deltaweights export, writes a folder that it loads"
        ),
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            tensors(lambda given: given.pop("model.mm_projector.bias")),
            f"model.safetensors: tensor model.mm_projector.bias: is missing: expected [{HIDDEN}]",
        ),
        (
            set_shape("model.mm_projector.weight", HIDDEN, 5),
            (
                "model.safetensors: tensor model.mm_projector.weight: has the wrong shape: found"
                f" [{HIDDEN}, 5], expected [{HIDDEN}, {FEATURES}]"
            ),
        ),
        (
            tensors(lambda given: given.pop("model.norm.weight")),
            f"model.safetensors: tensor model.norm.weight: is missing: expected [{HIDDEN}]",
        ),
        (
            set_shape("multi_modal_projector.linear_1.weight", HIDDEN, FEATURES),
            "model.safetensors: tensor multi_modal_projector.linear_1.weight: is none of the model's",
        ),
    ],
    ids=["projector-missing", "projector-of-another-shape", "norm-missing", "projector-of-the-other-layout"],
)
def test_the_original_layout_is_checked_with_its_projector(change: Change, expected: str, tmp_path: Path) -> None:
    """A tensor that the code of 2023 would miss, reshape or ignore is a problem, the one projector of its own included."""
    folder = make_original(tmp_path / "original")
    change(folder)
    assert lines(check_structure(folder).problems) == [expected]


def test_a_projector_that_the_config_does_not_know_is_a_warning(tmp_path: Path) -> None:
    """Where config.json says nothing of a projector, LLaVA's code makes none, and ignores the stored one."""
    folder = make_original(tmp_path / "original")
    edit(folder / "config.json", lambda config: config.pop("use_mm_proj"))
    report = check_structure(folder)
    assert report.ok
    assert "model.mm_projector.weight is stored, and config.json does not say" in str(report.warnings[0])


BROKEN: dict[str, tuple[Change, type[DeltaweightsError], str]] = {
    "row54-shard-missing": (lambda folder: (folder / LAST).unlink(), MalformedInput, f"{LAST}: shard is missing"),
    "config-gone": (remove("config.json"), InputOutputError, "config.json: is missing"),
    "config-no-json": (
        lambda folder: (folder / "config.json").write_text("{"),
        MalformedInput,
        "config.json: not strict JSON",
    ),
    "config-no-object": (
        lambda folder: (folder / "config.json").write_text("[]"),
        MalformedInput,
        "config.json: not a JSON object",
    ),
    "row18-config-an-lfs-pointer": (
        lambda folder: (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        MalformedInput,
        "config.json: not what its name says: found a git-LFS pointer",
    ),
    "generation-no-json": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        MalformedInput,
        "generation_config.json: not strict JSON",
    ),
    "folder-gone": (shutil.rmtree, InputOutputError, "no checkpoint here"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_refused(name: str, llava: Path) -> None:
    """A folder or document that is not there, or breaks its format, is no finding but an error of its own."""
    change, kind, words = BROKEN[name]
    change(llava)
    with pytest.raises(kind) as error:
        check_structure(llava)
    assert type(error.value) is kind
    assert words in str(error.value)


def test_a_weights_file_is_no_folder(llava: Path) -> None:
    """A library is given a folder; an index within it says nothing of its configuration."""
    with pytest.raises(InputOutputError, match="not a folder"):
        check_structure(llava / INDEX)


def test_stored_names_are_found_from_the_librarys() -> None:
    """The name with the longest end in common is meant, then the one with most parts in common, else the name itself."""
    names = StoredNames(
        [
            "language_model.model.layers.0.self_attn.q_proj.weight",
            "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "language_model.lm_head.weight",
        ]
    )
    assert names.of("model.language_model.layers.0.self_attn.q_proj.weight").startswith("language_model.")
    assert names.of("model.vision_tower.encoder.layers.0.self_attn.q_proj.weight").startswith("vision_tower.")
    assert names.of("lm_head.weight") == "language_model.lm_head.weight"
    assert names.of("something.else") == "something.else"


def test_the_library_is_left_as_it_was() -> None:
    """Silence and staying offline end with the check: the program that asked goes on as before, also after a failure."""
    import huggingface_hub.constants  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    def state() -> tuple[object, ...]:
        return huggingface_hub.constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()

    before = state()
    with contextlib.suppress(ZeroDivisionError), quietly():
        assert state() == (True, 50, False)
        raise ZeroDivisionError
    assert state() == before


# The command.


def test_the_command_prints_what_it_found(run: Run, llava: Path) -> None:
    """A folder that loads is told on stdout in a few lines; nothing of the library's own chatter is anywhere."""
    done = run("check", llava)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"checked         {llava}",
        "loads as        LlavaForConditionalGeneration, in transformers",
        "tensors         80, all that the model has and no other",
        "parameters      75,016",
        f"tokenizer       {ROWS} tokens",
    ]


def test_the_command_fails_with_its_findings(run: Run, llava: Path) -> None:
    """Findings are lines on stdout, those of tensors that differ in a number alone as one, and the exit code is 6."""

    def change(given: Tensors) -> None:
        for layer in range(2):
            del given[f"language_model.model.layers.{layer}.mlp.up_proj.weight"]

    edit_tensors(llava, change)
    edit(llava / "generation_config.json", lambda ids: ids.update(eos_token_id=1))
    done = run("check", "-q", llava)
    assert done.returncode == 6
    assert done.stdout.splitlines() == [
        (
            "FAILED          model.safetensors: tensor model.language_model.layers.{0-1}.mlp.up_proj.weight: is missing:"
            f" expected [{3 * HIDDEN - 4}, {HIDDEN}]"
        ),
        "FAILED          generation_config.json: eos_token_id is not the tokenizer's: found 1, expected 2 (</s>)",
    ]
    remedy = "make it again with deltaweights export, or with apply --layout transformers"
    assert done.stderr == f"deltaweights: error: {llava}: 3 problems; {remedy}\n"


def test_the_command_passes_a_folder_without_a_tokenizer(run: Run, tmp_path: Path) -> None:
    """In the original layout a tokenizer that is not there is a warning, and the lines that remain are printed."""
    folder = make_original(tmp_path / "original")
    (folder / "tokenizer.json").unlink()
    done = run("check", folder)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [
        "loads as        LlavaLlamaForCausalLM, in the original LLaVA code",
        "tensors         25, all that the model has and no other",
        "parameters      44,992",
    ]
    loads_none = "tokenizer_config.json: transformers loads no tokenizer: found no tokenizer.json or tokenizer.model or vocab.json"
    assert done.stderr.splitlines() == [
        f"deltaweights: warning: {folder}: {loads_none}",
        (
            f"deltaweights: warning: {folder}: config.json: pad_token_id is not among the embeddings: found -1, expected 0 to"
            f" {ROWS - 1}"
        ),
        (
            f"{folder}: current transformers does not load this layout; deltaweights apply --layout transformers, or deltaweights"
            " export, writes a folder that it loads"
        ),
    ]


def test_the_command_gives_json(run: Run, tmp_path: Path) -> None:
    """The JSON object is the report; warnings are in it, and not on stderr as well."""
    folder = make_original(tmp_path / "original")
    done = run("check", "--json", folder)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["ok"]
    assert [str(Problem(**row)) for row in told["warnings"]] == PUBLISHED
    assert (told["model_class"], told["problems"]) == ("LlavaLlamaForCausalLM", [])


# The end of patience.


LIMITED = """
import sys
from deltaweights.inference import time_limit
time_limit.SECONDS, time_limit.GRACE = {seconds}, {grace}
{more}
from deltaweights.cli import main
main()
"""


def limited(folder: Path, more: str = "", seconds: int = 4, grace: int = 30) -> subprocess.CompletedProcess[str]:
    """Run ``deltaweights check`` with another limit on its time."""
    script = LIMITED.format(seconds=seconds, grace=grace, more=more)
    command = [sys.executable, "-c", script, "check", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_a_check_that_the_library_takes_too_long_for_is_ended(llava: Path) -> None:
    """A model of as many layers as there may be is made one by one; the check ends with 6, in one line."""
    layers = 2048
    edit_tensors(llava, lambda given: given.update({f"t{number}": torch.zeros(0) for number in range(layers)}))
    edit(llava / "config.json", lambda config: config["text_config"].update(num_hidden_layers=layers))
    done = limited(llava)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == (
        f"deltaweights: error: {llava}: the library takes more than 4 seconds of the processor; do not use this folder; its"
        " documents are not those of a model\n"
    )


def test_code_that_hears_of_no_signal_is_ended_by_the_system(llava: Path) -> None:
    """The library's compiled parts may: then it is the system's limit that counts."""
    deaf = "from deltaweights.inference import structure; structure.read_folder = lambda folder: sum(range(10**12))"
    assert limited(llava, deaf, seconds=4, grace=1).returncode == -signal.SIGXCPU


def test_a_child_whose_time_is_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever merges with --check is told the same."""
    stub = tmp_path / "stub"
    stub.write_text(f"#!/bin/sh\necho 'deltaweights: error: {tmp_path}: the library takes too long' >&2; exit 6\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    with pytest.raises(CheckFailed, match=r"^target: the library takes too long$"):
        check_in_child(tmp_path, Path("target"), Heard())


def test_a_vocabulary_that_no_model_has_is_not_loaded(llava: Path) -> None:
    """A tokenizer of more than 64 MiB is refused unread."""
    with open(llava / "tokenizer.json", "ab") as file:
        file.truncate(LARGEST_VOCABULARY + 1)
    report = check_structure(llava)
    assert lines(report.problems) == [
        "tokenizer.json: states a size that no model has: found 67,108,865 bytes, more than any tokenizer has"
    ]


# The child.


def test_a_child_checks_and_passes_warnings_on(tmp_path: Path) -> None:
    """A good folder raises nothing; its warnings arrive at the report, with the folder's name."""
    folder, heard = make_original(tmp_path / "original"), Heard()
    check_in_child(folder, folder, heard)
    assert heard.warnings == [f"{folder}: {line}" for line in PUBLISHED]


def test_a_child_raises_what_the_check_found(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first problem is the parent's error, named by the target; a false package where the user stands is not imported."""
    edit(llava / "generation_config.json", lambda ids: ids.update(eos_token_id=1))
    (llava.parent / "deltaweights").mkdir()
    (llava.parent / "deltaweights" / "__main__.py").write_text('print(\'{"problems": [], "warnings": []}\')')
    (llava.parent / "json.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(llava.parent)
    with pytest.raises(CheckFailed) as error:
        check_in_child(Path("llava"), Path("target"), Heard())
    line = "generation_config.json: eos_token_id is not the tokenizer's: found 1, expected 2 (</s>)"
    assert str(error.value) == f"target: {line}"


def test_a_child_raises_the_errors_of_the_check(tmp_path: Path) -> None:
    """What ends the check ends the parent with the same class and words, under the target's name."""
    missing = tmp_path / "missing"
    with pytest.raises(InputOutputError) as error:
        check_in_child(missing, tmp_path / "target", Heard())
    assert str(error.value) == (
        f"{tmp_path / 'target'}: no checkpoint here: found nothing; give the folder that holds the checkpoint's weights"
    )


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo Traceback >&2; echo 'ValueError: a bug' >&2; exit 1", "ValueError: a bug"),
        ("exit 0", "no report"),
        ("echo '{}'; exit 6", "no report"),
        ("kill -9 $$", "signal 9"),
    ],
    ids=["a-bug", "silence", "another-report", "killed"],
)
def test_a_child_that_breaks_is_told(script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that ends in any other way, killed for memory say, is a failed one, with its last words."""
    stub = tmp_path / "stub"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    with pytest.raises(CheckFailed) as error:
        check_in_child(tmp_path, Path("target"), Heard())
    assert str(error.value) == f"target: the check itself failed: found {told}"


def test_a_child_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an interpreter to start there is no check, and the system's reason is told."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(InputOutputError, match="cannot start the check: No such file or directory"):
        check_in_child(tmp_path, Path("target"), Heard())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number: signal.Signals, llava: Path) -> None:
    """A signal that ends the parent, which alone gets it, ends the child, too."""
    program = f"""
import click
from pathlib import Path
from deltaweights.util import interruption
from deltaweights.cli.run import run
from deltaweights.report import Report
from deltaweights.inference import child

@click.command()
def command():
    print("begun", flush=True)
    child.check_in_child(Path({str(llava)!r}), Path("target"), Report())

interruption.listen()
raise SystemExit(run(command, "program"))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        if not children.exists():
            parent.kill()
            pytest.skip("a system that does not list children")
        until = time.monotonic() + PATIENCE
        while not (child := children.read_text().split()) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)  # so that it is within Python, with its own handlers of signals or before
        parent.send_signal(number)
        _, errors = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 128 + number
    assert errors == f"program: error: {'interrupted' if number == signal.SIGINT else 'terminated'}\n"
    assert child
    assert not Path(f"/proc/{child[0]}").exists()


# A model of 7 billion weights, of which none is there.


def make_7b(folder: Path) -> int:
    """Save the headers of a LLaVA-Med 7B in float16, over weights that are holes; return the bytes that they would have."""
    make_llava(folder)
    for path in folder.glob("model*"):
        path.unlink()
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32004, pad_token_id=ROWS - 4)
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=id_of("<im_patch>"),
        image_seq_length=256,
        projector_hidden_act="linear",
        architectures=["LlavaForConditionalGeneration"],
    )
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    place, header = 0, {}
    for name, weight in model.state_dict().items():
        size = 2 * weight.numel()
        header[stored_name(name)] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": [place, place + size]}
        place += size
    data = json.dumps(header, separators=(",", ":")).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + place)
    config.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    edit(folder / "preprocessor_config.json", lambda given: given.update(sizes))
    return place


@pytest.mark.slow
def test_a_check_of_7b_reads_no_weights(tmp_path: Path) -> None:
    """14 GB of weights are checked by reading a small part of that, in little memory, mapped or not, and in seconds."""
    total = make_7b(tmp_path / "big")
    program = f"""
from pathlib import Path
from deltaweights.inference.structure import check_structure
report = check_structure({str(tmp_path / "big")!r})
read = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines()).get("rchar", 0)
# Not ru_maxrss: Linux counts the memory of whoever starts a process as that process's peak.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1]
print(report.problems, report.warnings, report.parameters, peak, read)
"""
    if not os.access("/proc/self/io", os.R_OK):
        pytest.skip("a system that does not count what is read")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    problems, warnings, parameters, memory, read = done.stdout.split()
    assert (problems, warnings) == ("()", "()")
    assert 2 * int(parameters) == total
    assert total > 14 * 10**9
    assert int(memory) * 1024 < 10**9
    assert int(read) < 10**9  # Python's own modules, mostly: three times what was measured
    assert seconds < 60  # of processor time; 4 on a machine with nothing else to do
