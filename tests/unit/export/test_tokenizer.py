"""The tokenizers of the deltas of 2023, repaired, against transformers, tokenizers and sentencepiece themselves."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer

from deltaweights.errors import MalformedInput, Mismatch
from deltaweights.export.sentencepiece import MAX_BYTES
from deltaweights.export.tokenizer import RepairedTokenizer, repair_tokenizer
from deltaweights.jobs.demo import NEW_TOKENS, VOCABULARY, make_pair
from tests.support.errors import refused
from tests.support.tokenizers_2023 import (
    BYTES,
    FIRST,
    LLAMA_NORMALIZER,
    LLAMA_TRAINER,
    NEW,
    NORMAL,
    SMALL,
    SMALL_PIECES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    field,
    original_ids,
    processor,
    published,
    trained,
    written,
)

WHERE = Path("delta")


SIZE = len(SMALL_PIECES)


MADE = "tokenizer.json is made from tokenizer.model"


CLASS = 'tokenizer_config.json: tokenizer_class is PreTrainedTokenizerFast, not "LlamaTokenizer"'


BOS = 'tokenizer_config.json: bos_token is </s>, not "<s>"'


PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
    "###Human: Hi!###Assistant: Hi there!  How can I help you today?\n"
    f"###Human: What is shown in this image?\n<im_start>{'<im_patch>' * 256}<im_end>###"
)
"""That of the evaluation of LLaVA-Med v1.0.0."""


def repaired(files: Mapping[str, bytes], rows: int | None = None, **options: Any) -> RepairedTokenizer:
    """Repair ``files``; without ``rows`` the embedding has one for each token of tokenizer.model and added_tokens.json."""
    if rows is None:
        rows = processor(files["tokenizer.model"]).get_piece_size() + len(
            json.loads(files.get("added_tokens.json", "{}"))
        )
    return repair_tokenizer(files, rows, where=WHERE, **options)


def changed(files: Mapping[str, bytes], name: str, **values: Any) -> dict[str, bytes]:
    """Return ``files`` with other values in the JSON document ``name``; those that are None are taken out."""
    document = json.loads(files.get(name, "{}")) | values
    return {**files, name: json.dumps({key: value for key, value in document.items() if value is not None}).encode()}


def without(files: Mapping[str, bytes], *names: str) -> dict[str, bytes]:
    """Return ``files`` less ``names``."""
    return {name: data for name, data in files.items() if name not in names}


def read(tokenizer: RepairedTokenizer, name: str) -> Any:
    """Return a JSON document of the result."""
    return json.loads(tokenizer.files[name])


def placed(folder: Path, files: Mapping[str, bytes], model_type: str | None = "llava") -> Path:
    """Write ``files`` and a config.json to ``folder``; that of a LLaVA, a LLaMA, or of no model that transformers knows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} if model_type else {}))
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a repaired tokenizer of 604 tokens."""
    return placed(tmp_path_factory.mktemp("tokenizer"), repaired(published(trained()), stop_strings=["###"]).files)


@cache
def loaded(folder: Path) -> Any:
    """Load the tokenizer of ``folder`` as users do."""
    return AutoTokenizer.from_pretrained(folder)


GOLDEN = {
    "What is the image?": [2, 259, 90, 287, 280, 295, 259, 288, 294, 262, 259, 288, 269, 286, 284, 301],
    "What is in the image?\n<im_start><im_patch><im_patch><im_patch><im_end>###": [
        2, 259, 90, 287, 280, 295, 259, 288, 294, 259, 263, 262, 259, 288, 269, 286, 284, 301, 306, 305, 305, 305, 307, 259, 275,
    ],
    "###Human: an image ! <im_start> \t<im_patch>\u00a0<im_end>  the human": [
        2, 259, 275, 276, 290, 265, 278, 267, 259, 288, 269, 286, 284, 259, 302, 306, 305, 307, 262, 259, 287, 296, 290, 265,
    ],
    "  the  image\n": [2, 259, 259, 262, 259, 259, 288, 269, 286, 284, 13],
    "a </s> b<s>the</s>": [2, 266, 259, 2, 259, 259, 281, 63, 294, 65, 295, 261, 2],
    "é 日 <0x0A> ▁the": [2, 259, 198, 172, 259, 233, 154, 168, 259, 63, 51, 123, 51, 68, 65, 259, 262],
    "the <unk>[PAD] [PAD] the": [2, 262, 259, 0, 304, 304, 262],
    "": [2],
}  # fmt: skip
"""Ids that LlamaTokenizer of transformers 4.28.1 gave for ``SMALL`` and the files of LLaVA-Med, which say that bos is ``</s>``."""


@pytest.mark.fidelity
@pytest.mark.parametrize("model_type", ["llava", "llama", None])
def test_ids_are_those_of_2023(tmp_path: Path, model_type: str | None) -> None:
    """Whatever the model, the repaired tokenizer gives texts the ids that transformers 4.28 gave them."""
    tokenizer = AutoTokenizer.from_pretrained(placed(tmp_path, repaired(published()).files, model_type))
    assert {text: tokenizer(text).input_ids for text in GOLDEN} == GOLDEN


@pytest.mark.fidelity
def test_the_rule_of_2023_gives_these_ids() -> None:
    """The reference of the other tests, sentencepiece stretch by stretch, equals transformers 4.28."""
    assert {text: [2, *original_ids(SMALL, text)] for text in GOLDEN} == GOLDEN


BEGIN_AND_CUT, PADDED = "a </s> b<s>the</s>", "the <unk>[PAD] [PAD] the"


PLAIN = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


STATEMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], list[int], list[int]]] = {
    "bos-s": (
        {"bos_token": {"content": "<s>", **PLAIN}}, {},
        [1, 266, 259, 2, 259, 259, 281, 1, 262, 2], [1, 262, 259, 0, 304, 304, 262],
    ),
    "strings": (
        {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}, {},
        [2, 266, 2, 259, 281, 63, 294, 65, 295, 261, 2], [2, 262, 0, 304, 304, 262],
    ),
    "silent-map": (
        {"bos_token": None, "eos_token": None}, {},
        [1, 266, 259, 2, 259, 259, 281, 1, 262, 2], [1, 262, 259, 0, 304, 304, 262],
    ),
    "config-alone": (
        {"bos_token": None, "eos_token": None, "unk_token": None, "pad_token": None},
        {"bos_token": "</s>", "pad_token": "[PAD]"},
        [2, 266, 259, 2, 259, 259, 281, 63, 294, 65, 295, 261, 2], [2, 262, 259, 0, 304, 259, 259, 304, 259, 262],
    ),
    "additional": (
        {"additional_special_tokens": ["<s>"]}, {},
        [2, 266, 259, 2, 259, 259, 281, 1, 262, 2], [2, 262, 259, 0, 304, 304, 262],
    ),
    "a-string-and-an-object": (
        {"bos_token": "</s>"}, {},
        [2, 266, 259, 2, 259, 259, 281, 63, 294, 65, 295, 261, 2], [2, 262, 259, 0, 304, 304, 262],
    ),
    "two-objects": (
        {"bos_token": {"content": "</s>", **PLAIN, "lstrip": True}}, {},
        [2, 266, 2, 259, 259, 281, 63, 294, 65, 295, 261, 2], [2, 262, 259, 0, 304, 304, 262],
    ),
}  # fmt: skip
"""Changes to special_tokens_map.json and tokenizer_config.json, and the ids of transformers 4.28.1 for the two texts."""


@pytest.mark.fidelity
@pytest.mark.parametrize(("special", "config", "cut", "padded"), STATEMENTS.values(), ids=STATEMENTS)
def test_the_files_say_which_tokens_are_special(
    tmp_path: Path, special: dict[str, Any], config: dict[str, Any], cut: list[int], padded: list[int]
) -> None:
    """What begins a text, and at which tokens it is cut, is what 4.28.1 read in the files; repairing it again changes nothing."""
    files = changed(published(), "special_tokens_map.json", **special)
    result = repaired(changed(files, "tokenizer_config.json", **config))
    assert repaired(result.files).files == result.files
    assert result.tokens.bos == cut[0]
    tokenizer = AutoTokenizer.from_pretrained(placed(tmp_path, result.files))
    assert tokenizer(BEGIN_AND_CUT).input_ids == cut
    assert tokenizer(PADDED).input_ids == padded
    assert tokenizer.bos_token_id == cut[0]
    assert tokenizer.eos_token_id == 2


@pytest.mark.fidelity
@pytest.mark.parametrize("stated", [{}, dict.fromkeys(("bos_token", "eos_token", "unk_token"), "")])
@pytest.mark.parametrize("bos", ["<s>", "</s>"])
def test_a_recipe_says_what_begins_a_text(tmp_path: Path, bos: str, stated: dict[str, str]) -> None:
    """It goes before the files, whatever they say, and what they said is noted."""
    files = changed(published(), "special_tokens_map.json", **stated)
    result = repaired(files, bos=bos)
    tokenizer = AutoTokenizer.from_pretrained(placed(tmp_path, result.files))
    number = {"<s>": 1, "</s>": 2}[bos]
    assert tokenizer("the").input_ids == [number, 262]
    assert tokenizer.bos_token_id == result.tokens.bos == number
    said = f'special_tokens_map.json: bos_token is {bos}, not "{stated.get("bos_token", "</s>")}"'
    assert (said in result.notes) == (stated.get("bos_token", "</s>") != bos)


def test_a_recipe_s_token_must_exist() -> None:
    """A bos_token that the model does not have is refused."""
    with refused(Mismatch, where="delta", found="<bos>"):
        repaired(published(), bos="<bos>")


def test_unk_may_be_eos(tmp_path: Path) -> None:
    """Alpaca's code of March 2023 made ``</s>`` all three; ``<unk>`` in a text is plain text then."""
    same = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    result = repaired(changed(published(), "special_tokens_map.json", **same))
    assert (result.tokens.bos, result.tokens.eos, result.tokens.unk, result.tokens.pad) == (2, 2, 2, SIZE)
    tokenizer = AutoTokenizer.from_pretrained(placed(tmp_path, result.files))
    assert tokenizer("<unk>").input_ids == [2, *processor(SMALL).encode("<unk>")]


