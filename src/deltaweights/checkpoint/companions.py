"""The files that travel with the weights: configuration, tokenizer, licence.

Enters: the folder of a delta, or of the model that one is made from. Leaves: the bytes of the files on the allow-list, by their
name in the target, and the names of those left behind. Never: code, pickles, stale indexes, or a file outside the folder.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.documents import json_object, refuse_another
from deltaweights.errors import MalformedInput

COPIED = frozenset({
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "chat_template.jinja",
    "preprocessor_config.json", "processor_config.json",
})  # fmt: skip

LEGAL = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)(\.(txt|md))?", re.IGNORECASE)

README = "README.md"
"""Copied as DELTA_README.md or TARGET_README.md: it describes the input, not the result."""

OF_AN_INPUT = re.compile("(DELTA|TARGET|BASE)_README[.]md")
"""The card of an input's input, which goes on as it is."""

MADE = frozenset({"README.md", "DELTAWEIGHTS_NOTICE.txt", "manifest.json", "SHA256SUMS"})
"""What stands in each of our own folders, and speaks of that folder alone."""

MAX_SIZE = 64 * 1024 * 1024
"""A tokenizer.json has at most some 20 MB; what is larger is no companion."""

MAX_TEXT = 8 * 1024 * 1024
"""Of a licence or a model card."""

MOST_OF_ALL = 128 * 1024 * 1024
"""Of all that travels with the weights, which is in memory together."""

NOTICE_NAME = "DELTAWEIGHTS_NOTICE.txt"

NOTICE = """\
RESEARCH USE ONLY. NOT FOR CLINICAL USE.

The weights in this folder were rebuilt by adding published delta weights to a base model. They are subject to the licence of the
base model and to the licence and terms of the delta; rebuilding them grants no further right. Both LLaMA-1 and the models derived
from it that were published as deltas are for research only.

LLaVA-Med, and every model made from it, is for research use only: it is subject to the terms of LLaMA, Vicuna and GPT-4, and it is
not for clinical care or for any clinical decision.
"""
"""Stands in every merged checkpoint. Part of the format: a change of a letter changes every manifest."""

NOTICE_OF_A_DELTA = """\
RESEARCH USE ONLY. NOT FOR CLINICAL USE.

The delta weights in this folder were made by subtracting a base model from a model that was fine-tuned from it. They are of no use
without the base model, and subject to its licence and to that of the fine-tuned model; making them grants no further right. LLaMA-1
and the models derived from it are for research only.

LLaVA-Med, and every model made from it, is for research use only: it is subject to the terms of LLaMA, Vicuna and GPT-4, and it is
not for clinical care or for any clinical decision.
"""
"""Stands in every delta that is made; as ``NOTICE``."""


NOTICE_OF_A_COPY = """\
RESEARCH USE ONLY. NOT FOR CLINICAL USE.

The weights in this folder were converted from another layout or container. They are subject to their licence; converting them
grants no further right. LLaMA-1 and the models derived from it are for research only.

LLaVA-Med, and every model made from it, is for research use only: it is subject to the terms of LLaMA, Vicuna and GPT-4, and it is
not for clinical care or for any clinical decision.
"""
"""Stands in every checkpoint that was converted; as ``NOTICE``."""


@dataclass(frozen=True)
class Companions:
    """File contents by their name in the target; names that were left behind; what was changed, a line each."""

    files: dict[str, bytes]
    left_behind: tuple[str, ...]
    changes: tuple[str, ...] = ()


def is_companion(name: str) -> bool:
    """Tell whether a file of this name travels with the weights."""
    return name in COPIED or name == README or any(form.fullmatch(name) for form in (LEGAL, OF_AN_INPUT))


def read_companions(
    directory: Directory, weights: frozenset[str], dtype: str, role: str, notice: str, *, ours: bool = False
) -> Companions:
    """Read what is copied from ``directory``, passing over ``weights``, and make config.json state ``dtype`` (torch's name).

    ``role`` says whether it is the folder of a "delta" or of a "target"; ``notice`` goes along. Of a folder that is ``ours`` the
    card, the notice, manifest and checksums are passed over: they speak of it alone.
    Raises ``MalformedInput`` when config.json is not a JSON object, or a companion is no regular file or not what its name says,
    ``InputOutputError`` when one cannot be read.
    """
    files = {NOTICE_NAME: notice.encode()}
    left_behind, room, folded = [], MOST_OF_ALL, dict[str, str]()
    for name in directory.names():
        if ours and name in MADE:
            continue
        if is_companion(name):
            twin = folded.setdefault(name.casefold(), name)
            if twin != name:
                problem, remedy = "two files of one name, where case does not count", "give a folder with one of them"
                where = directory.path / name
                raise MalformedInput(problem, where=where, found=f"{name} beside {twin}", remedy=remedy)
            data = directory.read_companion(name, min(room, MAX_SIZE if name in COPIED else MAX_TEXT))
            room -= len(data)
            refuse_another(data, directory.path / name)
            files[f"{role.upper()}_README.md" if name == README else name] = data
        elif name not in weights and not name.startswith("."):
            left_behind.append(name)
    change = None
    if "config.json" in files:
        files["config.json"], change = state_dtype(files["config.json"], dtype, directory.path / "config.json")
    return Companions(files, tuple(left_behind), (change,) if change else ())


def state_dtype(config: bytes, dtype: str, where: Path) -> tuple[bytes, str | None]:
    """Return ``config`` with its ``torch_dtype`` (``dtype`` in newer files) set to ``dtype``, that value alone, and what changed.

    A config that states no dtype, or the right one, is returned as it is. Raises ``MalformedInput`` when it is not a JSON object.
    """
    document = json_object(config, where)
    text, changes = config.decode(), []
    for key in ("torch_dtype", "dtype"):
        stated = document.get(key)
        if not isinstance(stated, str) or stated == dtype:
            continue
        begin, end = _value_of(text, key)
        text = f"{text[:begin]}{json.dumps(dtype)}{text[end:]}"
        changes.append(f"{key} changed from {stated} to {dtype}")
    return text.encode(), f"config.json: {', '.join(changes)}" if changes else None


_TOKEN, _COLON = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]'), re.compile(r"\s*:")


def _value_of(text: str, key: str) -> tuple[int, int]:
    """Return where the string is that ``key`` has in the one object that ``text`` is; the same words may stand deeper down."""
    depth, tokens = 0, _TOKEN.finditer(text)
    for token in tokens:
        found = token.group()
        if found in "[{":
            depth += 1
        elif found in "]}":
            depth -= 1
        elif depth == 1 and _COLON.match(text, token.end()) and json.loads(found) == key:
            value = next(tokens)
            return value.start(), value.end()
    raise AssertionError("a key that was found is there")
