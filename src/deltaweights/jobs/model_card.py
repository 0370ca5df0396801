"""The model card: README.md of every folder that is written, for people and, in its YAML head, for the Hub.

The head's keys: https://huggingface.co/docs/hub/model-cards. ``huggingface_hub`` is not used: every value is a constant or a Hub
id, which need no quoting in YAML, and importing its card class takes an eighth of a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from deltaweights.errors import printable
from deltaweights.recipes.table import NAME, REPO, URL

MAX_FOREIGN_TEXT = 300  # characters


class _Kind(NamedTuple):
    what: str
    primary: str
    relation: str | None


_MERGE = _Kind("Merged weights: base + delta, tensor by tensor.", "Delta", "merge")

KINDS = {
    "merge": _MERGE,
    "export": _MERGE,
    "delta": _Kind("Delta weights: target - base, tensor by tensor; of no use without the base.", "Target", "adapter"),
    "copy": _Kind("Converted weights: those of the source, in another form.", "Source", None),
}
"""The description, the name of the primary, and the Hub's term for the relation to ``base_model``; it has none for a copy."""


@dataclass(frozen=True)
class Origin:
    """An input: its id on the Hub, its commit, its content digest; None where unknown."""

    repo: str | None = None
    commit: str | None = None
    digest: str | None = None

    @property
    def hub_id(self) -> str | None:
        """The repository, if it is a valid Hub id."""
        return self.repo if self.repo is not None and REPO.accepts(self.repo) else None


@dataclass(frozen=True)
class CardFacts:
    """The facts of a card; None where one is unknown.

    ``kind`` is one of ``KINDS``, ``layout`` "original" or "transformers". ``primary`` is the delta of a merge, the target of a
    delta, or the source of a copy, which needs no ``base``. ``digest`` is the content digest of the result, ``original_digest``
    that of the model in the original layout. ``known``: the architecture is known here. ``conversation`` is the name of the chat
    template, which implies the family; ``images``: the model takes images. Dtypes are torch's names, such as "float16".
    ``settings`` are further names and values; ``notices`` and ``sources`` are the recipe's, ``own_recipe``: it is a file's.
    """

    kind: str
    layout: str
    digest: str
    primary: Origin
    base: Origin = Origin()
    original_digest: str | None = None
    known: bool = True
    vision_tower: Origin | None = None
    images: bool = False
    recipe: str | None = None
    own_recipe: bool = False
    title: str | None = None
    conversation: str | None = None
    compute_dtype: str | None = None
    stored_dtype: str | None = None
    container: str = "safetensors"
    settings: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()


LLAMA = "[LLaMA](https://arxiv.org/abs/2302.13971)"
VICUNA = "[Vicuna](https://lmsys.org/blog/2023-03-30-vicuna/)"
LLAVA = "[LLaVA](https://arxiv.org/abs/2304.08485)"

LLAVA_MED_ENTRY = """\
@inproceedings{li2023llavamed,
  title = {{LLaVA-Med}: Training a Large Language-and-Vision Assistant for Biomedicine in One Day},
  author = {Li, Chunyuan and Wong, Cliff and Zhang, Sheng and Usuyama, Naoto and Liu, Haotian and Yang, Jianwei and
            Naumann, Tristan and Poon, Hoifung and Gao, Jianfeng},
  booktitle = {Advances in Neural Information Processing Systems, Datasets and Benchmarks Track},
  year = {2023}, eprint = {2306.00890}, archivePrefix = {arXiv}}"""
LLAVA_ENTRY = """\
@inproceedings{liu2023llava,
  title = {Visual Instruction Tuning},
  author = {Liu, Haotian and Li, Chunyuan and Wu, Qingyang and Lee, Yong Jae},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}, eprint = {2304.08485}, archivePrefix = {arXiv}}"""
VICUNA_ENTRY = """\
@misc{vicuna2023,
  title = {Vicuna: An Open-Source Chatbot Impressing {GPT-4} with 90\\%* {ChatGPT} Quality},
  author = {Chiang, Wei-Lin and Li, Zhuohan and Lin, Zi and Sheng, Ying and Wu, Zhanghao and Zhang, Hao and Zheng, Lianmin and
            Zhuang, Siyuan and Zhuang, Yonghao and Gonzalez, Joseph E. and Stoica, Ion and Xing, Eric P.},
  year = {2023}, url = {https://lmsys.org/blog/2023-03-30-vicuna/}}"""
