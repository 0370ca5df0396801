"""Chat templates with the prompts of the models' own code; conversations.toml has the strings and sources.

The token that begins a text is no part of them: a tokenizer adds it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from string import Template

from deltaweights.errors import UsageError
from deltaweights.recipes.table import LINE, TEXT, URL, Table, candidates, parse_toml

DATA = "conversations.toml"

IMAGE, START, END = "<im_patch>", "<im_start>", "<im_end>"
"""LLaVA's tokens: one for each feature of an image, which a template has once and the processor repeats, and those around it."""

TEMPLATE = "chat_template.jinja.in"
"""In this package. Every tag trims the blanks around it, so that the result does not depend on an environment's own trimming."""

ASKED = """\
{%- if add_generation_prompt -%}
    {{- $generation -}}
{%- endif -%}
"""
NOT_ASKED = """\
{#- add_generation_prompt changes nothing: the model itself begins its answer with $assistant. -#}
"""
CLEANED = """ | replace("<image>", "") | trim"""
SINGLE = """\
{%- if messages | selectattr("role", "equalto", "user") | list | length > 1 -%}
    {{- raise_exception("this model answers one message; it was trained on single ones") -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class PromptFormat:
    """One way to open a conversation: the system's text, and opening turns, alternately of user and assistant."""

    system: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """A model's entry in conversations.toml; ``forms`` are its prompt formats by name, "simple" first.

    ``user`` and ``assistant`` are the strings before and after a turn, ``empty`` what stands for a turn of each that says nothing;
    ``clean_question`` takes ``<image>``, and then white space at the ends, off a question; ``generation`` is empty where the model
    itself writes the beginning of its turn.
    """

    title: str
    sources: tuple[str, ...]
    images: bool
    after_system: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    empty: tuple[str, str]
    clean_question: bool
    generation: str
    stop: tuple[str, ...]
    single: bool
    forms: Mapping[str, PromptFormat]


@cache
def conversations() -> dict[str, Conversation]:
    """Return all known conversations by name, in the order of conversations.toml."""
    document = parse_toml(resources.files(__package__).joinpath(DATA).read_bytes(), DATA)
    top = Table(document, DATA)
    keys = tuple(field.name for field in fields(Conversation))
    return {name: _conversation(top.table(name, keys)) for name in top}


def chat_template(name: str, *, start_and_end: bool = True) -> str:
    """Return the text of chat_template.jinja for the conversation ``name``.

    Its variable ``conv_mode``, named after the option of the original scripts, chooses the prompt format: "simple", the default, or
    for example "multimodal". A message's content is a string or a list of parts, ``{"type": "text", "text": ...}`` and, from the
    user, ``{"type": "image"}``; a leading system message replaces the format's system text. An image is one ``IMAGE`` on a line of
    its own after the text, between ``START`` and ``END`` if ``start_and_end`` (LLaVA's ``mm_use_im_start_end``). What cannot be
    rendered raises through ``raise_exception``: a second image in a prompt, too, and beside an image a text with its tokens.

    Raises ``UsageError`` for an unknown conversation.
    """
    known = _known(name)
    tokens = [START, IMAGE, END] if start_and_end else [IMAGE]
    ending = Template(ASKED if known.generation else NOT_ASKED).substitute(
        generation=_quoted(known.generation), assistant=_quoted(known.assistant[0].strip())
    )
    first, *others = map(_quoted, known.forms)
    template = Template(resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.substitute(
        title=known.title,
        choices=f"{first}, the default{''.join(f', or {other}' for other in others)}",
        expected=_quoted(f"; it must be one of: {', '.join(known.forms)}"),
        systems=_dictionary({key: form.system for key, form in known.forms.items()}),
        openings=_dictionary({key: _opening(known, form) for key, form in known.forms.items()}),
        image=_quoted("\n" + "".join(tokens) if known.images else ""),
        image_tokens=json.dumps(tokens if known.images else []),
        cleaned=CLEANED if known.clean_question else "",
        after_system=_quoted(known.after_system),
        before_user=_quoted(known.user[0]),
        after_user=_quoted(known.user[1]),
        before_assistant=_quoted(known.assistant[0]),
        after_assistant=_quoted(known.assistant[1]),
        empty_user=_quoted(known.empty[0]),
        empty_assistant=_quoted(known.empty[1]),
        ending=f"{SINGLE if known.single else ''}{ending}",
    )


def stop_strings(name: str) -> tuple[str, ...]:
    """Return the strings at which the original code ended an answer. Raises ``UsageError`` for an unknown conversation."""
    return _known(name).stop


def _known(name: str) -> Conversation:
    known = conversations()
    if name not in known:
        expected = candidates(name, tuple(known))
        raise UsageError("no conversation has this name", found=name, expected=expected, remedy="correct it")
    return known[name]


def _conversation(table: Table) -> Conversation:
    table.require("title", "sources", "after_system", "user", "assistant", "stop", "forms")
    formats = table.table("forms")
    forms = [(name, formats.table(name, ("system", "turns"))) for name in formats]
    user, assistant = _pair(table, "user"), _pair(table, "assistant")
    return Conversation(
        title=table.text("title", LINE) or "",
        sources=table.texts("sources", URL) or (),
        images=table.flag("images", default=False),
        after_system=table.text("after_system", TEXT) or "",
        user=user,
        assistant=assistant,
        empty=_pair(table, "empty") if "empty" in table else ("".join(user), "".join(assistant)),
        clean_question=table.flag("clean_question", default=False),
        generation=table.text("generation", TEXT) or "",
        stop=table.texts("stop", LINE) or (),
        single=table.flag("single", default=False),
        forms={
            name: PromptFormat(form.text("system", TEXT) or "", form.texts("turns", TEXT) or ()) for name, form in forms
        },
    )


def _pair(table: Table, key: str) -> tuple[str, str]:
    first, second = table.texts(key, TEXT) or ("", "")
    return first, second


def _opening(known: Conversation, form: PromptFormat) -> str:
    roles = itertools.cycle((known.user, known.assistant))
    return "".join(before + turn + after for (before, after), turn in zip(roles, form.turns))  # noqa: B905  (endless)


def _dictionary(values: dict[str, str]) -> str:
    return ",\n    ".join(f"{_quoted(key)}: {_quoted(value)}" for key, value in values.items())


def _quoted(text: str) -> str:
    """Return ``text`` as a Jinja literal: Jinja reads JSON's escapes as Python does."""
    return json.dumps(text, ensure_ascii=False)
