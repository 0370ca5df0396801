"""``check_structure`` finds what transformers itself would report, without reading weights."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
)

from deltaweights.errors import CheckFailed
from deltaweights.inference.findings import Finding
from deltaweights.inference.structure import check_structure
from deltaweights.inference.transformers_loader import quiet_and_offline
from tests.support.errors import refused
from tests.support.limits import PATIENCE
from tests.support.model_changes import (
    Change,
    both,
    document,
    remove,
    set_config,
    set_shape,
    set_text,
    template,
    tensors,
)
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
    published_ids,
    stored_name,
    tokenizer,
)

ROWS = len(tokenizer())


FIRST, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


INDEX = "model.safetensors.index.json"


Fact = tuple[str, str | None, str | None, str | None]


def fact(file: str, *, tensor: str | None = None, found: str | None = None, expected: str | None = None) -> Fact:
    """Return what a finding must say."""
    return file, tensor, found, expected


def facts(findings: tuple[Finding, ...]) -> list[Fact]:
    """Return what findings say."""
    return [fact(each.file, tensor=each.tensor, found=each.found, expected=each.expected) for each in findings]


def fewer_rows(given: Tensors) -> None:
    """Cut the last row off both ends of the language model."""
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        given[name] = given[name][:-1].clone()


def begins_with_eos(document: dict[str, Any]) -> None:
    """Have a text begin with ``</s>``."""
    processor = json.dumps(document["post_processor"])
    document["post_processor"] = json.loads(processor.replace('"<s>"', '"</s>"').replace("[1]", "[2]"))


UP = "language_model.model.layers.1.mlp.up_proj.weight"


DAMAGE: dict[str, tuple[Change, list[Fact] | None]] = {
    "missing-tensor": (
        tensors(lambda given: given.pop(UP)),
        [
            fact(
                "model.safetensors",
                tensor="model.language_model.layers.1.mlp.up_proj.weight",
                expected=f"[{3 * HIDDEN - 4}, {HIDDEN}]",
            )
        ],
    ),
    "missing-output": (
        tensors(lambda given: given.pop("language_model.lm_head.weight")),
        [fact("model.safetensors", tensor="lm_head.weight", expected=f"[{ROWS}, {HIDDEN}]")],
    ),
    "unexpected-tensor": (
        set_shape("language_model.model.layers.1.extra.weight", 3),
        [fact("model.safetensors", tensor="language_model.model.layers.1.extra.weight")],
    ),
    "wrong-shape": (
        set_shape("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", 3, 4),
        [
            fact(
                "model.safetensors",
                tensor="vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
                found="[3, 4]",
                expected=f"[{FEATURES}, {FEATURES}]",
            )
        ],
    ),
    "wrong-shape-of-the-same-name-in-both-halves": (
        set_shape("language_model.model.layers.0.self_attn.q_proj.weight", 3, 4),
        [
            fact(
                "model.safetensors",
                tensor="language_model.model.layers.0.self_attn.q_proj.weight",
                found="[3, 4]",
                expected=f"[{HIDDEN}, {HIDDEN}]",
            )
        ],
    ),
    "tied-and-both-stored": (
        both(set_text(tie_word_embeddings=True), set_config(tie_word_embeddings=True)),
        [
            fact(
                "config.json",
                found="language_model.lm_head.weight and language_model.model.embed_tokens.weight",
                expected="one of them, or tie_word_embeddings false",
            )
        ],
    ),
    "vocabulary-too-long": (
        both(tensors(fewer_rows), set_text(vocab_size=ROWS - 1)),
        [fact("tokenizer_config.json", found=f"{ROWS} tokens", expected=f"at most {ROWS - 1}")],
    ),
    "vocabulary-of-the-config-alone": (
        set_text(vocab_size=ROWS + 4),
        [
            fact(
                FIRST,
                tensor="language_model.lm_head.weight",
                found=f"[{ROWS}, {HIDDEN}]",
                expected=f"[{ROWS + 4}, {HIDDEN}]",
            ),
            fact(
                FIRST,
                tensor="language_model.model.embed_tokens.weight",
                found=f"[{ROWS}, {HIDDEN}]",
                expected=f"[{ROWS + 4}, {HIDDEN}]",
            ),
        ],
    ),
    "wrong-eos-in-generation": (
        document("generation_config.json", lambda ids: ids.update(eos_token_id=1)),
        [fact("generation_config.json", found="1", expected="2 (</s>)")],
    ),
    "wrong-eos-in-the-text-model": (
        set_text(eos_token_id=1),
        [fact("config.json", found="1", expected="2 (</s>)")],
    ),
    "wrong-bos-at-the-top": (
        set_config(bos_token_id=0),
        [fact("config.json", found="0", expected="1 (<s>)")],
    ),
    "wrong-pad": (
        document("generation_config.json", lambda ids: ids.update(pad_token_id=0)),
        [fact("generation_config.json", found="0", expected=f"{ROWS - 4} ([PAD])")],
    ),
    "several-ends-of-which-none-is-right": (
        document("generation_config.json", lambda ids: ids.update(eos_token_id=[0, 1])),
        [fact("generation_config.json", found="[0, 1]", expected="2 (</s>)")],
    ),
    "an-end-outside-the-embeddings": (
        document("generation_config.json", lambda ids: ids.update(eos_token_id=[2, 9999])),
        [fact("generation_config.json", found="[2, 9999]", expected=f"0 to {ROWS - 1}")],
    ),
    "an-end-that-is-no-number": (
        document("generation_config.json", lambda ids: ids.update({"eos_token_id": "</s>"})),
        [fact("generation_config.json", found="</s>")],
    ),
    "wrong-image-token": (
        set_config(image_token_index=5),
        [fact("config.json", found="5", expected=f"{id_of('<im_patch>')} (<im_patch>)")],
    ),
    "image-token-that-is-none": (
        document("processor_config.json", lambda processor: processor.update({"image_token": "<image>"})),
        None,
    ),
    "wrong-image-count": (
        document("processor_config.json", lambda processor: processor.update(num_additional_image_tokens=0)),
        [
            fact(
                "processor_config.json",
                found=f"{PATCHES - 1}",
                expected=f"{PATCHES}, the features of the vision tower",
            )
        ],
    ),
    "wrong-image-length": (
        set_config(image_seq_length=576),
        [fact("config.json", found="576", expected=f"{PATCHES}")],
    ),
    "no-tokenizer": (
        remove("tokenizer.json"),
        [fact("tokenizer_config.json", found="no tokenizer.json or tokenizer.model or vocab.json")],
    ),
    "more-layers-than-tensors": (
        set_text(num_hidden_layers=10**9),
        [fact("config.json", found="num_hidden_layers is 1,000,000,000, and the folder has 80 tensors")],
    ),
    "a-vision-layer-that-is-none": (
        set_config(vision_feature_layer=-5),
        [fact("config.json", found="-5", expected="-4 to 3, the layers of the vision tower")],
    ),
    "a-list-of-a-vision-layer-that-is-none": (
        set_config(vision_feature_layer=[4]),
        [fact("config.json", found="[4]", expected="-4 to 3, the layers of the vision tower")],
    ),
    "a-template-that-refuses": (
        template("{{ raise_exception('not today') }}"),
        [fact("chat_template.jinja", found="not today")],
    ),
    "a-template-that-is-none": (template("{% for %}"), None),
    "a-template-that-runs-for-ever": (
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        [fact("chat_template.jinja", found="the template runs for more than 2 seconds")],
    ),
    "a-template-larger-than-memory": (
        template("{% set a = 'x' * 4000000000 %}{{ a }}"),
        [fact("chat_template.jinja", found="MemoryError")],
    ),
    "a-template-without-end": (
        template("{{ 'x' * 2000000 }}"),
        [fact("chat_template.jinja", found="the template makes 2,000,000 characters of one question")],
    ),
    "a-template-without-the-question": (
        template("<im_patch>"),
        [fact("chat_template.jinja", found="<im_patch>")],
    ),
    "a-template-without-the-image": (
        template("{{ messages[0].content[1].text }}"),
        [fact("chat_template.jinja", found="0", expected="1 <im_patch>")],
    ),
    "a-template-that-leaves-the-image-open": (
        template("<im_start><im_patch>{{ messages[0].content[1].text }}"),
        [fact("chat_template.jinja", found="1 and 0")],
    ),
    "a-text-that-begins-otherwise": (
        document("tokenizer.json", begins_with_eos),
        [fact("tokenizer_config.json", found="2 (</s>)", expected="1 (<s>)")],
    ),
    "a-template-that-begins-otherwise": (
        template("</s>{{ messages[0].content[1].text }}<im_patch>"),
        [fact("chat_template.jinja", found="</s>", expected="<s>")],
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
"""A change to a folder, and the problems it causes; None for those in ``OTHERS_WORDS``."""


OTHERS_WORDS = {
    "a-template-that-is-none": ("chat_template.jinja", "Expected an expression"),
    "a-tokenizer-that-panics": ("tokenizer_config.json", "Precompiled: Error("),
    "image-token-that-is-none": ("processor_config.json", "<image>, "),
    "unknown-model-type": ("config.json", ""),
    "a-tokenizer-that-is-none": ("tokenizer_config.json", ""),
    "no-processor": ("processor_config.json", ""),
}
"""The file, and how what was found begins, where the rest is in the library's words, which change."""


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


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(name: str, llava: Path) -> None:
    """Each fault gives exactly its findings, and the first of them when the report is asked to fail."""
    change, expected = DAMAGE[name]
    change(llava)
    report = check_structure(llava)
    first = str(report.problems[0])
    if expected is None:
        file, words = OTHERS_WORDS[name]
        (found,) = report.problems
        assert (found.file, found.tensor, found.expected) == (file, None, None)
        assert (found.found or "").startswith(words)
        assert "\n" not in first
        assert len(first) < 500
    else:
        assert facts(report.problems) == expected
    assert not report.ok
    more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
    with refused(CheckFailed, where=llava, problem=f"{first}{more}"):
        report.raise_if_failed()


