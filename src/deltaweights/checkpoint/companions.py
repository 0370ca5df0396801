"""The files copied along with the weights: configuration, tokenizer, licence."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.small_files import json_object, refuse_wrong_content
from deltaweights.errors import MalformedInput
from deltaweights.util.text import UTF8_MARK

COPIED = frozenset({
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "chat_template.jinja",
    "preprocessor_config.json", "processor_config.json",
})  # fmt: skip

LEGAL = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)(\.(txt|md))?", re.IGNORECASE)

README = "README.md"
"""Copied as DELTA_README.md or TARGET_README.md, since it describes the input, not the result."""

INPUT_README = re.compile("(DELTA|TARGET|BASE)_README[.]md")
"""The model card of an input's input, copied under the same name."""

SOURCE_MANIFEST = "SOURCE_MANIFEST.json"
"""The manifest of a result of ours that was copied, in the folder of the copy: it says how the weights were made."""

OWN_FILES = frozenset({"README.md", "DELTAWEIGHTS_NOTICE.txt", "manifest.json", "SHA256SUMS", SOURCE_MANIFEST})
"""Files in every folder that this program writes, which describe that folder alone."""

PROOF = frozenset({"manifest.json", "SHA256SUMS", "model.sig"})
"""What whoever receives a result checks it with."""

_TERMS = re.compile(
    r"(.*[ ._-])?(LICEN[CS]ES?|NOTICES?|COPYING|COPYRIGHT|(USE|USAGE)_POLICY|TERMS)([ ._-].*)?", re.IGNORECASE
)
_TEXTS = frozenset({"", ".txt", ".md", ".rst", ".html", ".pdf"})
_CARD = re.compile("(.+_)?README[.]md")

MAX_SIZE, MAX_TEXT, MAX_TOTAL = 64 * 2**20, 8 * 2**20, 128 * 2**20
"""Limits for a configuration or tokenizer file (a tokenizer.json has at most some 20 MB), for a licence or a model card, and for
all companions together, which are held in memory."""

NOTICE_NAME = "DELTAWEIGHTS_NOTICE.txt"

# The notices are part of the format: changing one letter changes every manifest.

_MEDICAL = """
LLaVA-Med, and every model made from it, is for research use only: it is subject to the terms of LLaMA, Vicuna and GPT-4, and it is
not for clinical care or for any clinical decision.
"""

NOTICE = f"""\
RESEARCH USE ONLY. NOT FOR CLINICAL USE.

The weights in this folder were rebuilt by adding published delta weights to a base model. They are subject to the licence of the
base model and to the licence and terms of the delta; rebuilding them grants no further right. Both LLaMA-1 and the models derived
from it that were published as deltas are for research only.
{_MEDICAL}"""
"""Written into every merged checkpoint."""

NOTICE_OF_A_DELTA = f"""\
RESEARCH USE ONLY. NOT FOR CLINICAL USE.

The delta weights in this folder were made by subtracting a base model from a model that was fine-tuned from it. They are of no use
without the base model, and subject to its licence and to that of the fine-tuned model; making them grants no further right. LLaMA-1
and the models derived from it are for research only.
{_MEDICAL}"""
"""Written into every delta."""

NOTICE_OF_A_COPY = f"""\
RESEARCH USE ONLY. NOT FOR CLINICAL USE.

The weights in this folder were converted from another layout or container. They are subject to their licence; converting them
grants no further right. LLaMA-1 and the models derived from it are for research only.
{_MEDICAL}"""
"""Written into every converted checkpoint."""


@dataclass(frozen=True)
class Companions:
    """File contents by name in the target, the names that are not copied, and a line for each change made."""

    files: dict[str, bytes]
    left_behind: tuple[str, ...]
    changes: tuple[str, ...] = ()


def is_companion(name: str) -> bool:
    """Return whether a file of this name is copied along with the weights."""
    return name in COPIED or name == README or any(pattern.fullmatch(name) for pattern in (LEGAL, INPUT_README))


def belongs(name: str) -> bool:
    """Return whether a file of this name is downloaded along with the weights: companions, proofs, licences, notices and cards."""
    if is_companion(name) or name in PROOF or _CARD.fullmatch(name):
        return True
    return is_terms(name)


def is_terms(name: str) -> bool:
    """Return whether a file of this name is a licence, a notice, or terms."""
    return _TERMS.fullmatch(name) is not None and (Path(name).suffix.lower() in _TEXTS or "." not in name)


def read_companions(
    directory: Directory, weights: frozenset[str], dtype: str, role: str, notice: str, *, ours: bool = False
) -> Companions:
    """Read the companions in ``directory``, set config.json's dtype to ``dtype`` (torch's name), and add ``notice``.

    ``weights`` are the files to skip; with ``ours``, for a folder written by this program, so are ``OWN_FILES``. ``role`` is
    "delta", "target" or "base". Raises ``MalformedInput`` when config.json is not a JSON object, or a companion is not a
    regular file or not what its name says, ``InputOutputError`` when one cannot be read.
    """
    files = {NOTICE_NAME: notice.encode()}
    left_behind: list[str] = []
    changes: list[str] = []
    seen: dict[str, str] = {}  # by name in lower case
    left = MAX_TOTAL
    for name in directory.names():
        if ours and name in OWN_FILES:
            continue
        if is_companion(name):
            where = directory.path / name
            twin = seen.setdefault(name.casefold(), name)
            if twin != name:
                problem, remedy = "two files whose names differ only in case", "give a folder with one of them"
                raise MalformedInput(problem, where=where, found=f"{name} beside {twin}", remedy=remedy)
            data = directory.read_companion(name, min(left, MAX_SIZE if name in COPIED else MAX_TEXT))
            left -= len(data)
            refuse_wrong_content(data, where)
            if name.endswith(".json") and data.startswith(UTF8_MARK):
                data = data.removeprefix(UTF8_MARK)  # with it, transformers would not read the file
                changes.append(f"{name}: the byte-order mark at its beginning was left out")
            files[f"{role.upper()}_README.md" if name == README else name] = data
        elif name not in weights and not name.startswith("."):
            left_behind.append(name)
    if "config.json" in files:
        files["config.json"], change = state_dtype(files["config.json"], dtype, directory.path / "config.json")
        changes += [change] if change else []
    return Companions(files, tuple(left_behind), tuple(changes))


def state_dtype(config: bytes, dtype: str, where: Path) -> tuple[bytes, str | None]:
    """Return ``config`` with only the value of ``torch_dtype`` (newer: ``dtype``) set to ``dtype``, and a line about the change.

    Raises ``MalformedInput`` when it is not a JSON object.
    """
    document = json_object(config, where)
    text, changes = config.removeprefix(UTF8_MARK).decode(), []
    for key in ("torch_dtype", "dtype"):
        stated = document.get(key)
        if not isinstance(stated, str) or stated == dtype:
            continue
        begin, end = _value_span(text, key)
        text = f"{text[:begin]}{json.dumps(dtype)}{text[end:]}"
        changes.append(f"{key} changed from {stated} to {dtype}")
    return text.encode(), f"config.json: {', '.join(changes)}" if changes else None


_TOKEN, _COLON = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]'), re.compile(r"\s*:")


def _value_span(text: str, key: str) -> tuple[int, int]:
    """Return where the string value of ``key`` is in the JSON object ``text``; nested objects may have the same key."""
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
    raise AssertionError("the parsed document has this key")
