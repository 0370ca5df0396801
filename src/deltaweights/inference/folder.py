"""A folder as a loader finds it: the headers of its weights, and its configuration.

Enters: the path of a folder. Leaves: a ``Held``: specs of all tensors, the documents, and which layout it is. Never: a byte of
weights, or transformers.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.folder import open_checkpoint
from deltaweights.checkpoint.small_files import json_object
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.manifest import MANIFEST
from deltaweights.manifest.parsed import parse_manifest
from deltaweights.util.limits import MANIFEST as LIMIT
from deltaweights.util.text import Json

CONFIG, GENERATION = "config.json", "generation_config.json"

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""What says how images become numbers, and where they stand in a prompt."""

MAX_DOCUMENT = 1024 * 1024
"""Bytes of a configuration file; known ones have some thousand."""

ORIGINAL_CLASS = "LlavaLlamaForCausalLM"
"""The model class of LLaVA's own code, in its configurations of 2023."""


@dataclass(frozen=True)
class Held:
    """What a folder holds. ``start`` is the file by which its weights begin; ``generation`` is None where there is no such file.

    ``processors`` are the documents of ``PROCESSORS`` that are there. ``layout`` is what the manifest says: "original",
    "transformers", or None where it says nothing.
    """

    path: Path
    container: str
    start: str
    tensors: dict[str, LazyTensor]
    config: dict[str, Json]
    generation: dict[str, Json] | None
    processors: dict[str, dict[str, Json]]
    layout: str | None
    names: frozenset[str]
    notes: tuple[str, ...]

    @property
    def is_original(self) -> bool:
        """Whether it is a LLaVA as the code of 2023 saved it, with a flat configuration; current transformers loads none."""
        named = self.config.get("architectures")
        is_llava = self.config.get("model_type") == "llava" or (isinstance(named, list) and ORIGINAL_CLASS in named)
        return is_llava and "text_config" not in self.config

    @property
    def is_made_to_run(self) -> bool:
        """Whether it claims that current transformers runs it as it stands."""
        return "text_config" in self.config or self.layout == "transformers"


def read_folder(folder: str | os.PathLike[str]) -> Held:
    """Read the headers and documents of ``folder``.

    Raises ``InputOutputError`` when the folder or its config.json is not there or cannot be read, ``MalformedInput`` when a
    header or a document breaks its format.
    """
    with open_checkpoint(Path(folder), "checkpoint") as checkpoint:
        path, directory = checkpoint.path, checkpoint.directory
        if not path.is_dir():
            raise InputOutputError(
                "not a folder", where=path, remedy="give the folder that holds weights and config.json"
            )
        remedy = "a model in Hugging Face's layout has one; deltaweights convert writes it for one in Meta's"
        if not directory.has(CONFIG):
            raise InputOutputError("is missing", where=path / CONFIG, remedy=remedy)
        return Held(
            path,
            checkpoint.container,
            next((name for name in checkpoint.names if name.endswith(".index.json")), min(checkpoint.names)),
            checkpoint.tensors,
            json_object(directory.read(CONFIG, MAX_DOCUMENT), path / CONFIG),
            _read(directory, GENERATION),
            {name: document for name in PROCESSORS if (document := _read(directory, name)) is not None},
            _layout(directory),
            frozenset(directory.names()),
            checkpoint.notes,
        )


def _read(directory: Directory, name: str) -> dict[str, Json] | None:
    """Return the document of that name; None when there is none."""
    if not directory.has(name):
        return None
    return json_object(directory.read(name, MAX_DOCUMENT), directory.path / name)


def _layout(directory: Directory) -> str | None:
    """Return the layout that the manifest states; whether the manifest is right is for ``verify`` to say."""
    with contextlib.suppress(InputOutputError, MalformedInput, ValueError):
        return parse_manifest(directory.read(MANIFEST, LIMIT.size)).layout or None
    return None