@pytest.mark.parametrize("name", ["missing-tensor", "missing-output", "unexpected-tensor", "wrong-shape"])
def test_the_library_says_the_same_when_it_loads_the_weights(name: str, llava: Path) -> None:
    """What is listed from headers is what ``from_pretrained`` lists when it really loads the folder."""
    DAMAGE[name][0](llava)
    with quiet_and_offline():
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
    assert facts(report.warnings) == [fact("tokenizer_config.json")]


def test_a_text_models_template_is_rendered(tmp_path: Path) -> None:
    """A plain LLaMA that does not claim to run is warned of a template that fails; one with no template has nothing to tell."""
    folder = make_llama(tmp_path / "llama")
    template("{{ messages.none.at_all }}")(folder)
    report = check_structure(folder)
    assert report.ok
    assert report.warnings[0].file == "chat_template.jinja"
    (folder / "chat_template.jinja").unlink()
    assert check_structure(folder).warnings == ()


def test_several_ends_with_the_right_one_pass(llava: Path) -> None:
    """A generation may end at several tokens, as long as the tokenizer's is among them."""
    edit(llava / "generation_config.json", lambda ids: ids.update(eos_token_id=[2, 5]))
    assert check_structure(llava).ok


def test_the_librarys_default_counts_where_nothing_is_stated(llava: Path) -> None:
    """An id that config.json leaves out is the one that transformers puts there, and is told as such."""
    edit(llava / "config.json", lambda config: config["text_config"].pop("bos_token_id"))
    edit(llava / "tokenizer_config.json", lambda config: config.update(bos_token="<im_end>"))  # noqa: S106
    found = facts(check_structure(llava).problems)
    assert found[0] == fact("config.json", found="1, transformers' default", expected=f"{ROWS - 1} (<im_end>)")


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
        f"tokenizer_config.json: {ROWS} tokens for {ROWS + 4} rows of embeddings; the other rows are unused",
    )


