"""Model cards: their bytes depend only on the facts, the Hub's reader parses the head, and foreign text cannot break them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import assume, given
from hypothesis import strategies as st

from deltaweights.export.conversation import conversations
from deltaweights.jobs.model_card import FAMILIES, CardFacts, Origin, model_card
from deltaweights.recipes.table import REPO

NOTICE = (
    "LLaVA-Med is for research use only. It is not for clinical care or for any clinical decision. The merged weights are subject "
    "to the terms of LLaMA, Vicuna and GPT-4, and to the licence of the delta, a Microsoft Research licence."
)

BASE = Origin("huggyllama/llama-7b", "8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16", f"dw1:{'1' * 64}")

DELTA = Origin("microsoft/llava-med-7b-delta", "3cdf72ff9d4f452f29788cef18f8e089ba588f4b", f"dw1:{'2' * 64}")

LLAVA_MED = CardFacts(
    kind="merge",
    layout="transformers",
    digest=f"dw1:{'a' * 64}",
    original_digest=f"dw1:{'b' * 64}",
    base=BASE,
    primary=DELTA,
    vision_tower=Origin("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"),
    images=True,
    recipe="llava-med-7b",
    title="LLaVA-Med v1, 7B",
    conversation="llava-med",
    compute_dtype="float16",
    stored_dtype="float16",
    settings=(("New rows", "kept as they are"), ("Base", "proved")),
    notices=(NOTICE,),
    sources=(
        "https://huggingface.co/microsoft/llava-med-7b-delta",
        "https://github.com/microsoft/LLaVA-Med/tree/v1.0.0",
    ),
    stop_strings=("###",),
)
"""A merge with every fact known."""

MADE = CardFacts(
    kind="delta",
    layout="original",
    digest=f"dw1:{'c' * 64}",
    primary=Origin(digest=f"dw1:{'3' * 64}"),
    compute_dtype="float32",
    stored_dtype="float32",
)
"""A delta of two folders of unknown origin."""

LLAVA_MED_CARD = """\
---
license: other
license_name: research-only
library_name: transformers
pipeline_tag: image-text-to-text
base_model:
- huggyllama/llama-7b
- microsoft/llava-med-7b-delta
base_model_relation: merge
tags:
- delta-weights
- llava
- llava-med
- medical
- not-for-clinical-use
- research-only
---

# LLaVA-Med v1, 7B

> **Research use only. Not for clinical care or any clinical decision making.**
>
> **Subject to the terms of LLaMA, Vicuna and GPT-4, as far as they had a part in it, and to its makers' licences.**
>
> LLaVA-Med is for research use only. It is not for clinical care or for any clinical decision. The merged weights are subject to the terms of LLaMA, Vicuna and GPT-4, and to the licence of the delta, a Microsoft Research licence.
>
> `DELTAWEIGHTS_NOTICE.txt` is part of this notice.

Merged weights: base + delta, tensor by tensor.

## How it was made

