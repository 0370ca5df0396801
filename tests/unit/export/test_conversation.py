"""Conversations: in transformers' own renderer, the chat templates give the prompts of the models' own code, to the character."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from deltaweights.errors import UsageError
from deltaweights.export.conversation import (
    END,
    IMAGE,
    START,
    Conversation,
    chat_template,
    conversations,
    stop_strings,
)
from deltaweights.recipes import catalogue
from tests.support.errors import refused

Message = dict[str, Any]

TOKENIZER = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
    tokenizer_object=Tokenizer(models.BPE()), additional_special_tokens=[IMAGE, START, END]
)

NAMES = ("llava-med", "llava-v0", "llava-v1", "vicuna-v0", "vicuna-v1.1", "alpaca")
SEEING = ("llava-med", "llava-v0", "llava-v1")

MED = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the human's questions.###Human: Hi!###Assistant: Hi there!  How can I help you today?\n###"
)
MED_MULTIMODAL = (
    "You are LLaVA-Med, a large language and vision assistant trained by a group of researchers at Microsoft, based on the "
    "general domain LLaVA architecture.You are able to understand the visual content that the user provides, and assist the user "
    "with a variety of medical and clinical tasks using natural language.Follow the instructions carefully and explain your "
    "answers in detail.###Human: Hi!###Assistant: Hi there!  How can I help you today?\n###"
)
V0 = (
    "You are LLaVA, a large language model trained by UW Madison WAIV Lab, based on LLaMA architecture.You are designed to "
    "assist human with a variety of tasks using natural language.Follow the instructions carefully.###Human: Hi!###Assistant: Hi "
    "there!  How can I help you today?\n###"
)
LLAVA = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab.You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural language.Follow the instructions "
    "carefully and explain your answers in detail."
)
LLAVA_V0 = f"{LLAVA}###Human: Hi!###Assistant: Hi there!  How can I help you today?\n###"
VICUNA_V0 = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the human's questions.\n\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. "
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName three colours.\n\n### Response:"
)


def user(*parts: str | None) -> Message:
    """Return a message of the user in parts; None stands for an image."""
    return said("user", *parts)


def said(role: str, *parts: str | None) -> Message:
    """Return a message in parts; None stands for an image."""
    listed = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": listed}


def plain(role: str, text: str) -> Message:
    """Return a message whose content is a string."""
    return {"role": role, "content": text}


def render(name: str, *messages: Message, start_and_end: bool = True, **variables: Any) -> str:
    """Return the prompt that transformers makes of ``messages``."""
    template = chat_template(name, start_and_end=start_and_end)
    return str(TOKENIZER.apply_chat_template(list(messages), chat_template=template, tokenize=False, **variables))


@pytest.mark.parametrize(
    ("messages", "variables", "expected"),
    [
        ((user(None, "What is shown?"),), {}, f"{MED}Human: What is shown?\n<im_start><im_patch><im_end>###"),
        ((user("What is shown?", None),), {}, f"{MED}Human: What is shown?\n<im_start><im_patch><im_end>###"),
        ((plain("user", "What is a cell?"),), {}, f"{MED}Human: What is a cell?###"),
        ((user("What is a cell?"),), {"conv_mode": "simple"}, f"{MED}Human: What is a cell?###"),
        (
            (user(None, "What is shown?"),),
            {"conv_mode": "multimodal"},
            f"{MED_MULTIMODAL}Human: What is shown?\n<im_start><im_patch><im_end>###",
        ),
        (
            (user(None, "What is shown?"),),
            {"start_and_end": False},
            f"{MED}Human: What is shown?\n<im_patch>###",
        ),
        (
            (user("Is this", None, " a cell?"),),
            {},
            f"{MED}Human: Is this a cell?\n<im_start><im_patch><im_end>###",
        ),
        (
            (user(None, "What is shown?"), plain("assistant", "A chest."), plain("user", "Which side?")),
            {},
            f"{MED}Human: What is shown?\n<im_start><im_patch><im_end>###Assistant: A chest.###Human: Which side?###",
        ),
        (
            (plain("system", "Answer yes or no."), user("Is it a cell?")),
            {},
            "Answer yes or no.###Human: Hi!###Assistant: Hi there!  How can I help you today?\n###Human: Is it a cell?###",
        ),
        ((user(None),), {}, f"{MED}Human: \n<im_start><im_patch><im_end>###"),
    ],
    ids=[
        "image-first", "image-last", "no-image", "parts", "multimodal", "no-start-and-end", "image-between", "turns", "system",
        "image-alone",
    ],
)  # fmt: skip
@pytest.mark.parametrize("asked", [False, True])
def test_llava_med_is_asked_as_by_its_evaluation(
    messages: tuple[Message, ...], variables: dict[str, Any], expected: str, asked: bool
) -> None:
    """The prompt is that of v1.0.0; asking for an answer adds nothing, since the model begins it itself."""
    assert render("llava-med", *messages, **variables, add_generation_prompt=asked) == expected


CHAT = (plain("user", "Hello!"), plain("assistant", "Hello!"), plain("user", "How are you?"))


@pytest.mark.parametrize(
    ("name", "messages", "variables", "end", "asking"),
    [
        ("llava-v0", (user(None, "Why?"),), {}, f"{V0}Human: Why?\n<im_start><im_patch><im_end>###", "Assistant:"),
        (
            "llava-v0",
            CHAT,
            {"conv_mode": "multimodal"},
            f"{LLAVA_V0}Human: Hello!###Assistant: Hello!###Human: How are you?###",
            "Assistant:",
        ),
        ("llava-v1", (user(None, "Why?"),), {}, f"{VICUNA}USER: Why?\n<im_start><im_patch><im_end> ", "ASSISTANT:"),
        (
            "llava-v1",
            CHAT,
            {"conv_mode": "multimodal"},
            f"{LLAVA} USER: Hello! ASSISTANT: Hello!</s>USER: How are you? ",
            "ASSISTANT:",
        ),
        (
            "vicuna-v0",
            (*CHAT, plain("assistant", "I am good.")),
            {},
            f"{VICUNA_V0}### Human: Hello!\n### Assistant: Hello!\n### Human: How are you?\n### Assistant: I am good.\n",
            "### Assistant:",
        ),
        ("vicuna-v1.1", CHAT, {}, f"{VICUNA}USER: Hello! ASSISTANT: Hello!</s>USER: How are you? ", "ASSISTANT:"),
        (
            "alpaca",
            (plain("user", "Name three colours."),),
            {},
            ALPACA.removesuffix("### Response:"),
            "### Response:",
        ),
    ],
)
def test_the_others_are_asked_as_by_their_code(
    name: str, messages: tuple[Message, ...], variables: dict[str, Any], end: str, asking: str
) -> None:
    """Separators, roles and opening turns are those of each model's code; asking for an answer adds the assistant's role."""
    assert render(name, *messages, **variables) == end
    assert render(name, *messages, **variables, add_generation_prompt=True) == end + asking


def test_alpaca_is_trained_on_the_answer_right_behind_its_prompt() -> None:
    """The prompt and an answer are what the model was trained on: no blank between them, and the token that ends it."""
    answered = (plain("user", "Name three colours."), plain("assistant", "Red, green, blue."))
    assert render("alpaca", *answered) == f"{ALPACA}Red, green, blue.</s>"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.sampled_from(["{{ 7 * 7 }}", "{% raw %}", "{#- a -#}", " <b>&amp;'\"\\n</b>\r\n\t ", "###"]))
def test_what_is_said_comes_through_unchanged(name: str, text: str) -> None:
    """Text of system, user and assistant is neither escaped, trimmed nor evaluated.

    Only of a question to LLaVA-Med, ``<image>`` and the white space at its ends are taken off, as its evaluation does.
    """
    for content in (text, [{"type": "text", "text": text}]):
        for role in ("system", "user", "assistant"):
            messages = [plain("system", "S"), plain("user", "U"), plain("assistant", "A")]
            position = [message["role"] for message in messages].index(role)
            marked = render(name, *messages[:position], plain(role, "MARK"), *messages[position + 1 :])
            messages[position]["content"] = content
            before, mark, after = marked.partition("MARK")
            assert mark
            said = text.replace("<image>", "").strip() if (name, role) == ("llava-med", "user") else text
            if said or role == "system" or name == "alpaca":
                assert render(name, *messages) == before + said + after
            else:
                assert render(name, *messages) in without_text(before, after, conversations()[name])


def without_text(before: str, after: str, known: Conversation) -> Iterator[str]:
    """Yield the prompts in which the turn between ``before`` and ``after`` is a role and a colon alone."""
    for role, (start, end) in zip(known.empty, (known.user, known.assistant), strict=True):
        if before.endswith(start) and after.startswith(end):
            yield before.removesuffix(start) + role + after.removeprefix(end)


EMPTY_TURNS = {
    "llava-med": f"{MED}Human:",
    "llava-v0": f"{V0}Human:",
    "llava-v1": f"{VICUNA}USER:",
    "vicuna-v0": f"{VICUNA_V0}### Human:",
    "vicuna-v1.1": f"{VICUNA}USER:",
    "alpaca": ALPACA.replace("Name three colours.", "").removesuffix("### Response:"),
}


@pytest.mark.fidelity
@pytest.mark.parametrize(("name", "prompt"), EMPTY_TURNS.items(), ids=EMPTY_TURNS)
def test_a_turn_that_says_nothing(name: str, prompt: str) -> None:
    """``get_prompt`` of their code writes a role and a colon for an empty message, no separator; Alpaca has no such rule."""
    assert render(name, plain("user", "")) == render(name, user("")) == prompt


@pytest.mark.fidelity
def test_a_question_to_llava_med_is_cleaned() -> None:
    """``<image>`` goes first and white space after it, as in the evaluation; LLaVA's evaluation takes a question as it is."""
    question = "\u2003<image>\nIs <image>it a cell? \x1f"
    assert render("llava-med", user(question)) == f"{MED}Human: Is it a cell?###"
    assert render("llava-med", user(None, "<image>\n")) == f"{MED}Human: \n<im_start><im_patch><im_end>###"
    assert render("llava-med", plain("user", " <image> ")) == f"{MED}Human:"
    assert render("llava-v0", plain("user", question)) == f"{V0}Human: {question}###"