def test_another_class_in_config_is_a_warning(llava: Path) -> None:
    """The class that config.json names is a hint: AutoModel goes by the model_type, and so it loads."""
    set_config(architectures=["LlavaLlamaForCausalLM"])(llava)
    report = check_structure(llava)
    assert report.ok
    due = fact("config.json", found="LlavaLlamaForCausalLM", expected="LlavaForConditionalGeneration")
    assert facts(report.warnings) == [due]


@pytest.mark.sampled(2)
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
    assert [each.file for each in check_structure(llava).problems] == ["config.json"]


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
    wrong = [fact("generation_config.json", found="1", expected="2 (</s>)")]
    assert facts(report.problems) == (wrong if layout == "transformers" else [])
    assert facts(report.warnings) == ([] if layout == "transformers" else wrong)


@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_the_original_layout_passes_with_the_publishers_ids_as_warnings(container: str, tmp_path: Path) -> None:
    """A LLaVA of 2023 is what its own code expects; its wrong ids are told, and which command makes a folder that runs."""
    folder = make_original(tmp_path / "original", container)
    report = check_structure(folder)
    assert report.ok
    assert (report.model_class, report.loads_in) == ("LlavaLlamaForCausalLM", "the original LLaVA code")
    found = [(each.file, each.problem.split()[0], each.found, each.expected) for each in report.warnings]
    assert found == published_ids()
    assert len(report.notes) == 1
    assert report.notes[0].startswith(f"{folder}: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            tensors(lambda given: given.pop("model.mm_projector.bias")),
            fact("model.safetensors", tensor="model.mm_projector.bias", expected=f"[{HIDDEN}]"),
        ),
        (
            set_shape("model.mm_projector.weight", HIDDEN, 5),
            fact(
                "model.safetensors",
                tensor="model.mm_projector.weight",
                found=f"[{HIDDEN}, 5]",
                expected=f"[{HIDDEN}, {FEATURES}]",
            ),
        ),
        (
            tensors(lambda given: given.pop("model.norm.weight")),
            fact("model.safetensors", tensor="model.norm.weight", expected=f"[{HIDDEN}]"),
        ),
        (
            set_shape("multi_modal_projector.linear_1.weight", HIDDEN, FEATURES),
            fact("model.safetensors", tensor="multi_modal_projector.linear_1.weight"),
        ),
    ],
    ids=["projector-missing", "projector-of-another-shape", "norm-missing", "projector-of-the-other-layout"],
)
def test_the_original_layout_is_checked_with_its_projector(change: Change, expected: Fact, tmp_path: Path) -> None:
    """A tensor that the code of 2023 would miss, reshape or ignore is a problem, the one projector of its own included."""
    folder = make_original(tmp_path / "original")
    change(folder)
    assert facts(check_structure(folder).problems) == [expected]


def test_a_projector_that_the_config_does_not_know_is_a_warning(tmp_path: Path) -> None:
    """Where config.json says nothing of a projector, LLaVA's code makes none, and ignores the stored one."""
    folder = make_original(tmp_path / "original")
    edit(folder / "config.json", lambda config: config.pop("use_mm_proj"))
    report = check_structure(folder)
    assert report.ok
    assert "model.mm_projector.weight" in report.warnings[0].problem


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
print([*map(str, report.problems)], [*map(str, report.warnings)], report.parameters, peak, read, sep="\\n")
"""
    if not os.access("/proc/self/io", os.R_OK):
        pytest.skip("a system that does not count what is read")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    problems, warnings, parameters, memory, read = done.stdout.splitlines()
    assert problems == "[]"
    assert warnings.count("', '") == 0  # one: holes are zeros
    assert "its weights are zero, as far as samples tell" in warnings
    assert 2 * int(parameters) == total
    assert total > 14 * 10**9
    assert int(memory) * 1024 < 10**9
    assert int(read) < 10**9  # Python's own modules, mostly: three times what was measured
    assert seconds < 60  # of processor time; 4 on a machine with nothing else to do
