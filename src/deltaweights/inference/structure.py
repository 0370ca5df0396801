"""``deltaweights check``: whether transformers will load a folder, found from headers and a few samples.

Transformers itself builds the configured model on the meta device, and loads names and shapes into it. A LLaVA saved by the
code of 2023, which no current library loads, is compared with transformers' LLaMA, of which that code's model is a subclass,
and with the one linear layer that it adds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import CheckFailed
from deltaweights.inference import transformers_loader as loader
from deltaweights.inference.document_checks import check_documents
from deltaweights.inference.findings import CheckFindings, Finding, first_of
from deltaweights.inference.model_folder import CONFIG, ORIGINAL_CLASS, ModelFolder, read_model_folder
from deltaweights.inference.size_limits import implausible_size
from deltaweights.inference.tensor_names import check_tensors
from deltaweights.manifest.records import MANIFEST
from deltaweights.util.extras import require
from deltaweights.util.text import short_repr


@dataclass(frozen=True, kw_only=True)
class StructureReport:
    """The result of a structure check.

    ``model_class`` is the class that ``loads_in`` ("transformers" or "the original LLaVA code") builds, None when there is none
    for the configuration. ``parameters`` counts the model's weights, tied ones once; ``tokenizer_size`` is None without a
    tokenizer. ``problems`` make loading fail or answers wrong; ``warnings`` are contradictions that the publisher left in a
    folder that does not claim to run in current transformers. ``is_delta``: its manifest, or its hashes, say that it is a delta.
    """

    target: str
    model_class: str | None
    loads_in: str
    tensors: int
    parameters: int | None
    tokenizer_size: int | None
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    notes: tuple[str, ...]
    is_delta: bool = False

    def __repr__(self) -> str:
        return short_repr(
            self, target=self.target, ok=self.ok, model_class=self.model_class, problems=len(self.problems)
        )

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def raise_if_failed(self) -> None:
        """Raise ``CheckFailed`` with the first problem, if any."""
        if self.problems:
            raise CheckFailed(first_of(self.problems), where=self.target, code=ErrorCode.DOES_NOT_LOAD)


def check_structure(folder: str | os.PathLike[str]) -> StructureReport:
    """Check that transformers will load ``folder``: names, shapes, ties, tokenizer, special ids, images, template.

    Problems are collected in the report. Raises ``InputOutputError`` when the folder or its config.json does
    not exist or cannot be read, ``MalformedInput`` when a header or a document breaks its format.

    >>> from deltaweights import check_structure
    >>> check_structure("merged").problems
    ()
    """
    require("transformers", "check")
    model_folder = read_model_folder(folder)
    findings = CheckFindings(model_folder.claims_to_run, notes=list(model_folder.notes))
    model_class = model = tokenizer_size = None
    _check_scale(model_folder, findings)
    if model_folder.base is not None and model_folder.base.warning is not None:
        findings.warn(MANIFEST, model_folder.base.warning)
    implausible = implausible_size(model_folder)
    if implausible is not None:
        findings.problem(implausible[0], "has an implausible size", found=implausible[1])
    else:
        with loader.quiet_and_offline():
            model_class, model, config = _build_model(model_folder, findings)
            if model is not None:
                check_tensors(model_folder, model_class, config, model, findings)
            tokenizer_size = check_documents(model_folder, config, model, findings)
    if model_folder.is_original:
        remedy = "deltaweights apply --layout transformers, or deltaweights export, writes a folder that it loads"
        findings.notes.append(f"{model_folder.path}: current transformers does not load this layout; {remedy}")
    return StructureReport(
        target=str(model_folder.path),
        model_class=ORIGINAL_CLASS if model_folder.is_original else getattr(model_class, "__name__", None),
        loads_in="the original LLaVA code" if model_folder.is_original else "transformers",
        tensors=len(model_folder.tensors),
        parameters=None if model is None else _count_parameters(model_folder, model),
        tokenizer_size=tokenizer_size,
        problems=tuple(findings.problems),
        warnings=tuple(findings.warnings),
        notes=tuple(findings.notes),
        is_delta=model_folder.identity.is_delta,
    )


def _check_scale(folder: ModelFolder, findings: CheckFindings) -> None:
    """Say that these are the weights of a delta: a library loads them, and answers nonsense."""
    problem = folder.identity.no_model
    if problem is not None:
        tell = findings.problem if folder.identity.is_delta else findings.warn
        tell(folder.weights_file, problem, expected="a model, which deltaweights apply makes of a delta and its base")


def _count_parameters(folder: ModelFolder, model: Any) -> int:
    count = sum(parameter.numel() for parameter in model.parameters())
    if folder.is_original:
        count += sum(folder.tensors[name].spec.count for name in PROJECTOR if name in folder.tensors)
    return int(count)


def _build_model(folder: ModelFolder, findings: CheckFindings) -> tuple[Any, Any, Any]:
    """Return the model's class, the model on the meta device, and its configuration; None for what transformers refuses."""
    config = model_class = None
    try:
        config = _original_config(folder) if folder.is_original else loader.load("AutoConfig", folder.path)
        model_class = _model_class(folder, config, findings)
        model = loader.meta_model(model_class, config)
        loader.embedding_weights(model)  # fails unless it is a language model
        return model_class, model, config
    except loader.LibraryError as error:
        findings.problem(CONFIG, "transformers cannot build the model", found=error)
        return model_class, None, config


def _model_class(folder: ModelFolder, config: Any, findings: CheckFindings) -> Any:
    """Return the class that the configuration names, or the default when transformers has none. Raises ``LibraryError``."""
    named = folder.config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if folder.is_original or name is None:
        return loader.default_model_class(config)
    model_class = loader.model_class_named(name, config)
    if model_class is None:
        model_class = loader.default_model_class(config)
        problem = "names a class that transformers does not have for it"
        findings.warn(CONFIG, problem, found=name, expected=model_class.__name__)
    return model_class


def _original_config(folder: ModelFolder) -> Any:
    from transformers import LlamaConfig  # noqa: PLC0415

    excluded = {"model_type", "architectures", "auto_map", "quantization_config"}
    with loader.transformers_errors():
        return LlamaConfig.from_dict({key: value for key, value in folder.config.items() if key not in excluded})
