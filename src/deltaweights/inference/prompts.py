"""What a model is given: images, a conversation, and the numbers that stand for both.

Enters: paths of images, and text. Leaves: what the library's processor makes of them. Never: a format of conversations of ours:
the folder's template has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput, UsageError
from deltaweights.inference.loading import Refusal, refusals
from deltaweights.inference.rendering import render, template_of

QUESTION, GREETING = "What is shown in this image?", "Hello"
"""What is asked when nothing is: with images, and without."""

FORM = "conv_mode"
"""The variable by which the templates that ``export`` writes know forms of conversation."""


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow may take an image for, whatever its name: it would hand PostScript to another program."""

MOST_PIXELS, LONGEST = 60_000_000, 20
"""Of an image, 180 MB in RGB: the largest that telephones take; models see some 300 pixels a side of it."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model takes it; ``tokenizer`` turns what it answers back into text, which ends before a stop string."""

    inputs: Any
    tokenizer: Any
    stops: tuple[str, ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return int(self.inputs["input_ids"].shape[1])

    def answer(self, numbers: Any) -> tuple[str, bool]:
        """Return the text of new tokens, cut before the first stop string, and whether there was one.

        The prompt, which ends with a stop string itself, is not looked at.
        """
        text = str(self.tokenizer.decode(numbers, skip_special_tokens=True))
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip(), bool(ends)


def open_images(paths: Sequence[str | Path]) -> list[Any]:
    """Return the images, in RGB. Raises ``InputOutputError`` when one is not there, ``MalformedInput`` when it is no image."""
    return [_open_image(Path(path)) for path in paths]


def _open_image(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (only where there are images)

    if path.exists() and not path.is_file():  # a FIFO would be waited for, a device read without end
        raise MalformedInput("not a regular file", where=path, remedy="give the image itself")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _refuse_large(path, image.width, image.height)
                return image.convert("RGB")
    except UnidentifiedImageError:
        expected = f"one of {', '.join(FORMATS)}"
        raise MalformedInput("not an image", where=path, expected=expected, remedy="convert it") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        expected = f"at most {MOST_PIXELS:,} pixels"
        raise MalformedInput("too large an image", where=path, expected=expected, remedy="make it smaller") from None
    except OSError as error:
        if error.errno is None:  # Pillow's own: the file ends too early
            raise MalformedInput("a damaged image", where=path, found=error, remedy="fetch it again") from None
        raise InputOutputError.from_os(error, path, "open the image") from error
    except DeltaweightsError:
        raise
    except Exception as error:  # noqa: BLE001  (decoders raise SyntaxError, ValueError, struct.error, ...)
        raise MalformedInput("a damaged image", where=path, found=error, remedy="fetch it again") from None


def _refuse_large(path: Path, width: int, height: int) -> None:
    """Raise ``MalformedInput`` for an image that would fill the memory, at once or when its shorter side is scaled."""
    if width * height > MOST_PIXELS or max(width, height) > LONGEST * min(width, height):
        found, expected = f"{width}x{height}", f"at most {MOST_PIXELS:,} pixels, and a side {LONGEST} times the other"
        raise MalformedInput("too large an image", where=path, found=found, expected=expected, remedy="make it smaller")


def make_prompt(
    tool: Any, question: str, images: Sequence[Any], conversation: str | None, where: Path, *, sees: bool
) -> Prompt:
    """Return the prompt that the folder's template makes of one question about ``images``.

    ``tool`` is the library's processor, of a model that ``sees``, or its tokenizer. A tokenizer without a template gets the bare
    question. Raises ``UsageError`` when the template does not know ``conversation``, ``Refusal`` when the library fails.
    """
    tokenizer = tool.tokenizer if sees else tool
    text = question
    template = template_of(tool)
    if conversation is not None and FORM not in str(template):
        raise UsageError("the model has no forms of conversation to choose from", where=where, found=conversation)
    if template:
        parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        turns = [{"role": "user", "content": parts if sees else question}]
        options = {} if conversation is None else {FORM: conversation}
        try:
            text = render(tool, turns, options)
        except Refusal as refusal:
            if conversation is None:
                raise
            raise UsageError(f"no prompt with --conversation {conversation}", where=where, found=refusal) from None
    elif sees:
        raise Refusal("it has no chat template, which says where images stand")
    with refusals():
        # A template may begin with the token that the tokenizer would put there once more.
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        given = {"images": list(images)} if images else {}
        inputs = tool(text=[text], return_tensors="pt", add_special_tokens=not begun, **given)
        inputs.pop("token_type_ids", None)  # of some tokenizers without a class of their own; no LLaMA takes it
    stops = tokenizer.init_kwargs.get("stop_strings")
    stops = stops if isinstance(stops, list) else []
    return Prompt(inputs, tokenizer, tuple(stop for stop in stops if isinstance(stop, str) and stop))