- Base: [`huggyllama/llama-7b`](https://huggingface.co/huggyllama/llama-7b), commit `8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16`, content digest `dw1:1111111111111111111111111111111111111111111111111111111111111111`
- Delta: [`microsoft/llava-med-7b-delta`](https://huggingface.co/microsoft/llava-med-7b-delta), commit `3cdf72ff9d4f452f29788cef18f8e089ba588f4b`, content digest `dw1:2222222222222222222222222222222222222222222222222222222222222222`
- Vision tower: [`openai/clip-vit-large-patch14`](https://huggingface.co/openai/clip-vit-large-patch14), commit `32bd64288804d66eefd0ccbe215aa642df71cc41`, content digest unknown
- Recipe: `llava-med-7b`
- Arithmetic: in `float16`
- Written as `float16`, in `safetensors`, layout `transformers`
- New rows: kept as they are
- Base: proved
- Sources: <https://huggingface.co/microsoft/llava-med-7b-delta>, <https://github.com/microsoft/LLaVA-Med/tree/v1.0.0>
- The delta's own card: `DELTA_README.md`, where it had one

## Verify

Content digest: `dw1:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa`; of the same model in the original layout: `dw1:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb`

```console
$ sha256sum -c --quiet SHA256SUMS
$ deltaweights verify . --expect dw1:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
```

## Load

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER", torch_dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained("FOLDER")
question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
prompt = processor.apply_chat_template(question, add_generation_prompt=True)
inputs = processor(images=Image.open("IMAGE").convert("RGB"), text=prompt, return_tensors="pt").to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=256, do_sample=False, stop_strings=["###"], tokenizer=processor.tokenizer)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

With `apply_chat_template(question, conv_mode="multimodal")` the prompt is that of the original demo. The original's projector is
one linear layer, `linear_1` here; `linear_2` is the identity. That is exact: do not quantize `linear_2`, and leave TF32 off.

## Cite

```bibtex
@inproceedings{li2023llavamed,
  title = {{LLaVA-Med}: Training a Large Language-and-Vision Assistant for Biomedicine in One Day},
  author = {Li, Chunyuan and Wong, Cliff and Zhang, Sheng and Usuyama, Naoto and Liu, Haotian and Yang, Jianwei and
            Naumann, Tristan and Poon, Hoifung and Gao, Jianfeng},
  booktitle = {Advances in Neural Information Processing Systems, Datasets and Benchmarks Track},
  year = {2023}, eprint = {2306.00890}, archivePrefix = {arXiv}}
```

and what it was made from: [LLaVA](https://arxiv.org/abs/2304.08485), [Vicuna](https://lmsys.org/blog/2023-03-30-vicuna/) and [LLaMA](https://arxiv.org/abs/2302.13971).
"""  # noqa: E501

MADE_CARD = """\
---
license: other
license_name: research-only
tags:
- delta-weights
- not-for-clinical-use
- research-only
---

# Delta weights

> **Research use only. Not for clinical care or any clinical decision making.**
>
> **Subject to the terms of LLaMA, Vicuna and GPT-4, as far as they had a part in it, and to its makers' licences.**
>
> `DELTAWEIGHTS_NOTICE.txt` is part of this notice.

Delta weights: target - base, tensor by tensor; of no use without the base.

## How it was made

- Base: repository unknown, commit unknown, content digest unknown
- Target: repository unknown, commit unknown, content digest `dw1:3333333333333333333333333333333333333333333333333333333333333333`
- Recipe: none
- Arithmetic: in `float32`
- Written as `float32`, in `safetensors`, layout `original`
- Sources: unknown
- The target's own card: `TARGET_README.md`, where it had one

## Verify

Content digest: `dw1:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc`

```console
$ sha256sum -c --quiet SHA256SUMS
$ deltaweights verify . --expect dw1:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc
```

## Load

```console
$ deltaweights apply --base BASE --delta FOLDER --target OUT --compute-dtype float32
```

## Cite

Unknown: its makers say how.
"""

EVERY = [
    CardFacts(kind, layout, f"dw1:{'e' * 64}", DELTA, BASE, images=images, conversation=conversation)
    for kind in ("merge", "export", "delta", "copy")
    for layout in ("original", "transformers")
    for images in (False, True)
    for conversation in (None, *FAMILIES)
]
"""Facts of every kind, layout and family."""

STRANGERS = ("repo", "commit", "digest")
"""Fields of an input."""

TEXTS = ("digest", "original_digest", "recipe", "title", "conversation", "compute_dtype", "stored_dtype", "container")
"""Fields of the facts that are text."""


def everywhere(text: str) -> CardFacts:
    """Return facts with ``text`` in every field that takes text."""
    origin = Origin(**dict.fromkeys(STRANGERS, text))
    lists: dict[str, Any] = {
        "settings": ((text, text),),
        "notices": (text,),
        "sources": (text,),
        "stop_strings": (text,),
    }
    texts: dict[str, Any] = dict.fromkeys(TEXTS, text)
    return replace(LLAVA_MED, base=origin, primary=origin, vision_tower=origin, **texts, **lists)


def load(facts: CardFacts, folder: Path) -> tuple[dict[str, Any], str]:
    """Return head and text of the card of ``facts``, as huggingface_hub reads them from a file."""
    path = folder / "README.md"
    path.write_bytes(model_card(facts))
    return read(ModelCard.load(path))


def read(card: ModelCard) -> tuple[dict[str, Any], str]:
    """Return head and text of a card."""
    return card.data.to_dict(), card.text  # type: ignore[no-untyped-call]


def lines_of(facts: CardFacts) -> list[str]:
    """Return the lines of a card, without the line breaks."""
    return model_card(facts).decode().split("\n")


def blocks(facts: CardFacts, language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", model_card(facts).decode(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("facts", "expected"), [(LLAVA_MED, LLAVA_MED_CARD), (MADE, MADE_CARD)], ids=["llava-med", "made"]
)
def test_the_bytes_of_a_card_are_pinned(facts: CardFacts, expected: str) -> None:
    """A merge with all facts and a delta with none have exactly these cards."""
    assert model_card(facts) == expected.encode()


def test_another_process_writes_the_same_card() -> None:
    """A card does not depend on the process: neither on the order of sets nor on anything else."""
    names = "from tests.unit.jobs.test_model_card import LLAVA_MED, model_card"
    program = f"import sys; {names}; sys.stdout.buffer.write(model_card(LLAVA_MED))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3]), "TZ": "Asia/Tokyo"},
        )
        assert done.stdout == LLAVA_MED_CARD.encode()


def test_the_hub_reads_every_field_of_the_head(tmp_path: Path) -> None:
    """huggingface_hub parses licence, bases, relation, task, library and tags, and the text below the head."""
    head, text = load(LLAVA_MED, tmp_path)
    assert head == {
        "license": "other",
        "license_name": "research-only",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": ["huggyllama/llama-7b", "microsoft/llava-med-7b-delta"],
        "base_model_relation": "merge",
        "tags": ["delta-weights", "llava", "llava-med", "medical", "not-for-clinical-use", "research-only"],
    }
    assert text.startswith("\n# LLaVA-Med v1, 7B\n")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(LLAVA_MED, kind="export"), ("merge", ["base", "lead"], "image-text-to-text", "transformers")),
        (replace(LLAVA_MED, layout="original"), ("merge", ["base", "lead"], "image-text-to-text", None)),
        (replace(LLAVA_MED, images=False), ("merge", ["base", "lead"], "text-generation", "transformers")),
        (
            replace(LLAVA_MED, layout="original", images=False),
            ("merge", ["base", "lead"], "text-generation", "transformers"),
        ),
        (replace(LLAVA_MED, base=Origin()), ("merge", ["lead"], "image-text-to-text", "transformers")),
        (replace(LLAVA_MED, primary=Origin(), base=Origin()), (None, None, "image-text-to-text", "transformers")),
        (replace(LLAVA_MED, kind="delta"), ("adapter", ["base"], None, None)),
        (replace(LLAVA_MED, kind="copy", images=False), (None, None, "text-generation", "transformers")),
    ],
    ids=["export", "original", "text", "text-original", "base-unknown", "both-unknown", "delta", "copy"],
)
def test_the_head_says_what_fits_the_result(
    facts: CardFacts, expected: tuple[str | None, list[str] | None, str | None, str | None], tmp_path: Path
) -> None:
    """The head has relation and bases where they are known, a task for models, and the library only where it loads them."""
    relation, bases, task, library = expected
    known = {"base": BASE.repo, "lead": DELTA.repo}
    head, _ = load(facts, tmp_path)
    assert head.get("base_model_relation") == relation
    assert head.get("base_model") == (None if bases is None else [known[base] for base in bases])
    assert (head.get("pipeline_tag"), head.get("library_name")) == (task, library)


@pytest.mark.parametrize(
    "facts", EVERY, ids=lambda facts: f"{facts.kind}-{facts.layout}-{facts.images}-{facts.conversation}"
)
def test_every_card_can_be_read_and_warns(facts: CardFacts, tmp_path: Path) -> None:
    """For every kind, layout and family the head parses, the notice comes first, the code compiles, and it is about a page."""
    head, text = load(facts, tmp_path)
    assert head["license"] == "other"
    assert {"research-only", "not-for-clinical-use"} <= set(head["tags"])
    assert ("medical" in head["tags"]) == (facts.conversation == "llava-med")
    assert text.split("\n")[3] == "> **Research use only. Not for clinical care or any clinical decision making.**"
    for code in blocks(facts, "python"):
        ast.parse(code)
    for entry in blocks(facts, "bibtex"):
        assert entry.count("{") == entry.count("}")
    assert len(lines_of(facts)) <= 95
    assert "STOP" not in text


def test_families_are_those_of_the_conversations() -> None:
    """Every conversation has a family to cite, and every family a conversation."""
    assert FAMILIES.keys() == conversations().keys()


@pytest.mark.parametrize(
    ("conversation", "papers"),
    [
        ("llava-med", ["2306.00890", "2304.08485", "vicuna/", "2302.13971"]),
        ("llava-v0", ["2304.08485", "vicuna/", "2302.13971"]),
        ("llava-v1", ["2304.08485", "vicuna/", "2302.13971"]),
        ("vicuna-v1.1", ["vicuna/", "2302.13971"]),
        ("alpaca", ["tatsu-lab/stanford_alpaca", "2302.13971"]),
    ],
)
def test_a_card_cites_the_model_and_what_it_was_made_from(conversation: str, papers: list[str]) -> None:
    """The model's own entry comes first, then links to the works below it, down to LLaMA."""
    cited = model_card(replace(LLAVA_MED, conversation=conversation)).decode().partition("## Cite")[2]
    assert sorted(papers, key=cited.index) == papers


def test_what_is_unknown_is_said() -> None:
    """With no fact but the digest, each line says unknown; none is missing."""
    known, unknown = (
        [line.partition(":")[0] for line in lines_of(facts) if line.startswith("- ") and ":" in line]
        for facts in (LLAVA_MED, CardFacts("merge", "transformers", "dw1:0", Origin(), images=True, title="T"))
    )
    assert set(known) - set(unknown) == {"- New rows"}
    text = model_card(CardFacts("merge", "transformers", "dw1:0", Origin(), images=True)).decode()
    for line in (
        "- Base: repository unknown, commit unknown, content digest unknown",
        "- Delta: repository unknown, commit unknown, content digest unknown",
        "- Vision tower: repository unknown, commit unknown, content digest unknown",
        "- Recipe: none",
        "- Arithmetic: in unknown",
        "- Written as unknown, in `safetensors`, layout `transformers`",
        "- Sources: unknown",
        "Content digest: `dw1:0`",
    ):
        assert f"\n{line}\n" in text


@pytest.mark.parametrize(
    ("facts", "command"),
    [
        (
            replace(LLAVA_MED, kind="delta"),
            "$ deltaweights apply --base huggyllama/llama-7b --delta FOLDER --target OUT --recipe llava-med-7b",
        ),
        (
            replace(LLAVA_MED, kind="delta", own_recipe=True),
            "$ deltaweights apply --base huggyllama/llama-7b --delta FOLDER --target OUT --recipe FILE.toml",
        ),
        (
            replace(MADE, recipe="x; reboot"),
            "$ deltaweights apply --base BASE --delta FOLDER --target OUT --recipe FILE.toml",
        ),
        (MADE, "$ deltaweights apply --base BASE --delta FOLDER --target OUT --compute-dtype float32"),
        (
            replace(MADE, base=Origin("x/y; rm -rf ~"), compute_dtype="float32; reboot"),
            "$ deltaweights apply --base BASE --delta FOLDER --target OUT",
        ),
        (replace(LLAVA_MED, layout="original"), "$ deltaweights export FOLDER --target OUT"),
        (LLAVA_MED, f"$ deltaweights verify . --expect dw1:{'a' * 64}"),
        (replace(LLAVA_MED, digest="dw1:; reboot"), "$ deltaweights verify ."),
    ],
    ids=[
        "delta",
        "own-recipe",
        "hostile-recipe",
        "delta-float32",
        "hostile-base",
        "original",
        "verify",
        "hostile-digest",
    ],
)
def test_commands_have_only_what_is_safe_to_paste(facts: CardFacts, command: str) -> None:
    """Commands contain only valid Hub ids, dtypes and digests, and no other foreign text."""
    assert command in [line for block in blocks(facts, "console") for line in block.splitlines()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a/b\n---\n# c", r"a/b --- \# c"),
        ("</pre><script>alert(1)</script>", r"\</pre\>\<script\>alert(1)\</script\>"),
        ("[a](javascript:b) ![c](d)", r"\[a\](javascript:b) !\[c\](d)"),
        ("**a** _b_ `c` ~~d~~ $$e$$ &lt; | f", r"\*\*a\*\* \_b\_ \`c\` \~\~d\~\~ \$\$e\$\$ \&lt; \| f"),
        ("- a", r"\- a"),
        ("\x1b[31m\u202e\ud800", r"\\x1b\[31m\\u202e\\ud800"),
        ("a" * 1000, "a" * 300),
    ],
    ids=["lines", "html", "links", "marks", "list", "terminal", "long"],
)
def test_foreign_text_is_shown_literally(text: str, shown: str) -> None:
    """A title stays on one line; Markdown, HTML and escape sequences in it are escaped."""
    assert f"\n# {shown}\n" in model_card(replace(LLAVA_MED, title=text)).decode()


@pytest.mark.parametrize(
    ("repo", "shown"),
    [
        ("a/b\n- evil: true", "- Base: `a/b - evil: true`, commit"),
        ("`a`/b", "- Base: `` `a`/b ``, commit"),
        ("a/b](c)", "- Base: `a/b](c)`, commit"),
        ("a/b: c", "- Base: `a/b: c`, commit"),
        ("../b", "- Base: `../b`, commit"),
        ("a/b\n", "- Base: `a/b`, commit"),
    ],
)
def test_what_is_no_id_of_the_hub_is_no_base_model(repo: str, shown: str, tmp_path: Path) -> None:
    """An invalid id is shown as code, without a link, and is not in the head."""
    facts = replace(LLAVA_MED, base=Origin(repo))
    assert shown in model_card(facts).decode()
    assert load(facts, tmp_path)[0]["base_model"] == ["microsoft/llava-med-7b-delta"]


@given(repo=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,5}/[A-Za-z0-9][A-Za-z0-9._-]{0,5}", fullmatch=True))
def test_an_id_of_the_hub_is_read_back_as_it_is(repo: str) -> None:
    """An id that looks like a number, a date or a YAML keyword is read back as text."""
    listed = read(ModelCard(model_card(replace(LLAVA_MED, base=Origin(repo))).decode()))[0]["base_model"]
    assert listed[0] == (repo if REPO.accepts(repo) else "microsoft/llava-med-7b-delta")


INLINE = re.compile(r"\\.|(`+).*?(?<!`)\1(?!`)|<https?://[^<> ]*>")
"""What Markdown parses first, from left to right: an escaped character, code, a link in angle brackets."""


@given(text=st.text(min_size=1) | st.text(alphabet="`*_[]()<>&|~$#-+=:!\\\n \t'\"{}", min_size=1, max_size=30))
def test_no_text_changes_the_structure_of_a_card(text: str) -> None:
    """With any text in every field, a card has the structure of a harmless one, and no foreign Markdown or HTML."""
    assume(text.split() and not REPO.accepts(text))
    harmless, strange = lines_of(everywhere("harmless")), lines_of(everywhere(text))
    assert len(strange) == len(harmless)
    for line, other in zip(harmless, strange, strict=True):
        if "harmless" not in line:
            assert other == line
        elif not line.startswith("answer = "):
            assert other[:2] == line[:2]
            assert not re.search("[`*_<>&|~$\\[\\]]", INLINE.sub("", other[2:]))