ALPACA_ENTRY = """\
@misc{alpaca,
  title = {Stanford Alpaca: An Instruction-following {LLaMA} model},
  author = {Rohan Taori and Ishaan Gulrajani and Tianyi Zhang and Yann Dubois and Xuechen Li and Carlos Guestrin and
            Percy Liang and Tatsunori B. Hashimoto},
  year = {2023}, url = {https://github.com/tatsu-lab/stanford_alpaca}}"""


class _Family(NamedTuple):
    tags: tuple[str, ...]
    code: str
    entry: str
    ancestors: str


_LLAVA = _Family(("llava",), "[LLaVA](https://github.com/haotian-liu/LLaVA)", LLAVA_ENTRY, f"{VICUNA} and {LLAMA}")
_UNKNOWN = _Family((), "", "", "")
_VICUNA = _Family(("vicuna",), "[FastChat](https://github.com/lm-sys/FastChat)", VICUNA_ENTRY, LLAMA)

FAMILIES = {
    "llava-med": _Family(
        ("llava", "llava-med", "medical"),
        "[LLaVA-Med v1.0.0](https://github.com/microsoft/LLaVA-Med/tree/v1.0.0)",
        LLAVA_MED_ENTRY,
        f"{LLAVA}, {VICUNA} and {LLAMA}",
    ),
    "llava-v0": _LLAVA,
    "llava-v1": _LLAVA,
    "vicuna-v0": _VICUNA,
    "vicuna-v1.1": _VICUNA,
    "alpaca": _Family(("alpaca",), "[Alpaca](https://github.com/tatsu-lab/stanford_alpaca)", ALPACA_ENTRY, LLAMA),
}
"""By the name of the conversation: tags, the models' own code, how to cite them, and what they were made from."""

LOAD_VISION = """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER", torch_dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained("FOLDER")
question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
prompt = processor.apply_chat_template(question, add_generation_prompt=True)
inputs = processor(images=Image.open("IMAGE").convert("RGB"), text=prompt, return_tensors="pt").to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=256, do_sample=False, stop_strings=STOP, tokenizer=processor.tokenizer)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

With `apply_chat_template(question, conv_mode="multimodal")` the prompt is that of the original demo. The original's projector is
one linear layer, `linear_1` here; `linear_2` is the identity. That is exact: do not quantize `linear_2`, and leave TF32 off."""

LOAD_VISION_2023 = """\
```python
from llava import LlavaLlamaForCausalLM

model = LlavaLlamaForCausalLM.from_pretrained("FOLDER", torch_dtype="auto")
```

Current transformers loads what this writes:

```console
$ deltaweights export FOLDER --target OUT
```"""

