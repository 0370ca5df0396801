"""Renders chat templates in a process of its own, with limits: a template is a program, and may never end."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from deltaweights.inference.python_process import run_python
from deltaweights.inference.transformers_loader import LibraryError, reason
from deltaweights.util.text import Json

CPU_SECONDS = 2  # for the rendering; known templates take milliseconds
MAX_MEMORY = 1024**3  # bytes that the process may allocate
MAX_TEXT = 1_000_000  # characters of the result; a model takes a few thousand tokens


class RefusedByTemplate(LibraryError):
    """The template itself refuses what it was given, in the words of its ``raise_exception``."""


def template_of(tool: Any) -> str | None:
    """Return the chat template of ``tool``, a processor or tokenizer; None when it has none."""
    template = getattr(tool, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template
    return template if isinstance(template, str) and template else None


def render(tool: Any, turns: Sequence[Json], options: Mapping[str, str] | None = None) -> str:
    """Return the prompt for the answer to ``turns``; ``options`` are more variables for the template of ``tool``.

    Raises ``RefusedByTemplate`` for what the template refuses, ``LibraryError`` when it fails or exceeds a limit,
    ``InputOutputError`` when no process can be started.
    """
    tokenizer = getattr(tool, "tokenizer", tool)
    variables = {**tokenizer.special_tokens_map, **(options or {})}
    request = json.dumps({"template": template_of(tool), "turns": turns, "variables": variables}, default=str)
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each thread of numpy's takes memory
    program = ["-m", "deltaweights.inference.rendering"]
    code, output, _ = run_python(program, "start the rendering of the template", stdin=request, env=env)
    if code == -signal.SIGXCPU:
        raise LibraryError(f"the template runs for more than {CPU_SECONDS} seconds")
    try:
        response = json.loads(output)
    except ValueError:
        raise LibraryError(f"rendering the template ended with exit code {code}") from None
    if "refused" in response:
        raise RefusedByTemplate(response["refused"])
    if "error" in response:
        raise LibraryError(response["error"])
    return str(response["text"])


def main() -> None:
    """Render the request on stdin, under limits, and write the text, or the error, to stdout."""
    from jinja2 import TemplateError  # noqa: PLC0415
    from transformers.utils import chat_template_utils  # noqa: PLC0415  (takes a second)

    request = json.load(sys.stdin)
    try:
        _set_limits()
        text = _render(chat_template_utils, request["template"], request["turns"], request["variables"])
        too_long = f"the template makes {len(text):,} characters of one question"
        response = {"error": too_long} if len(text) > MAX_TEXT else {"text": text}
    except Exception as error:  # noqa: BLE001  (a template can raise anything)
        # raise_exception raises the class itself, a faulty template one derived from it.
        response = {"refused" if type(error) is TemplateError else "error": reason(error)}
    json.dump(response, sys.stdout)


def _set_limits() -> None:
    seconds = math.ceil(time.process_time()) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_DATA, MAX_MEMORY)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _render(library: Any, template: str, turns: list[Any], variables: dict[str, Any]) -> str:
    # With transformers' own sandbox and functions.
    variables["add_generation_prompt"] = True
    if hasattr(library, "render_jinja_template"):
        return str(library.render_jinja_template([turns], chat_template=template, **variables)[0][0])
    compiled = library._compile_jinja_template(template)  # before transformers 4.53
    return str(compiled.render(messages=turns, tools=None, documents=None, **variables))


if __name__ == "__main__":
    main()
