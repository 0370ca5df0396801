"""A model folder as a loader sees it: tensor headers, configuration documents and layout, without weights or transformers."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.folder import open_checkpoint
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.small_files import json_object
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.base_claim import BaseClaim, base_claim
from deltaweights.manifest.parse import Manifest, parse_manifest
from deltaweights.manifest.records import MANIFEST
from deltaweights.merge.rules import is_buffer
from deltaweights.recipes.identify import Identity, identify
from deltaweights.recipes.shell import refuse_shell
from deltaweights.util.limits import MANIFEST as LIMIT
from deltaweights.util.text import MARKED, SAVE_UNMARKED, UTF8_MARK, Json

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
PROCESSOR_CONFIG, SPECIAL_TOKENS = "processor_config.json", "special_tokens_map.json"

# Documents that say how images become numbers, and where their tokens go in a prompt.
PROCESSORS = ("preprocessor_config.json", PROCESSOR_CONFIG)
# Files of which a tokenizer needs one; without any, some versions of transformers invent one.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
MAX_DOCUMENT = 1024 * 1024  # bytes of a configuration file; known ones have a few thousand
ORIGINAL_CLASS = "LlavaLlamaForCausalLM"  # the model class of LLaVA's own code, in its configurations of 2023


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """The contents of a model folder."""

    path: Path
    container: str
    weights_file: str  # the index, or else the first weights file
    tensors: dict[str, LazyTensor]
    config: dict[str, Json]
    generation_config: dict[str, Json] | None
    special_tokens_map: dict[str, Json] | None
    processors: dict[str, dict[str, Json]]  # those of PROCESSORS that exist
    layout: str | None  # the manifest's: "original" or "transformers"
    base: BaseClaim | None  # what the manifest says of the base of these weights
    file_names: frozenset[str]
    notes: tuple[str, ...]
    identity: Identity

    @property
    def is_original(self) -> bool:
        """Whether this is a LLaVA as saved by the code of 2023, with a flat configuration; current transformers cannot load it."""
        named = self.config.get("architectures")
        is_llava = self.config.get("model_type") == "llava" or (isinstance(named, list) and ORIGINAL_CLASS in named)
        return is_llava and "text_config" not in self.config

    def weights_by_dtype(self) -> Counter[str]:
        """Count the weights, without buffers, by their dtype."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if not is_buffer(tensor.spec.name):
                counts[tensor.spec.dtype] += tensor.spec.count
        return counts

    @property
    def claims_to_run(self) -> bool:
        """Whether the folder claims to run in current transformers as it is."""
        return "text_config" in self.config or self.layout == "transformers"


def read_model_folder(folder: str | os.PathLike[str]) -> ModelFolder:
    """Read headers, documents and a few samples of ``folder``.

    Raises ``InputOutputError``, also without config.json, and ``MalformedInput``.
    """
    with open_checkpoint(Path(folder), "checkpoint") as checkpoint:
        path, directory = checkpoint.path, checkpoint.directory
        refuse_shell(checkpoint)
        if not path.is_dir():
            remedy = "give the folder that holds weights and config.json"
            raise InputOutputError("not a folder", where=path, remedy=remedy)
        if not directory.has(CONFIG):
            remedy = "a model in Hugging Face's layout has one; deltaweights convert writes it for one in Meta's"
            raise InputOutputError("is missing", where=path / CONFIG, remedy=remedy)
        indexes = [name for name in checkpoint.names if name.endswith(".index.json")]
        for name in indexes:
            if directory.head(name).startswith(UTF8_MARK):
                raise MalformedAt(path / name, SAVE_UNMARKED)("not strict JSON", MARKED)
        manifest = _manifest(directory)
        documents = {name: _read(directory, name) for name in PROCESSORS}
        return ModelFolder(
            path=path,
            container=checkpoint.container,
            weights_file=indexes[0] if indexes else min(checkpoint.names),
            tensors=checkpoint.tensors,
            config=json_object(directory.read(CONFIG, MAX_DOCUMENT), path / CONFIG, as_transformers=True),
            generation_config=_read(directory, GENERATION_CONFIG),
            special_tokens_map=_read(directory, SPECIAL_TOKENS),
            processors={name: document for name, document in documents.items() if document is not None},
            layout=manifest.layout or None if manifest is not None else None,
            base=base_claim(manifest) if manifest is not None else None,
            file_names=frozenset(directory.names()),
            notes=checkpoint.notes,
            identity=identify(checkpoint, {}, read=False),
        )


def _read(directory: Directory, name: str) -> dict[str, Json] | None:
    if not directory.has(name):
        return None
    return json_object(directory.read(name, MAX_DOCUMENT), directory.path / name, as_transformers=True)


def _manifest(directory: Directory) -> Manifest | None:
    """Return the manifest, if it can be read; ``verify`` reports a bad one."""
    with contextlib.suppress(InputOutputError, MalformedInput, ValueError):
        return parse_manifest(directory.read(MANIFEST, LIMIT.size))
    return None
