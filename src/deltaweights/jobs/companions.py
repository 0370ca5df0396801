"""The companion files of a result: configuration, tokenizer, licences and our notice."""

from __future__ import annotations

from dataclasses import replace

from deltaweights.checkpoint.companions import (
    NOTICE,
    NOTICE_NAME,
    NOTICE_OF_A_COPY,
    NOTICE_OF_A_DELTA,
    SOURCE_MANIFEST,
    Companions,
    read_companions,
)
from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.meta_llama.hf_config import meta_companions
from deltaweights.checkpoint.meta_llama.weights import CONTAINER as META
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.jobs.inputs import Inputs
from deltaweights.manifest.records import MANIFEST
from deltaweights.merge.choices import TORCH_NAMES
from deltaweights.merge.operation import Operation
from deltaweights.util import limits

MAX_NOTICE = 64 * 1024

NOTICES = {
    Operation.APPLY: NOTICE,
    Operation.MAKE: NOTICE_OF_A_DELTA,
    Operation.CONVERT: NOTICE_OF_A_COPY,
    Operation.EXPORT: NOTICE_OF_A_COPY,
}


def companions_of(operation: Operation, inputs: Inputs) -> Companions:
    """Read the companions of the primary, and append the recipe's notice to ours. Raises as ``read_companions`` does."""
    primary, dtype = inputs.primary, TORCH_NAMES[inputs.stored]
    notice = _notice(operation, inputs)
    if inputs.base is None and primary.container == META:
        specs = {match.primary.name: match.primary for match in inputs.matching.matches}
        return Companions({NOTICE_NAME: notice.encode(), **meta_companions(primary.directory, specs, dtype)}, ())
    if primary.is_lone_file:
        return Companions({NOTICE_NAME: notice.encode()}, ())
    ours = inputs.manifest is not None
    found = read_companions(primary.directory, primary.names, dtype, operation.primary, notice, ours=ours)
    if operation is not Operation.CONVERT or inputs.facts is None or inputs.facts.kind not in {"merge", "delta"}:
        return found
    copied = inputs.manifest is not None and inputs.manifest.kind == "copy"
    data = primary.directory.read_companion(SOURCE_MANIFEST if copied else MANIFEST, limits.MANIFEST.size)
    return replace(found, files={**found.files, SOURCE_MANIFEST: data})


def _notice(operation: Operation, inputs: Inputs) -> str:
    notice, recipe = NOTICES[operation], inputs.recipe
    if recipe is not None:
        return f"{notice}\n{recipe.title}: {recipe.notice}\n" if recipe.notice else notice
    return notice + _foreign_notice(inputs.primary) if inputs.manifest is not None else notice


def _foreign_notice(source: Checkpoint) -> str:
    """Return what follows our own text in the notice of an earlier result: it must stay with the weights."""
    try:
        text = source.directory.read_companion(NOTICE_NAME, MAX_NOTICE).decode()
    except (InputOutputError, MalformedInput, UnicodeDecodeError):
        return ""
    for ours in (NOTICE, NOTICE_OF_A_DELTA, NOTICE_OF_A_COPY):
        text = text.removeprefix(ours)
    return text
