"""Changes to model folders, to be applied to a copy: functions that take the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_llava import (
    Tensors,
    edit,
    edit_tensors,
)

Change = Callable[[Path], object]


def tensors(change: Callable[[Tensors], object]) -> Change:
    """Return what changes the tensors of a folder."""
    return lambda folder: edit_tensors(folder, change)


def document(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Return what changes a JSON document of a folder."""
    return lambda folder: edit(folder / name, change)


def set_text(**values: object) -> Change:
    """Return what changes the text model's part of config.json."""
    return document("config.json", lambda config: config["text_config"].update(values))


def set_config(**values: object) -> Change:
    """Return what changes config.json."""
    return document("config.json", lambda config: config.update(values))


def set_shape(name: str, *shape: int) -> Change:
    """Return what gives a tensor another shape."""
    return tensors(lambda given: given.update({name: torch.zeros(shape)}))


def remove(*names: str) -> Change:
    """Return what removes files."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def template(text: str) -> Change:
    """Return what writes another chat template."""
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def both(*changes: Change) -> Change:
    """Return what makes several changes."""
    return lambda folder: [change(folder) for change in changes]
