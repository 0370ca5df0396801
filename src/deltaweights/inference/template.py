"""The chat template: whether it says where an image stands.

Enters: the library's processor, or a tokenizer alone. Leaves: findings. Never: a template run in this process.
"""

from __future__ import annotations

from typing import Any

from deltaweights.export.conversation import END, START
from deltaweights.inference.findings import Findings
from deltaweights.inference.loading import Refusal
from deltaweights.inference.prompts import QUESTION
from deltaweights.inference.rendering import render, template_of
from deltaweights.util.text import Json

TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Files that hold a template, in the order in which they count."""


def check_template(tool: Any, names: frozenset[str], found: Findings, *, sees: bool) -> None:
    """Render one question, with one image for a model that ``sees``; ``names`` are the folder's files.

    The text must have the question, and one image token; the tokens before and after images are to be equal in number.
    """
    file = next((name for name in TEMPLATES if name in names), TEMPLATES[0])
    if template_of(tool) is None:
        if sees:
            found.warn(file, "has no chat template, which says where images stand")
        return
    parts: list[Json] = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    try:
        text = render(tool, [{"role": "user", "content": parts if sees else QUESTION}])
    except Refusal as refusal:
        found.doubt(file, "makes no prompt of a question", found=refusal)
        return
    if QUESTION not in text:
        found.doubt(file, "leaves out the question", found=text)
    token = getattr(tool, "image_token", None)
    if not sees or not isinstance(token, str) or token not in tool.tokenizer.get_vocab():
        return  # what is wrong with the token itself has been found
    if text.count(token) != 1:
        found.doubt(
            file, "does not write one image token for one image", found=text.count(token), expected=f"1 {token}"
        )
    if text.count(START) != text.count(END):
        starts, ends = text.count(START), text.count(END)
        found.doubt(file, f"does not write as many {START} as {END}", found=f"{starts} and {ends}")