@pytest.mark.parametrize("name", SEEING)
@settings(deadline=None)
@given(
    turns=st.lists(
        st.lists(st.none() | st.text(alphabet="ab\n <>", max_size=5), min_size=1, max_size=4), min_size=1, max_size=3
    )
)
def test_an_image_has_a_start_and_an_end(name: str, turns: list[list[str | None]]) -> None:
    """A prompt has one patch, one start and one end for an image, in this order, on a line of their own; two are refused."""
    messages = [user(*parts) for parts in turns]
    images = sum(part is None for parts in turns for part in parts)
    if images > 1:
        with pytest.raises(TemplateError, match=f"a prompt with {images} images, of which"):
            render(name, *messages)
        return
    prompt = render(name, *messages, add_generation_prompt=True)
    assert prompt.count(f"\n{START}{IMAGE}{END}") == images
    assert prompt.count(START) == prompt.count(IMAGE) == prompt.count(END) == images


@pytest.mark.fidelity
@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("token", [IMAGE, START, END])
def test_the_tokens_of_an_image_in_a_text(name: str, token: str) -> None:
    """They are a text's own without an image; beside one, a processor could not tell them from the image's, so they are refused."""
    assert token in render(name, plain("user", f"a {token} b"))
    split = f"{token[:3]}<image>{token[3:]}"
    messages = [(user(None, token),), (user(f"a {token} b"), plain("assistant", "c"), user(None, "d"))]
    messages += [(user(None, "a"), plain("assistant", token))]
    for conversation in [*messages, *([(user(None, split),)] if name == "llava-med" else [])]:
        with pytest.raises(TemplateError, match=f"^the text has {token}, which stands for an image here: take it out$"):
            render(name, *conversation)
    if token != IMAGE:
        assert token in render(name, user(None, token), start_and_end=False)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SEEING])
