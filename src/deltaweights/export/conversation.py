"""How one speaks to a model: the prompts of its own code, as the chat template that current transformers renders.

Enters: the name of a conversation; conversations.toml, which lies in the package, has its strings and where they are from. Leaves:
the text of chat_template.jinja, and the strings at which an answer ends. Never: a change to what the user says, or the beginning
``<s>``, which the tokenizer adds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template

from deltaweights.errors import UsageError
from deltaweights.recipes.table import LINE, TEXT, URL, Table, candidates
from deltaweights.recipes.toml_document import parse_toml

DATA = "conversations.toml"

IMAGE, START, END = "<im_patch>", "<im_start>", "<im_end>"
"""LLaVA's tokens: one for each feature of an image, which a template has once and the processor repeats, and those around them."""

KEYS = (
    "title", "sources", "images", "after_system", "user", "assistant", "generation", "stop", "single", "forms",
)  # fmt: skip

TEMPLATE = Template("""\
{#- The prompts of $title, as its own code made them. conv_mode chooses the form: $choices. -#}
{%- set systems = {
    $systems
} -%}
{%- set openings = {
    $openings
} -%}
{%- set image = $image -%}
{%- set form = conv_mode | default("simple", true) -%}
{%- if form not in systems -%}
    {{- raise_exception("conv_mode is " ~ form ~ $expected) -}}
{%- endif -%}

{#- What a message says: its text, and after that its images. -#}
{%- macro said(message) -%}
    {%- set content = message["content"] -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content and content is sequence and content is not mapping -%}
        {%- for part in content -%}
            {%- if part["type"] == "text" -%}
                {{- part["text"] -}}
            {%- elif part["type"] != "image" or message["role"] != "user" or not image -%}
                {{- raise_exception("the model cannot read this part of the " ~ message["role"] ~ "'s message: " ~ part["type"]) -}}
            {%- endif -%}
        {%- endfor -%}
        {%- for part in content if part["type"] == "image" -%}
            {{- image -}}
        {%- endfor -%}
    {%- else -%}
        {{- raise_exception("the " ~ message["role"] ~ "'s message has no content") -}}
    {%- endif -%}
{%- endmacro -%}

{%- if messages and messages[0]["role"] == "system" -%}
    {{- said(messages[0]) ~ $after_system -}}
{%- else -%}
    {{- systems[form] ~ $after_system -}}
{%- endif -%}
{{- openings[form] -}}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {{- $before_user ~ said(message) ~ $after_user -}}
    {%- elif message["role"] == "assistant" -%}
        {{- $before_assistant ~ said(message) ~ $after_assistant -}}
    {%- elif not (loop.first and message["role"] == "system") -%}
        {{- raise_exception("a message is of user or assistant, the first also of system; not of " ~ message["role"]) -}}
    {%- endif -%}
{%- endfor -%}
$ending""")
"""Every tag trims the blanks around it, so that what is rendered does not depend on an environment's own trimming."""

ASKED = """\
{%- if add_generation_prompt -%}
    {{- $generation -}}
{%- endif -%}
"""

NOT_ASKED = """\
{#- add_generation_prompt changes nothing: the model itself begins its answer with $assistant. -#}
"""

SINGLE = """\
{%- if messages | selectattr("role", "equalto", "user") | list | length > 1 -%}
    {{- raise_exception("this model answers one message; it was trained on single ones") -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Form:
    """One way to open a conversation: the system's text, and turns of user and assistant, by turns, that stand before the first."""

    system: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """What conversations.toml says of a model, in its words; ``forms`` by name, "simple" first.

    ``user`` and ``assistant`` are the strings before and after a turn; ``generation`` is empty where the model itself writes how
    its turn begins.
    """

    title: str
    sources: tuple[str, ...]
    images: bool
    after_system: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    stop: tuple[str, ...]
    single: bool
    forms: Mapping[str, Form]


