"""A chat template's text, made in a process of its own: a template is a program, and one may run for ever.

Enters: the library's processor or tokenizer, and a conversation. Leaves: the text. Never: a template run in the process that asks,
more than ``SECONDS`` of work or ``MEMORY`` for it, or a process that is left behind.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from deltaweights.inference.loading import Refusal, reason
from deltaweights.inference.process import finished
from deltaweights.util.text import Json

SECONDS = 2
"""Seconds of the processor that rendering may take; known templates take thousandths."""

MEMORY = 1024**3
"""Bytes that the process may allocate."""

LONGEST_TEXT = 1_000_000
"""Characters of the text; a model takes some thousand tokens."""


def template_of(tool: Any) -> str | None:
    """Return the template that ``tool``, the library's processor or tokenizer, uses; None when it has none."""
    template = getattr(tool, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template
    return template if isinstance(template, str) and template else None


def render(tool: Any, turns: Sequence[Json], options: Mapping[str, str] | None = None) -> str:
    """Return the text with which ``tool`` asks for the answer to ``turns``; its template also gets ``options``.

    Raises ``Refusal`` when the template fails or takes too much, ``InputOutputError`` when no process can be started.
    """
    tokenizer = getattr(tool, "tokenizer", tool)
    variables = {**tokenizer.special_tokens_map, **(options or {})}
    asked = json.dumps({"template": template_of(tool), "turns": turns, "variables": variables}, default=str)
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each thread of numpy's takes memory
    program = ["-m", "deltaweights.inference.rendering"]
    code, output, _ = finished(program, "start the rendering of the template", stdin=asked, env=alone)
    if code == -signal.SIGXCPU:
        raise Refusal(f"the template runs for more than {SECONDS} seconds")
    try:
        told = json.loads(output)
        text, refusal = told["text"], told["refusal"]
    except (ValueError, KeyError, TypeError):
        raise Refusal(f"rendering the template ended with exit code {code}") from None
    if refusal is not None:
        raise Refusal(refusal)
    return str(text)


def main() -> None:
    """Render what stdin asks for, under limits, and write the text, or why there is none, to stdout."""
    from transformers.utils import chat_template_utils  # noqa: PLC0415  (a second, without torch)

    asked = json.load(sys.stdin)
    text: str | None = None
    refusal: str | None = None
    try:
        _limit()
        made = _render(chat_template_utils, asked["template"], asked["turns"], asked["variables"])
        if len(made) > LONGEST_TEXT:
            refusal = f"the template makes {len(made):,} characters of one question"
        else:
            text = made
    except Exception as error:  # noqa: BLE001  (a template raises what it likes)
        refusal = reason(error)
    json.dump({"text": text, "refusal": refusal}, sys.stdout)


def _limit() -> None:
    import resource  # noqa: PLC0415  (the parent sets no limits)

    seconds = math.ceil(time.process_time()) + SECONDS
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_DATA, MEMORY)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _render(library: Any, template: str, turns: list[Any], variables: dict[str, Any]) -> str:
    """Return what the library itself makes of a template, whose sandbox and functions are its own."""
    variables["add_generation_prompt"] = True
    if hasattr(library, "render_jinja_template"):
        return str(library.render_jinja_template([turns], chat_template=template, **variables)[0][0])
    compiled = library._compile_jinja_template(template)  # before transformers 4.53
    return str(compiled.render(messages=turns, tools=None, documents=None, **variables))


if __name__ == "__main__":
    main()
