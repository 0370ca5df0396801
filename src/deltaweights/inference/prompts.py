"""Builds a model's inputs from images and a question, with the folder's own chat template."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput, UsageError
from deltaweights.inference.rendering import RefusedByTemplate, render, template_of
from deltaweights.inference.transformers_loader import LibraryError, transformers_errors
from deltaweights.util.text import Json

QUESTION, GREETING = "What is shown in this image?", "Hello"  # the default prompts, with images and without
CONVERSATION = "conv_mode"  # the variable by which templates written by `export` choose the conversation format
# Formats that Pillow may recognize, whatever the file's name; it would pass PostScript to another program.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# Limits of an image: 180 MB in RGB, the largest that phones take. Models see some 300 pixels a side of it.
MAX_PIXELS, MAX_ASPECT_RATIO = 60_000_000, 20


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model takes it; an answer is decoded with ``tokenizer`` and ends before a string in ``stops``."""

    inputs: Any
    tokenizer: Any
    stops: tuple[str, ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return int(self.inputs["input_ids"].shape[1])

    def decode(self, new_tokens: Any) -> tuple[str, bool]:
        """Return the text of new tokens up to the first stop string, and whether there was one."""
        text = str(self.tokenizer.decode(new_tokens, skip_special_tokens=True))
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip(), bool(ends)


def open_images(paths: Sequence[str | Path]) -> list[Any]:
    """Return images in RGB. Raises ``InputOutputError`` for one that cannot be opened, ``MalformedInput`` for a bad one."""
    return [_open_image(Path(path)) for path in paths]


def _open_image(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (only where there are images)

    if path.exists() and not path.is_file():  # a FIFO would block, a device never ends
        raise MalformedInput("not a regular file", where=path, remedy="give the image itself")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                _refuse_large(path, image.width, image.height)
                return image.convert("RGB")
    except UnidentifiedImageError:
        expected = f"one of {', '.join(IMAGE_FORMATS)}"
        raise MalformedInput("not an image", where=path, expected=expected, remedy="convert it") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        expected = f"at most {MAX_PIXELS:,} pixels"
        raise MalformedInput("image is too large", where=path, expected=expected, remedy="make it smaller") from None
    except DeltaweightsError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputOutputError.from_os(error, path, "open the image") from error
        # Decoders raise SyntaxError, ValueError, struct.error, ...; an OSError without a number is Pillow's own.
        raise MalformedInput("a damaged image", where=path, found=error, remedy="fetch it again") from None


def _refuse_large(path: Path, width: int, height: int) -> None:
    """Raise ``MalformedInput`` for an image that would fill the memory, at once or when its shorter side is scaled up."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        found, remedy = f"{width}x{height}", "make it smaller"
        expected = f"at most {MAX_PIXELS:,} pixels, and an aspect ratio of at most {MAX_ASPECT_RATIO}"
        raise MalformedInput("image is too large", where=path, found=found, expected=expected, remedy=remedy)


def make_prompt(
    tool: Any, question: str, images: Sequence[Any], conversation: str | None, where: Path, *, vision: bool
) -> Prompt:
    """Return the prompt that the folder's template makes of one question about ``images``.

    ``tool`` is the processor of a model with ``vision``, else its tokenizer; without a template, a tokenizer gets the bare
    question. Raises ``UsageError`` when the template refuses the question, its images or ``conversation``, ``LibraryError`` when
    transformers fails.
    """
    template = template_of(tool)
    if conversation is not None and CONVERSATION not in str(template):
        raise UsageError("the model has no conversation formats to choose from", where=where, found=conversation)
    if vision and not template:
        raise LibraryError("no chat template, which places images in a prompt")
    turns = question_turns(question, len(images), vision=vision)
    variables = {} if conversation is None else {CONVERSATION: conversation}
    try:
        text = render(tool, turns, variables) if template else question
    except RefusedByTemplate as error:
        problem, remedy = "the chat template refuses the prompt", "change the question, --image or --conversation"
        raise UsageError(problem, where=where, found=error, remedy=remedy) from None
    except LibraryError as error:
        if conversation is None:
            raise
        raise UsageError(f"no prompt with --conversation {conversation}", where=where, found=error) from None
    tokenizer = tool.tokenizer if vision else tool
    with transformers_errors():
        # A template may begin with the token that the tokenizer would add once more.
        has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        options = {"images": list(images)} if images else {}
        # Without an image an image token is text; processors refuse it.
        encoder = tool if images else tokenizer
        inputs = encoder(text=[text], return_tensors="pt", add_special_tokens=not has_bos, **options)
        inputs.pop("token_type_ids", None)  # LLaMA takes none, and generic tokenizers return them
    stops = tokenizer.init_kwargs.get("stop_strings")
    stops = stops if isinstance(stops, list) else []
    return Prompt(inputs, tokenizer, tuple(stop for stop in stops if isinstance(stop, str) and stop))


def question_turns(question: str, images: int, *, vision: bool) -> list[Json]:
    """Return one turn that asks about ``images``: a list of parts for models with ``vision``, text for others."""
    parts: list[Json] = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    return [{"role": "user", "content": parts if vision else question}]