@cache
def conversations() -> dict[str, Conversation]:
    """Return all known conversations by name, in the order of conversations.toml."""
    document = parse_toml(files("deltaweights.export").joinpath(DATA).read_bytes(), DATA)
    top = Table(document, DATA)
    return {name: _conversation(top.table(name, KEYS)) for name in top}


def chat_template(name: str, *, start_and_end: bool = True) -> str:
    """Return the text of chat_template.jinja for the conversation ``name``.

    Beside transformers' own variables the template has one, ``conv_mode``, named as the option of the original scripts: the form,
    such as "simple", the default, or "multimodal". A message's content is a string or a list of parts, ``{"type": "text", "text":
    ...}`` and, in the user's turns, ``{"type": "image"}``; a leading system message stands instead of the form's system text. Each
    image is one ``IMAGE`` on a line of its own after the text, between ``START`` and ``END`` unless ``start_and_end`` is false
    (``mm_use_im_start_end`` of LLaVA's config.json). What cannot be rendered raises through ``raise_exception``.

    Raises ``UsageError`` when no conversation has this name.
    """
    known = _known(name)
    image = f"\n{START}{IMAGE}{END}" if start_and_end else f"\n{IMAGE}"
    ending = ASKED if known.generation else NOT_ASKED
    first, *others = map(_quoted, known.forms)
    return TEMPLATE.substitute(
        title=known.title,
        choices=f"{first}, the default{''.join(f', or {other}' for other in others)}",
        expected=_quoted(f"; it must be one of: {', '.join(known.forms)}"),
        systems=_dictionary({form: opened.system for form, opened in known.forms.items()}),
        openings=_dictionary({form: _opening(known, opened) for form, opened in known.forms.items()}),
        image=_quoted(image if known.images else ""),
        after_system=_quoted(known.after_system),
        before_user=_quoted(known.user[0]),
        after_user=_quoted(known.user[1]),
        before_assistant=_quoted(known.assistant[0]),
        after_assistant=_quoted(known.assistant[1]),
        ending=(SINGLE if known.single else "")
        + Template(ending).substitute(
            generation=_quoted(known.generation), assistant=_quoted(known.assistant[0].strip())
        ),
    )


def stop_strings(name: str) -> tuple[str, ...]:
    """Return the strings after which the original code stopped reading an answer. Raises ``UsageError`` as above."""
    return _known(name).stop


def _known(name: str) -> Conversation:
    known = conversations()
    if name not in known:
        raise UsageError(
            "no conversation has this name", found=name, expected=candidates(name, tuple(known)), remedy="correct it"
        )
    return known[name]


def _conversation(table: Table) -> Conversation:
    table.require("title", "sources", "after_system", "user", "assistant", "stop", "forms")
    opened = table.table("forms")
    return Conversation(
        table.text("title", LINE) or "",
        table.texts("sources", URL) or (),
        table.flag("images", default=False),
        table.text("after_system", TEXT) or "",
        _around(table, "user"),
        _around(table, "assistant"),
        table.text("generation", TEXT) or "",
        table.texts("stop", LINE) or (),
        table.flag("single", default=False),
        {name: _form(opened.table(name, ("system", "turns"))) for name in opened},
    )


def _around(table: Table, key: str) -> tuple[str, str]:
    before, after = table.texts(key, TEXT) or ("", "")
    return before, after


def _form(table: Table) -> Form:
    return Form(table.text("system", TEXT) or "", table.texts("turns", TEXT) or ())


def _opening(known: Conversation, opened: Form) -> str:
    """Return the turns that stand before the first."""
    roles = (known.user, known.assistant)
    return "".join(roles[i % 2][0] + said + roles[i % 2][1] for i, said in enumerate(opened.turns))


def _dictionary(values: dict[str, str]) -> str:
    return ",\n    ".join(f"{_quoted(key)}: {_quoted(value)}" for key, value in values.items())


def _quoted(text: str) -> str:
    """Return ``text`` as a literal of Jinja, which reads JSON's escapes as Python does."""
    return json.dumps(text, ensure_ascii=False)