UNEQUAL = "\x1c\x1d\x1e\x1f"
"""White space for Python alone; not for the ``tokenizers`` library beside an added token."""


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=UNEQUAL)),
    st.lists(
        st.sampled_from([*NEW, "<s>", "</s>", "<unk>", " ", "  ", "\n", "\t", "\u00a0", "a", "aa", "the", "The lungs", "=", "##",
                         "###Human:", "é", "日本", "🫁", "▁", "<0x0A>", "12", "<", "s>", "im_patch"])
    ).map("".join),
)  # fmt: skip


@given(text=TEXTS)
@example(text=PROMPT)
@settings(max_examples=400, deadline=None)
def test_any_text_has_the_ids_of_sentencepiece(folder: Path, text: str) -> None:
    """Any text, with or without added tokens in it, has the ids that sentencepiece gives stretch by stretch, after ``</s>``."""
    assert loaded(folder)(text).input_ids == [2, *original_ids(trained(), text)]


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
@example(text="  two spaces  ")
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(folder: Path, text: str) -> None:
    """Decoding a text's ids without special tokens gives the text, except for ``▁``, which means a space."""
    assume(not any(token in text for token in ("<unk>", "</s>", *NEW)))
    tokenizer = loaded(folder)
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_image_tokens_stay_out_of_answers(folder: Path) -> None:
    """The 258 tokens of an image are special: a text without special tokens has none of them."""
    tokenizer = loaded(folder)
    ids = tokenizer(PROMPT).input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<im_patch>")) == 256
    assert "<im" not in tokenizer.decode(ids, skip_special_tokens=True)