def test_a_model_of_texts_knows_no_image_token(name: str) -> None:
    """A text is a text there."""
    assert IMAGE in render(name, plain("user", IMAGE))


@pytest.mark.parametrize("start_and_end", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_rendering_does_not_depend_on_how_blocks_are_trimmed(name: str, start_and_end: bool) -> None:
    """An environment that trims nothing, unlike transformers' own, renders the same."""
    template = ImmutableSandboxedEnvironment().from_string(chat_template(name, start_and_end=start_and_end))
    messages = [plain("system", "S\n"), user("U\n", *([None] if name in SEEING else [])), plain("assistant", " A")]
    for asked in (False, True):
        expected = render(name, *messages, start_and_end=start_and_end, add_generation_prompt=asked)
        assert template.render(messages=messages, add_generation_prompt=asked) == expected


@pytest.mark.parametrize(
    ("name", "messages", "variables", "message"),
    [
        (
            "llava-med",
            (plain("user", "Why?"),),
            {"conv_mode": "simpel"},
            "conv_mode is simpel; it must be one of: simple, multimodal",
        ),
        ("alpaca", (plain("user", "Why?"),), {"conv_mode": "multimodal"}, "conv_mode is multimodal; it must be one of: simple"),
        (
            "llava-med",
            (said("assistant", "Look:", None),),
            {},
            "the model cannot read this part of the assistant's message: image",
        ),
        (
            "llava-med",
            ({"role": "user", "content": [{"type": "audio"}]},),
            {},
            "the model cannot read this part of the user's message: audio",
        ),
        ("vicuna-v1.1", (user("Why?", None),), {}, "the model cannot read this part of the user's message: image"),
        ("llava-med", ({"role": "user"},), {}, "the user's message has no content"),
        ("llava-med", (user(),), {}, "the user's message has no content"),
        ("llava-med", ({"role": "user", "content": {"text": "Why?"}},), {}, "the user's message has no content"),
        (
            "llava-med",
            (plain("user", "Why?"), plain("system", "Be brief.")),
            {},
            "a message is of user or assistant, the first also of system; not of system",
        ),
        ("vicuna-v0", (plain("tool", "4"),), {}, "a message is of user or assistant, the first also of system; not of tool"),
        ("alpaca", CHAT, {}, "this model answers one message; it was trained on single ones"),
    ],
    ids=[
        "form", "only-form", "assistant-image", "audio", "text-model", "no-content", "no-parts", "mapping", "late-system", "tool",
        "two-questions",
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(
    name: str, messages: tuple[Message, ...], variables: dict[str, Any], message: str
) -> None:
    """An unknown form, and a part, role or turn without a prompt, is refused."""
    with pytest.raises(TemplateError) as caught:
        render(name, *messages, **variables)
    assert str(caught.value) == message


def test_the_processor_passes_the_form_and_repeats_the_patch() -> None:
    """``processor.apply_chat_template(..., conv_mode=...)`` chooses the form, and the processor makes 256 patches of one."""
    image_processor = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    processor = LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor, TOKENIZER, 14, "default", chat_template("llava-med"), IMAGE, num_additional_image_tokens=1
    )
    prompt = processor.apply_chat_template([user(None, "What is shown?")], conv_mode="multimodal")
    assert prompt == f"{MED_MULTIMODAL}Human: What is shown?\n<im_start><im_patch><im_end>###"
    ids = processor(images=Image.new("RGB", (30, 20)), text=prompt)["input_ids"][0]
    read = TOKENIZER.convert_ids_to_tokens(list(ids))
    assert [token for token in read if token in {IMAGE, START, END}] == [START, *[IMAGE] * 256, END]


def test_conversations_are_complete() -> None:
    """Each conversation has "simple" as its first form, a source, and its code's stop strings."""
    assert tuple(conversations()) == NAMES
    for name, known in conversations().items():
        assert next(iter(known.forms)) == "simple"
        assert known.sources
        assert known.images == (name in SEEING)
    stops = {name: stop_strings(name) for name in NAMES}
    hashes, tokens = ("###",), ("</s>",)
    assert stops == dict(zip(NAMES, (hashes, hashes, tokens, hashes, tokens, tokens), strict=True))


def test_every_recipe_names_a_conversation() -> None:
    """Every recipe of the package has a conversation."""
    assert {catalogue.load(name).conversation for name in catalogue.names()} == set(NAMES)


def test_an_unknown_conversation_is_refused() -> None:
    """An unknown conversation is refused, with the nearest names."""
    for function in (chat_template, stop_strings):
        with refused(UsageError, found="llava-mad", expected="one of llava-med, llava-v1, llava-v0"):
            function("llava-mad")
