"""Checks that a chat template keeps the question and has a place for the image."""

from __future__ import annotations

from typing import Any

from deltaweights.export.conversation import END, START
from deltaweights.inference.findings import CheckFindings
from deltaweights.inference.model_folder import TOKENIZER_CONFIG
from deltaweights.inference.prompts import QUESTION
from deltaweights.inference.rendering import render, template_of
from deltaweights.inference.transformers_loader import LibraryError
from deltaweights.util.text import Json

# Files that may hold the template, by precedence.
TEMPLATES = ("chat_template.jinja", "chat_template.json", TOKENIZER_CONFIG)


def check_template(tool: Any, file_names: frozenset[str], findings: CheckFindings, *, vision: bool) -> None:
    """Render one question, with one image for a model with ``vision``; ``tool`` is the processor, or the tokenizer alone.

    The text must contain the question and one image token, with equally many tokens that begin and end an image.
    """
    file = next((name for name in TEMPLATES if name in file_names), TEMPLATES[0])
    if template_of(tool) is None:
        if vision:
            findings.warn(file, "has no chat template, which places images in a prompt")
        return
    parts: list[Json] = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    try:
        text = render(tool, [{"role": "user", "content": parts if vision else QUESTION}])
    except LibraryError as error:
        findings.doubt(file, "cannot render a question", found=error)
        return
    if QUESTION not in text:
        findings.doubt(file, "drops the question", found=text)
    token = getattr(tool, "image_token", None)
    if not vision or not isinstance(token, str) or token not in tool.tokenizer.get_vocab():
        return  # check_images reports a bad token
    if text.count(token) != 1:
        problem = "does not write one image token for one image"
        findings.doubt(file, problem, found=text.count(token), expected=f"1 {token}")
    if text.count(START) != text.count(END):
        found = f"{text.count(START)} and {text.count(END)}"
        findings.doubt(file, f"does not write as many {START} as {END}", found=found)