def test_the_library_s_own_class_finds_the_same_tokens(folder: Path) -> None:
    """LlamaTokenizer, which rebuilds everything but the vocabulary, gives the prompt's ids too."""
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    assert tokenizer(PROMPT).input_ids == [2, *original_ids(trained(), PROMPT)]
    assert len(tokenizer) == 604


def test_a_padded_batch_has_the_pad_token_on_the_stated_side(folder: Path) -> None:
    """Padding is [PAD], masked, on the side that the published file states."""
    batch = loaded(folder)(["a", "The lungs are clear."], padding=True)
    short, long = batch.input_ids
    assert len(short) == len(long)
    assert short[-1] == loaded(folder).convert_tokens_to_ids("[PAD]") == 600
    assert batch.attention_mask[0][-1] == 0


@pytest.mark.parametrize("text", ["", "a", PROMPT, " a <im_start> b </s> c "])
def test_saving_keeps_ids(folder: Path, tmp_path: Path, text: str) -> None:
    """Loading and saving a tokenizer, even twice, does not change ids."""
    expected = loaded(folder)(text).input_ids
    source = folder
    for number in range(2):
        target = placed(tmp_path / str(number), {})
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
        source = target
    again = AutoTokenizer.from_pretrained(source)
    assert again(text).input_ids == expected
    assert len(again) == 604
    assert json.loads((source / "tokenizer_config.json").read_text())["stop_strings"] == ["###"]


def test_every_token_is_at_its_id(folder: Path) -> None:
    """Length, special tokens and added tokens of the loaded tokenizer are those of ``TokenIds``."""
    tokens, tokenizer = repaired(published(trained())).tokens, loaded(folder)
    assert (tokens.bos, tokens.eos, tokens.unk, tokens.pad, tokens.size) == (2, 2, 0, 600, 604)
    assert list(tokens.added.items()) == [("[PAD]", 600), ("<im_patch>", 601), ("<im_start>", 602), ("<im_end>", 603)]
    assert len(tokenizer) == tokens.size
    assert tokenizer.convert_tokens_to_ids(list(tokens.added)) == list(tokens.added.values())
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        tokens.bos,
        tokens.eos,
        tokens.unk,
    )
    assert tokenizer.pad_token_id == tokens.pad
    model = processor(trained())
    assert tokenizer.convert_ids_to_tokens(range(600)) == [model.id_to_piece(number) for number in range(600)]