LOAD_TEXT = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", torch_dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
"""

GENERATE_TEXT = """\
prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello!"}], add_generation_prompt=True, tokenize=False)
inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
answer = model.generate(**inputs, max_new_tokens=256, do_sample=False, stop_strings=STOP, tokenizer=tokenizer)
print(tokenizer.decode(answer[0], skip_special_tokens=True))
"""


def model_card(facts: CardFacts) -> bytes:
    """Return the card: a head of YAML and a page of Markdown, in UTF-8."""
    family = FAMILIES.get(facts.conversation or "", _UNKNOWN)
    head = "\n".join(("---", *_head(facts, family), "---"))
    title = _text(facts.title or "") or KINDS[facts.kind].what.partition(":")[0]
    provenance = "\n".join(_provenance(facts))
    parts = [head, f"# {title}", _notice(facts), KINDS[facts.kind].what, f"## How it was made\n\n{provenance}"]
    parts += ["## Verify", *_verify(facts), "## Load", *_load(facts, family), "## Cite", _cite(family)]
    return ("\n\n".join(parts) + "\n").encode()


def _head(facts: CardFacts, family: _Family) -> Iterator[str]:
    yield from ("license: other", "license_name: research-only")
    if facts.kind != "delta":
        if facts.known and (facts.layout == "transformers" or not facts.images):
            yield "library_name: transformers"
        if facts.known:
            yield f"pipeline_tag: {'image-text-to-text' if facts.images else 'text-generation'}"
    relation = KINDS[facts.kind].relation
    parents = [facts.base] if facts.kind == "delta" else [facts.base, facts.primary]
    repos = [origin.hub_id for origin in parents if origin.hub_id is not None]
    if repos and relation is not None:
        yield from ("base_model:", *(f"- {repo}" for repo in repos), f"base_model_relation: {relation}")
    of_delta = () if relation is None else ("delta-weights",)
    tags = ["not-for-clinical-use", "research-only", *family.tags, *of_delta]
    yield from ("tags:", *(f"- {tag}" for tag in sorted(tags)))


def _notice(facts: CardFacts) -> str:
    lines = (
        "**Research use only. Not for clinical care or any clinical decision making.**",
        "**Subject to the terms of LLaMA, Vicuna and GPT-4, as far as they had a part in it, and to its makers' licences.**",
        *map(_text, facts.notices),
        "`DELTAWEIGHTS_NOTICE.txt` is part of this notice.",
    )
    return "\n>\n".join(f"> {line}" for line in lines)


def _provenance(facts: CardFacts) -> Iterator[str]:
    primary = KINDS[facts.kind].primary
    if facts.kind != "copy":
        yield f"- Base: {_origin(facts.base)}"
    yield f"- {primary}: {_origin(facts.primary)}"
    if facts.images and (facts.layout == "transformers" or facts.vision_tower is not None):
        yield f"- Vision tower: {_origin(facts.vision_tower or Origin())}"
    yield f"- Recipe: {_code(facts.recipe) if facts.recipe else 'none'}"
    if facts.kind != "copy":
        yield f"- Arithmetic: in {_code(facts.compute_dtype)}"
    yield f"- Written as {_code(facts.stored_dtype)}, in {_code(facts.container)}, layout {_code(facts.layout)}"
    yield from (f"- {_text(name)}: {_text(value)}" for name, value in facts.settings)
    yield f"- Sources: {', '.join(map(_link, facts.sources)) or 'unknown'}"
    if facts.kind != "copy":
        yield f"- The {primary.lower()}'s own card: `{primary.upper()}_README.md`, where it had one"


def _origin(origin: Origin) -> str:
    name = _code(origin.repo) if origin.repo else "repository unknown"
    linked = f"[{name}](https://huggingface.co/{origin.hub_id})" if origin.hub_id is not None else name
    return f"{linked}, commit {_code(origin.commit)}, content digest {_code(origin.digest)}"


def _verify(facts: CardFacts) -> Iterator[str]:
    digest = f"Content digest: {_code(facts.digest)}"
    if facts.original_digest:
        digest += f"; of the same model in the original layout: {_code(facts.original_digest)}"
    yield digest
    expect = f" --expect {facts.digest}" if re.fullmatch("dw1:[0-9a-f]{64}", facts.digest) else ""
    yield f"```console\n$ sha256sum -c --quiet SHA256SUMS\n$ deltaweights verify .{expect}\n```"


def _load(facts: CardFacts, family: _Family) -> Iterator[str]:
    stop = json.dumps(facts.stop_strings) if facts.stop_strings else "None"
    if facts.kind == "delta":
        option = f" --compute-dtype {facts.compute_dtype}" if facts.compute_dtype in {"float32", "bfloat16"} else ""
        if facts.recipe is not None:
            option = f" --recipe {'FILE.toml' if facts.own_recipe or not NAME.accepts(facts.recipe) else facts.recipe}"
        yield f"```console\n$ deltaweights apply --base {facts.base.hub_id or 'BASE'} --delta FOLDER --target OUT{option}\n```"
    elif not facts.known:
        yield "Not known here."
    elif facts.layout == "transformers" and facts.images:
        yield LOAD_VISION.replace("STOP", stop)
    elif facts.images:
        yield f"For the code of its time{family.code and f', {family.code}'}:\n\n{LOAD_VISION_2023}"
    else:
        generate = GENERATE_TEXT if facts.layout == "transformers" and facts.conversation is not None else ""
        yield f"{LOAD_TEXT}{generate.replace('STOP', stop)}```"
        if facts.layout == "original" and facts.kind != "copy":
            yield "A tokenizer of 2023 that does not load is repaired by `deltaweights export FOLDER --target OUT`."


def _cite(family: _Family) -> str:
    if not family.entry:
        return "Unknown: its makers say how."
    return f"```bibtex\n{family.entry}\n```\n\nand what it was made from: {family.ancestors}."


def _text(text: str) -> str:
    """Return foreign text on one line, escaped so that Markdown shows it literally."""
    line = printable(" ".join(text.split())[:MAX_FOREIGN_TEXT])
    return re.sub(r"[\\`*_{}\[\]<>&|~$#]|^[-+=]", r"\\\g<0>", line)


def _code(text: str | None) -> str:
    """Return foreign text as code, between more backticks than it contains; "unknown" when there is none."""
    line = printable(" ".join((text or "").split())[:MAX_FOREIGN_TEXT])
    if not line:
        return "unknown"
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def _link(url: str) -> str:
    return f"<{url.replace('<', '%3C').replace('>', '%3E')}>" if URL.accepts(url) else _code(url)
