"""Whether a library will load a folder: its structure, without a byte of weights.

Enters: a folder. Leaves: a report of what is missing, superfluous or contradictory. Never: weights, or memory for them: the model
that everything is compared with has shapes alone.

The library itself is asked, current transformers: it makes the model that the configuration describes on the meta device, and
loads names and shapes into it. A LLaVA as the code of 2023 saved it, which no current library loads, is compared with
transformers' LLaMA, of which that code's model is a subclass, and with the one linear layer that it adds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.errors import CheckFailed
from deltaweights.inference.bounds import absurd_size
from deltaweights.inference.findings import Findings, Problem
from deltaweights.inference.folder import CONFIG, GENERATION, ORIGINAL_CLASS, Held, read_folder
from deltaweights.inference.ids import SPECIAL, Stated, check_ids, check_length
from deltaweights.inference.images import DOCUMENT, check_images
from deltaweights.inference.loading import (
    Refusal,
    empty_model,
    ends,
    load_config,
    load_processor,
    load_tokenizer,
    named_class,
    quietly,
    refusals,
    usual_class,
)
from deltaweights.inference.template import check_template
from deltaweights.inference.tensors import check_tensors

TRANSFORMERS, ORIGINAL = "transformers", "the original LLaVA code"

TOKENIZER = "tokenizer_config.json"

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a tokenizer needs one; without any, some versions of transformers make one up."""


@dataclass(frozen=True)
class StructureReport:
    """What the check found.

    ``model_class`` is the class that ``loads_in`` ("transformers" or "the original LLaVA code") makes, None when there is none for
    the configuration; ``parameters`` counts that model's weights, tied ones once; ``tokenizer_size`` is None without a tokenizer.
    ``problems`` are what makes loading fail or answers wrong; ``warnings`` what its publisher left contradictory in a folder that
    does not claim to run in current transformers.
    """

    target: str
    model_class: str | None
    loads_in: str
    tensors: int
    parameters: int | None
    tokenizer_size: int | None
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing keeps the folder from being loaded and used."""
        return not self.problems

    def raise_if_failed(self) -> None:
        """Raise ``CheckFailed`` with the first problem when there is one."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise CheckFailed(f"{self.problems[0]}{more}", where=self.target)


def check_structure(folder: str | os.PathLike[str]) -> StructureReport:
    """Check that a library will load ``folder``: names, shapes, ties, tokenizer, special ids, images, template; no weights read.

    Problems are collected in the report. Raises ``InputOutputError`` when the folder or its config.json is not there or cannot be
    read, ``MalformedInput`` when a header or a document breaks its format.
    """
    held = read_folder(folder)
    found = Findings(held.is_made_to_run, notes=list(held.notes))
    model_class = model = size = None
    absurd = absurd_size(held)
    if absurd is not None:
        found.problem(absurd[0], "states a size that no model has", found=absurd[1])
    else:
        with quietly():
            model_class, model, config = _model(held, found)
            if model is not None:
                check_tensors(held, model_class, config, model, found)
            size = _check_texts(held, config, model, found)
    if held.is_original:
        found.note(
            f"{held.path}: current transformers does not load this layout; deltaweights apply --layout transformers, or"
            " deltaweights export, writes a folder that it loads"
        )
    return StructureReport(
        str(held.path),
        ORIGINAL_CLASS if held.is_original else getattr(model_class, "__name__", None),
        ORIGINAL if held.is_original else TRANSFORMERS,
        len(held.tensors),
        None if model is None else _parameters(held, model),
        size,
        tuple(found.problems),
        tuple(found.warnings),
        tuple(found.notes),
    )


def _parameters(held: Held, model: Any) -> int:
    own = PROJECTOR if held.is_original else ()
    added = sum(held.tensors[name].spec.count for name in own if name in held.tensors)
    return added + int(sum(parameter.numel() for parameter in model.parameters()))


def _model(held: Held, found: Findings) -> tuple[Any, Any, Any]:
    """Return the model's class, an empty model and its configuration; None for what cannot be had."""
    config = model_class = None
    try:
        config = _original_config(held) if held.is_original else load_config(held.path)
        model_class = _class_of(held, config, found)
        model = empty_model(model_class, config)
        ends(model)  # it is a model of language, or it refuses
        return model_class, model, config
    except Refusal as refusal:
        found.problem(CONFIG, "transformers makes no model of it", found=refusal)
        return model_class, None, config


def _class_of(held: Held, config: Any, found: Findings) -> Any:
    """Return the class that the configuration names, or the usual one when that is none of the library's. Raises ``Refusal``."""
    named = held.config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if held.is_original or name is None:
        return usual_class(config)
    stated = named_class(name, config)
    if stated is None:
        stated = usual_class(config)
        found.warn(CONFIG, "names a class that transformers does not have for it", found=name, expected=stated.__name__)
    return stated


def _original_config(held: Held) -> Any:
    """Return the LLaMA that the flat configuration of a LLaVA describes. Raises ``Refusal``."""
    from transformers import LlamaConfig  # noqa: PLC0415

    left_out = {"model_type", "architectures", "auto_map", "quantization_config"}
    with refusals():
        return LlamaConfig.from_dict({key: value for key, value in held.config.items() if key not in left_out})


def _check_texts(held: Held, config: Any, model: Any, found: Findings) -> int | None:
    """Check tokenizer, special ids and, for a model of images, its processor; return the length of the tokenizer."""
    tokenizer, length, ids, tokens = None, None, {}, {}
    try:
        tokenizer = _tokenizer(held)
        with refusals():
            length = len(tokenizer)
            ids = {key: getattr(tokenizer, key) for key in SPECIAL}
            tokens = {key: str(getattr(tokenizer, key.removesuffix("_id"))) for key in SPECIAL}
    except Refusal as refusal:
        found.doubt(TOKENIZER, "transformers loads no tokenizer", found=refusal)
    if model is None:
        return length
    rows = ends(model)[0].shape[0]
    if length is not None:
        check_length(TOKENIZER, length, rows, found)
    check_ids(_stated(held, config), ids, tokens, rows, found)
    if length is None:
        return None
    if getattr(config, "vision_config", None) is None:
        check_template(tokenizer, held.names, found, sees=False)
        return length
    try:
        processor = load_processor(held.path)
    except Refusal as refusal:
        found.problem(DOCUMENT, "transformers loads no processor", found=refusal)
        return length
    check_images(processor, config, found)
    check_template(processor, held.names, found, sees=True)
    return length


def _tokenizer(held: Held) -> Any:
    if not any(name in held.names for name in VOCABULARIES):
        raise Refusal(f"no {' or '.join(VOCABULARIES)}")
    return load_tokenizer(held.path)


def _stated(held: Held, config: Any) -> list[Stated]:
    """Return the special ids of all documents, those first that the model is made of."""
    text = held.config.get("text_config")
    written: Mapping[str, Any] = text if isinstance(text, dict) else held.config
    effective = config.get_text_config()
    defaults = frozenset(SPECIAL) - written.keys()
    stated = [Stated(CONFIG, {key: getattr(effective, key, None) for key in SPECIAL}, defaults)]
    if written is not held.config:
        stated.append(Stated(CONFIG, held.config))
    return stated if held.generation is None else [*stated, Stated(GENERATION, held.generation)]