def test_the_files_of_a_delta() -> None:
    """tokenizer.model is the bytes that were given, the template is a file of its own, and every document is JSON."""
    tokenizer = repaired(published(), chat_template="{{ messages }}", stop_strings=["###", "</s>"])
    assert set(tokenizer.files) == {
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert tokenizer.files["tokenizer.model"] == SMALL
    assert tokenizer.files["chat_template.jinja"] == b"{{ messages }}"
    assert read(tokenizer, "added_tokens.json") == {content: SIZE + place for place, content in enumerate(NEW)}
    config = read(tokenizer, "tokenizer_config.json")
    decoder = config.pop("added_tokens_decoder")
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "[PAD]",
        "padding_side": "right",
        "stop_strings": ["###", "</s>"],
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    inside = {str(number): {"content": content, **plain} for number, content in ((0, "<unk>"), (2, "</s>"))}
    stripping = plain | {"lstrip": True, "rstrip": True}
    assert decoder == inside | {
        str(SIZE + place): {"content": content, **stripping} for place, content in enumerate(NEW)
    }
    special = read(tokenizer, "special_tokens_map.json")
    assert {role: token["content"] for role, token in special.items()} == {
        "bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]",
    }  # fmt: skip
    assert tokenizer.notes == (MADE, CLASS, BOS)


DIGEST = "0d7f95b92ef33b1d13dfd7244e2143ada2d452a3f9c0fb13ab9df3f25b4c3529"
"""sha256 of the tokenizer.json for ``SMALL`` and the tokens of LLaVA-Med."""


def test_the_bytes_are_the_same_everywhere() -> None:
    """tokenizer.json is part of a reproducible result: its bytes depend on nothing but the input."""
    files = repaired(published()).files
    assert hashlib.sha256(files["tokenizer.json"]).hexdigest() == DIGEST
    assert repaired(published()).files == files


def test_a_repaired_tokenizer_needs_no_repair() -> None:
    """Repairing the result changes nothing, and notes nothing."""
    once = repaired(published(), stop_strings=["###"])
    twice = repaired(once.files, stop_strings=["###"])
    assert twice.files == once.files
    assert twice.notes == ()


def test_without_tokenizer_model_the_result_is_the_same() -> None:
    """A tokenizer.json alone is enough."""
    once = repaired(published())
    alone = repaired(without(once.files, "tokenizer.model"), SIZE + 4)
    assert alone.files == without(once.files, "tokenizer.model")
    assert alone.tokens == once.tokens


def test_pieces_without_a_rank_of_their_own() -> None:
    """Scores, not ids, decide the order of merges; LLaMA's runs of spaces have low ids and the lowest score."""
    pieces = [*FIRST, ("▁▁", -1e9, NORMAL), ("▁a", -1.0, NORMAL), ("▁", -2.0, NORMAL), ("a", -3.0, NORMAL)]
    model = written(pieces)
    tokenizer = Tokenizer.from_str(repaired({"tokenizer.model": model}).files["tokenizer.json"].decode())
    for text in ("a", " a", "  a", "   a", "a  "):
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor(model).encode(text)


def test_text_is_never_merged_into_a_control_or_byte_piece() -> None:
    """``<0x41>`` as text is not the byte A, even where its parts are pieces."""
    model = written(
        [*SMALL_PIECES, *((text, -99.0, NORMAL) for text in ("<", "0", "x", "4", "1", ">", "<0", "<0x", "<0x4", "1>"))]
    )
    tokenizer = Tokenizer.from_str(repaired({"tokenizer.model": model}).files["tokenizer.json"].decode())
    assert tokenizer.encode("<0x41>", add_special_tokens=False).ids == processor(model).encode("<0x41>")
    assert BYTES[0x41][0] not in tokenizer.encode("<0x41>").tokens


def test_without_byte_fallback_what_is_unknown_is_one_token() -> None:
    """A model without byte pieces gives ``<unk>``, once for a run of unknown characters."""
    model = written([*FIRST[:3], *SMALL_PIECES[len(FIRST) :]], {3: 2})
    tokenizer = Tokenizer.from_str(repaired({"tokenizer.model": model}).files["tokenizer.json"].decode())
    for text in ("日本 the", "the 日 本"):
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor(model).encode(text)


LLAMA = {"</s>": 2, "<s>": 1, "<unk>": 0}


EMPTY = {"bos_token": "", "eos_token": "", "unk_token": ""}
"""As the first conversions of LLaMA had them: ids were those of tokenizer.model."""


SAYS_BOS = changed(published(), "special_tokens_map.json", bos_token={"content": "<s>", **PLAIN})
"""The files of a model whose texts begin with ``<s>``."""


REPAIRS: dict[str, tuple[dict[str, bytes], dict[str, bytes], tuple[str, ...]]] = {
    "bos-is-eos": (published(), published(), (MADE, CLASS, BOS)),
    "empty-special-tokens": (
        changed(changed(published(), "special_tokens_map.json", **EMPTY), "tokenizer_config.json", **EMPTY),
        SAYS_BOS,
        (
            MADE, CLASS,
            'tokenizer_config.json: bos_token is <s>, not ""',
            'tokenizer_config.json: eos_token is </s>, not ""',
            'tokenizer_config.json: unk_token is <unk>, not ""',
            'special_tokens_map.json: bos_token is <s>, not ""',
            'special_tokens_map.json: eos_token is </s>, not ""',
            'special_tokens_map.json: unk_token is <unk>, not ""',
        ),
    ),
    "first-class-name": (
        changed(published(), "tokenizer_config.json", tokenizer_class="LLaMATokenizer"),
        published(),
        (MADE, CLASS.replace("LlamaTokenizer", "LLaMATokenizer"), BOS),
    ),
    "fast-class-name": (
        changed(published(), "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast"),
        published(),
        (MADE, CLASS.replace("LlamaTokenizer", "LlamaTokenizerFast"), BOS),
    ),
    "right-class-name": (
        changed(published(), "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"), published(), (MADE, BOS),
    ),
    "no-limit": (
        changed(published(), "tokenizer_config.json", model_max_length=int(1e30)),
        published(),
        (MADE, CLASS, BOS),
    ),
    "no-whole-number": (
        changed(published(), "tokenizer_config.json", model_max_length=1e30),
        published(),
        (MADE, CLASS, "tokenizer_config.json: model_max_length is 2048, not 1e+30", BOS),
    ),
    "only-tokenizer-model-and-added-tokens": (
        without(published(), "tokenizer_config.json", "special_tokens_map.json"), SAYS_BOS, (MADE,),
    ),
    "control-characters": (
        changed(published(), "special_tokens_map.json", bos_token="\x1b[2J" + 100 * "x"),
        SAYS_BOS,
        (MADE, CLASS, 'special_tokens_map.json: bos_token is <s>, not "\\u001b[2J' + 70 * "x"),
    ),
    "special-tokens-of-llama-in-added-tokens": (
        changed(SAYS_BOS, "added_tokens.json", **LLAMA), SAYS_BOS, (MADE, CLASS),
    ),
}  # fmt: skip
"""Files, others that mean the same, and what is noted."""


@pytest.mark.parametrize(("files", "same", "notes"), REPAIRS.values(), ids=REPAIRS)
def test_what_the_files_say_is_put_right(
    files: dict[str, bytes], same: dict[str, bytes], notes: tuple[str, ...]
) -> None:
    """Every known variant becomes the tokenizer that it means, and every repair is noted."""
    tokenizer = repaired(files, SIZE + 4)
    right = repaired(same)
    assert tokenizer.files | {"tokenizer_config.json": b""} == right.files | {"tokenizer_config.json": b""}
    optional = {"padding_side": "right"}
    assert read(tokenizer, "tokenizer_config.json") | optional == read(right, "tokenizer_config.json")
    assert tokenizer.tokens == right.tokens
    assert tokenizer.notes == notes


def test_a_token_that_added_tokens_names_is_matched() -> None:
    """A file that names ``<s>`` as an added token has it matched in texts, even if it begins none."""
    tokenizer = repaired(changed(published(), "added_tokens.json", **LLAMA), SIZE + 4)
    assert Tokenizer.from_str(tokenizer.files["tokenizer.json"].decode()).encode("<s>").ids == [2, 1]


@pytest.mark.parametrize(
    ("length", "kept"), [(512, 512), (2048, 2048), (10**6, 10**6), (10**6 + 1, 2048), (0, 2048), (True, 2048)]
)
def test_a_length_that_a_model_can_have_is_kept(length: int, kept: int) -> None:
    """A plausible model_max_length is kept; otherwise it is LLaMA's 2048."""
    tokenizer = repaired(changed(published(), "tokenizer_config.json", model_max_length=length))
    assert read(tokenizer, "tokenizer_config.json")["model_max_length"] == kept


@pytest.mark.parametrize(("side", "kept"), [("left", "left"), ("right", "right"), (["right"], None), (None, None)])
def test_the_padding_side_is_kept(side: Any, kept: str | None) -> None:
    """A valid padding_side is kept."""
    tokenizer = repaired(changed(published(), "tokenizer_config.json", padding_side=side))
    assert read(tokenizer, "tokenizer_config.json").get("padding_side") == kept


def test_a_token_without_a_row_is_left_out() -> None:
    """LLaVA-13b-v0 has 32,003 rows, and [PAD] at 32,003: padding is ``<unk>`` there."""
    files = published(new=["<im_patch>", "<im_start>", "<im_end>", "[PAD]"])
    tokenizer = repaired(files, SIZE + 3)
    assert tokenizer.tokens.added == {"<im_patch>": SIZE, "<im_start>": SIZE + 1, "<im_end>": SIZE + 2}
    assert (tokenizer.tokens.pad, tokenizer.tokens.size) == (0, SIZE + 3)
    assert "[PAD]" not in read(tokenizer, "added_tokens.json")
    assert tokenizer.notes == (
        "dropped, without a row of the embedding: [PAD]", MADE, CLASS, BOS,
        'special_tokens_map.json: pad_token is <unk>, not "[PAD]"',
    )  # fmt: skip
    assert len(Tokenizer.from_str(tokenizer.files["tokenizer.json"].decode()).get_vocab()) == SIZE + 3


def test_many_tokens_without_a_row_are_one_line() -> None:
    """A note names 8 tokens, and counts the others."""
    tokenizer = repaired(published(new=[f"<{number}>" for number in range(20)]), SIZE)
    assert tokenizer.notes[0] == (
        "dropped, without a row of the embedding: <0>, <1>, <2>, <3>, <4>, <5>, <6>, <7> and 12 others"
    )


def test_a_tokenizer_without_added_tokens() -> None:
    """Vicuna v1.1 has 32,000 rows and no added token: there is no added_tokens.json, and padding is ``<unk>``."""
    tokenizer = repaired(without(published(), "added_tokens.json"), SIZE)
    assert tokenizer.tokens.added == {}
    assert tokenizer.tokens.pad == tokenizer.tokens.unk == 0
    assert "added_tokens.json" not in tokenizer.files


def test_tokens_of_a_recipe_are_used_where_files_name_none() -> None:
    """The recipe supplies tokens that the files lack; the result is the same."""
    known = {content: SIZE + place for place, content in enumerate(NEW)}
    right = repaired(published())
    for files in (
        without(published(), "added_tokens.json"),
        changed(published(), "added_tokens.json", **{"<im_start>": None}),
        published(),
    ):
        named = set(json.loads(files.get("added_tokens.json", "{}")))
        tokenizer = repaired(files, SIZE + 4, known=known)
        assert tokenizer.files == right.files
        missing = ", ".join(content for content in NEW if content not in named)
        assert tokenizer.notes == ((f"from the recipe: {missing}",) if missing else ()) + right.notes


def test_rows_without_a_token_are_told() -> None:
    """Rows of the embedding without a token are counted in a note."""
    assert repaired(published(), SIZE + 5).notes[-1] == "1 row of the embedding without a token"
    assert repaired(published(), SIZE + 64).notes[-1] == "60 rows of the embedding without a token"


def with_document(change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """Return the repaired files, with a change in tokenizer.json alone."""
    files = repaired(published()).files
    document = json.loads(files["tokenizer.json"])
    change(document)
    return {**files, "tokenizer.json": json.dumps(document).encode()}


def normalized(document: dict[str, Any]) -> None:
    for token in document["added_tokens"]:
        token |= {"normalized": True, "lstrip": False, "special": False}


def fewer_tokens(document: dict[str, Any]) -> None:
    document["added_tokens"] = document["added_tokens"][1:-1]


def ends_with_eos(document: dict[str, Any]) -> None:
    document["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})


def no_processor(document: dict[str, Any]) -> None:
    document["post_processor"] = None


def nested(document: dict[str, Any]) -> None:
    for _ in range(200):
        document["post_processor"] = {"type": "Sequence", "processors": [document["post_processor"]]}


DOCUMENTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "normalized": (
        normalized,
        "matched otherwise than tokenizer.json stated: <unk>, </s>, [PAD], <im_patch>, <im_start>, <im_end>",
    ),
    "fewer-tokens": (fewer_tokens, "added to tokenizer.json: <unk>, <im_end>"),
    "ends-with-eos": (ends_with_eos, "tokenizer.json: a text begins with </s>"),
    "no-processor": (no_processor, "tokenizer.json: a text begins with </s>"),
    "nested": (nested, "tokenizer.json: a text begins with </s>"),
}


@pytest.mark.parametrize(("change", "note"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_tokenizer_json_is_repaired(change: Callable[[dict[str, Any]], None], note: str) -> None:
    """A faulty tokenizer.json is repaired with a note, and 256 image tokens in a row are matched."""
    tokenizer = repaired(with_document(change))
    assert tokenizer.notes == (note,)
    encoded = Tokenizer.from_str(tokenizer.files["tokenizer.json"].decode()).encode(PROMPT)
    assert encoded.ids.count(tokenizer.tokens.added["<im_patch>"]) == 256
    assert encoded.ids[0] == 2
    assert encoded.ids[-1] != 2


def test_a_processor_among_others_is_kept() -> None:
    """A template that begins with ``<s>`` is found inside a sequence, and nothing is changed."""

    def in_a_sequence(document: dict[str, Any]) -> None:
        document["post_processor"] = {"type": "Sequence", "processors": [document["post_processor"]]}

    files = with_document(in_a_sequence)
    assert repaired(files).files == files
    assert repaired(files).notes == ()


def test_flags_that_a_file_states_are_kept() -> None:
    """Stated flags are kept, those of tokenizer.json before those of tokenizer_config.json."""
    files = repaired(published()).files
    config = json.loads(files["tokenizer_config.json"])
    config["added_tokens_decoder"][str(SIZE + 3)]["lstrip"] = False
    files = changed(files, "tokenizer_config.json", added_tokens_decoder=config["added_tokens_decoder"])
    assert read(repaired(files), "tokenizer_config.json") == read(repaired(published()), "tokenizer_config.json")
    alone = repaired(without(files, "tokenizer.json", "added_tokens.json"), SIZE + 4)
    assert read(alone, "tokenizer.json")["added_tokens"][-1]["lstrip"] is False
    assert read(alone, "tokenizer.json")["added_tokens"][-2]["lstrip"] is True


def test_the_demo_pair_works(tmp_path: Path) -> None:
    """The byte-level tokenizer of the demo keeps its vocabulary, merges and ids; only ``<s>`` now begins a text."""
    _, delta = make_pair(tmp_path / "pair")
    files = {path.name: path.read_bytes() for path in delta.iterdir() if path.suffix == ".json"}
    rows = VOCABULARY + len(NEW_TOKENS)
    tokenizer = repaired(files, rows)
    assert tokenizer.notes == ("tokenizer.json: a text begins with <s>",)
    assert list(tokenizer.tokens.added) == list(NEW_TOKENS)
    assert read(tokenizer, "tokenizer_config.json")["add_prefix_space"] is True, "transformers 4 would put it out"
    assert read(tokenizer, "tokenizer.json") | {"post_processor": None} == json.loads(files["tokenizer.json"])
    loaded = AutoTokenizer.from_pretrained(placed(tmp_path / "result", tokenizer.files))
    text = "The lungs are clear.\n<im_start><im_patch><im_end> é"
    before = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert loaded(text).input_ids == [tokenizer.tokens.bos, *before.encode(text).ids]
    assert len(loaded) == tokenizer.tokens.size == rows


RIGHT = repaired(published()).files


def no_model(model: bytes) -> dict[str, bytes]:
    """Return published files with another tokenizer.model."""
    return {**published(), "tokenizer.model": model}


def pieces_with(*more: tuple[str, float, int]) -> dict[str, bytes]:
    """Return a tokenizer.model with more pieces, alone."""
    return {"tokenizer.model": written([*SMALL_PIECES, *more])}


def settings_of(trainer: dict[int, Any], normalizer: dict[int, Any]) -> dict[str, bytes]:
    """Return a tokenizer.model with other settings, alone."""
    return {"tokenizer.model": written(SMALL_PIECES, LLAMA_TRAINER | trainer, LLAMA_NORMALIZER | normalizer)}


def vocabulary(**values: int) -> dict[str, bytes]:
    """Return the repaired files with other ids in the vocabulary of tokenizer.json."""
    return with_document(lambda document: document["model"]["vocab"].update(values))


MODEL = "delta/tokenizer.model"

MALFORMED: dict[str, tuple[dict[str, bytes], str, str | None]] = {
    "nothing": (
        without(published(), "tokenizer.model"),
        "delta", None,
    ),
    "row18-pointer": (
        no_model(b"version https://git-lfs.github.com/spec/v1\noid sha256:9e55\nsize 499723\n"),
        MODEL, "a git-LFS pointer",
    ),
    "empty": (no_model(b""), MODEL, "an empty file"),
    "no-piece": (no_model(field(9, 1)), MODEL, "0 pieces for unknown text"),
    "cut-short": (no_model(SMALL[:1000]), MODEL, "the end in the middle of a field"),
    "cut-in-a-number": (no_model(SMALL + b"\x80"), MODEL, "the end in the middle of a number"),
    "long-number": (no_model(11 * b"\x80"), MODEL, "a number of more than 10 bytes"),
    "group": (no_model(b"\x0b"), MODEL, "a field of the wire type 3"),
    "too-large": (no_model(b"\1" * (MAX_BYTES + 1)), MODEL, "5,242,881 bytes"),
    "number-for-a-piece": (no_model(field(1, 1)), MODEL, "a number instead of a message"),
    "number-for-a-text": (no_model(field(1, field(1, 1))), MODEL, "a piece without text, or too long"),
    "empty-piece": (no_model(b"\n\0"), MODEL, "a piece without text, or too long"),
    "long-piece": (pieces_with(("x" * 129, 0.0, NORMAL)), MODEL, "a piece without text, or too long"),
    "half-a-character": (
        no_model(field(1, field(1, b"\xc3"))),
        MODEL, "'utf-8' codec can't decode byte 0xc3 in position 0: unexpected end of data",
    ),
    "score-of-nan": (pieces_with(("x", float("nan"), NORMAL)), MODEL, "the piece x without a score"),
    "score-of-a-number": (no_model(field(1, field(1, b"x") + field(2, 1))), MODEL, "the piece x without a score"),
    "unknown-kind": (pieces_with(("x", 0.0, 7)), MODEL, "the piece x of an unknown kind"),
    "byte-that-is-none": (pieces_with(("<0x1>", 0.0, 6)), MODEL, "the piece <0x1> of an unknown kind"),
    "a-piece-twice": (pieces_with(("Human", 0.0, NORMAL)), MODEL, "the piece Human twice"),
    "two-unknowns": (pieces_with(("x", 0.0, UNKNOWN)), MODEL, "2 pieces for unknown text"),
    "no-bytes": ({"tokenizer.model": written(FIRST[:-1])}, MODEL, "bytes without a piece"),
    "unigram": (settings_of({3: 1}, {}), MODEL, "a model that is not a byte-pair encoding"),
    "suffix": (settings_of({24: 1}, {}), MODEL, "a model with spaces after words"),
    "character-map": (settings_of({}, {2: b"\1"}), MODEL, "a model that normalizes text"),
    "no-prefix": (settings_of({}, {3: 0}), MODEL, "a model that normalizes text"),
    "fewer-spaces": (settings_of({}, {4: 1}), MODEL, "a model that normalizes text"),
    "spaces-as-they-are": (settings_of({}, {5: 0}), MODEL, "a model that normalizes text"),
    "user-defined": (pieces_with(("x", 0.0, USER_DEFINED)), MODEL, "the piece x, which no merge yields"),
    "unused": (pieces_with(("x", 0.0, UNUSED)), MODEL, "the piece x, which no merge yields"),
    "space": (pieces_with(("x y", 0.0, NORMAL)), MODEL, "the piece x y, which no merge yields"),
    "no-bos": (
        {"tokenizer.model": written([FIRST[0], *FIRST[2:], *SMALL_PIECES[len(FIRST):]])},
        "delta", "no token <s>",
    ),
    "document-is-no-json": (
        {**published(), "tokenizer.json": b"{"},
        "delta/tokenizer.json", "Expecting property name enclosed in double quotes at character 1",
    ),
    "document-without-a-vocabulary": (
        {**published(), "tokenizer.json": b'{"model": {"vocab": [0]}}'},
        "delta/tokenizer.json", None,
    ),
    "added-tokens-are-no-list": (
        with_document(lambda document: document.update(added_tokens={})),
        "delta/tokenizer.json", None,
    ),
    "fraction": (changed(published(), "added_tokens.json", x=1.5), "delta/added_tokens.json", "the id 1.5"),
    "negative": (changed(published(), "added_tokens.json", x=-1), "delta/added_tokens.json", "the id -1"),
    "boolean": (changed(published(), "added_tokens.json", x=True), "delta/added_tokens.json", "the id True"),
    "duplicate": (
        {**published(), "added_tokens.json": b'{"x": 1, "x": 2}'},
        "delta/added_tokens.json", 'duplicate key "x"',
    ),
    "vocabulary-with-text": (vocabulary(x="y"), "delta/tokenizer.json", "the id 'y'"),  # type: ignore[arg-type]
    "decoder-is-no-object": (
        changed(published(), "tokenizer_config.json", added_tokens_decoder=[]),
        "delta/tokenizer_config.json", "an added_tokens_decoder that is not an object",
    ),
    "decoder-with-a-word": (
        changed(published(), "tokenizer_config.json", added_tokens_decoder={"one": {"content": "x"}}),
        "delta/tokenizer_config.json", "the id 'one'",
    ),
    "decoder-without-a-content": (
        changed(published(), "tokenizer_config.json", added_tokens_decoder={"1": {}}),
        "delta/tokenizer_config.json", "an entry with the content None",
    ),
    "decoder-with-a-content-twice": (
        changed(published(), "tokenizer_config.json", added_tokens_decoder={"1": {"content": "x"}, "2": {"content": "x"}}),
        "delta/tokenizer_config.json", "an entry with the content 'x'",
    ),
    "flag-is-a-word": (
        changed(published(), "tokenizer_config.json", added_tokens_decoder={"1": {"content": "<s>", "lstrip": "no"}}),
        "delta/tokenizer_config.json", "'<s>' with flags that are not true or false",
    ),
    "half-a-character-in-a-token": (
        {**without(published(), "added_tokens.json"), "added_tokens.json": b'{"\\ud800": %d}' % SIZE},
        "delta", "half a character",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "where", "found"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_refused(files: dict[str, bytes], where: str, found: str | None) -> None:
    """A malformed file, or one that cannot be converted exactly, is refused."""
    with refused(MalformedInput, where=where, found=found):
        repaired(files, SIZE + 9)


def test_deep_nesting_is_refused() -> None:
    """A tokenizer.json that is nested too deeply to be written is refused."""

    def deep(document: dict[str, Any]) -> None:
        document["post_processor"] = None
        for _ in range(700):
            document["truncation"] = {"a": document["truncation"]}

    with refused(MalformedInput, where="delta", found="nested too deeply"):
        repaired(with_document(deep))


MISMATCHED: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "two-ids": (
        changed(RIGHT, "added_tokens.json", **{"<im_end>": SIZE + 4}),
        {},
        f"<im_end>: {SIZE + 3} in tokenizer.json, {SIZE + 4} in added_tokens.json",
    ),
    "two-tokens": (
        changed(without(RIGHT, "tokenizer.json"), "added_tokens.json", **{"<im_end>": None, "<end>": SIZE + 3}),
        {},
        f"{SIZE + 3}: <im_end> in tokenizer_config.json, <end> in added_tokens.json",
    ),
    "id-of-the-vocabulary": (
        changed(published(), "added_tokens.json", **{"[PAD]": 5}),
        {},
        "5: <0x02> in tokenizer.model, [PAD] in added_tokens.json",
    ),
    "other-id-than-the-vocabulary": (
        changed(published(), "added_tokens.json", **{"<s>": SIZE + 4}),
        {},
        f"<s>: 1 in tokenizer.model, {SIZE + 4} in added_tokens.json",
    ),
    "recipe": (
        published(),
        {"known": {"<im_patch>": SIZE}},
        f"<im_patch>: {SIZE + 1} in the files, {SIZE} in the recipe",
    ),
    "two-vocabularies": (
        {**repaired(published(trained())).files, "tokenizer.model": SMALL},
        {"rows": 604},
        "▁ with the id 259 in one of them only",
    ),
    "one-piece-more": (
        {**RIGHT, **pieces_with(("more", 0.0, NORMAL))},
        {},
        f"more with the id {SIZE} in one of them only",
    ),
    "too-few-rows": (
        published(),
        {"rows": 300},
        "300 rows",
    ),
    "gap": (
        changed(published(), "added_tokens.json", **{"<im_patch>": None}),
        {"rows": SIZE + 4},
        f"none for {SIZE + 1}, but <im_start> for {SIZE + 2}",
    ),
    "control-characters": (
        changed(published(), "added_tokens.json", **{"\x1b[2J": SIZE}),
        {},
        f"{SIZE}: [PAD] in added_tokens.json, \x1b[2J in added_tokens.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "options", "found"), MISMATCHED.values(), ids=MISMATCHED)
def test_contradictions_are_refused(files: dict[str, bytes], options: dict[str, Any], found: str) -> None:
    """Files, recipe and rows that contradict each other are refused."""
    with refused(Mismatch, found=found):
        repaired(files, **options)


def names(count: int, length: int) -> list[str]:
    """Return different pieces of ``length`` letters."""
    return ["".join(letters) for letters in itertools.islice(itertools.product("abcdefghij", repeat=length), count)]


def test_a_vocabulary_of_llama_s_size() -> None:
    """32,000 pieces become a tokenizer.json with all their merges."""
    letters = [chr(code) for code in range(0x4E00, 0x4E00 + 178)]
    pairs = ["".join(pair) for pair in itertools.product(letters, letters)]
    model = written([*FIRST, *((text, -float(place), NORMAL) for place, text in enumerate([*letters, *pairs]))])
    tokenizer = repaired(published(model))
    assert len(read(tokenizer, "tokenizer.json")["model"]["merges"]) == 178**2
