"""Whether base and delta fit the recipe, and the likely reason why they do not fit, or should not be merged though they do.

The sizes are those of the published models: LLaMA-1 has 32000 rows at 7B to 65B; Vicuna v0 and Alpaca added one row, LLaVA v0
three, LLaVA-Med four.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.checkpoint.projector import FILE as PROJECTOR_FILE
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import Mismatch
from deltaweights.recipes.incomplete import EMBEDDING, HEAD, LAYER, incomplete
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.stored_form import (
    StoredForm,
    adapter_form,
    listed_names,
    other_names,
    quantized_form,
    stored_form,
)
from deltaweights.util.text import counted

GATE = "model.layers.0.mlp.gate_proj.weight"

MODEL_SIZES = {4096: "7B", 5120: "13B", 6656: "30B", 8192: "65B"}  # by hidden size
# Rows of the embedding that are not those of the original LLaMA, and whose they are.
FINE_TUNED_ROWS = {32001: "Vicuna v0 or Alpaca", 32003: "LLaVA", 32004: "LLaVA-Med", 128256: "LLaMA-3"}
# Dtypes in which GPTQ, AWQ, bitsandbytes and others store weights.
INTEGERS = frozenset({"U8", "I8", "I16", "I32", "I64"})
REMEDY = "use the original LLaMA-1 of the delta's size as the base"
COMPARE = "deltaweights inspect shows what each of them is"
REMEDY_TO_MAKE = "use the base that the target was fine-tuned from"

SEES = re.compile("mm_projector|multi_modal_projector|vision_tower|vision_model")
"""What the names of a LLaVA have that no LLaMA's have."""

MOST_ADDED = 64  # rows that are likely tokens that somebody added

Specs = Mapping[str, TensorSpec]


def check_pair(recipe: Recipe, base: Checkpoint, primary: Checkpoint) -> None:
    """Raise ``Mismatch`` when base or primary have other sizes than the recipe, or the primary lacks a required tensor.

    The primary is the delta, or the target that one is made from.
    """
    role = primary.role
    for name in recipe.required:
        if name not in primary.model_tensors:
            if _form_of(primary) is not None:
                raise _mismatch(recipe, primary, "no such tensor", "one", name)
            problem, where = f"not the whole {role} of recipe {recipe.name}", f"{role} {primary.path}"
            remedy = f"is {PROJECTOR_FILE} missing beside the shards?" if name in PROJECTOR else "fetch it again"
            raise Mismatch(
                problem, where=where, tensor=name, found="no such tensor", remedy=remedy, code=ErrorCode.OTHER_TENSORS
            )
    shapes = recipe.shapes
    base_rows = rows(_specs(base))
    if role == "target":
        base_rows = 0  # new rows of a base that a target was trained from belong to both
    if shapes.base_rows is not None and 0 < base_rows - shapes.base_rows <= MOST_ADDED:
        count = counted(base_rows - shapes.base_rows, "added row")
        owner = f"; or it is {FINE_TUNED_ROWS[base_rows]}, already fine-tuned" if base_rows in FINE_TUNED_ROWS else ""
        problem = f"not the base of recipe {recipe.name}: likely it has {count}, such as that of [PAD]{owner}"
        remedy, where = f"{leave_rows_out(shapes.base_rows)}, or {REMEDY}", f"base {base.path}"
        raise Mismatch(
            problem,
            where=where,
            tensor=EMBEDDING,
            found=f"{base_rows} rows",
            expected=shapes.base_rows,
            remedy=remedy,
            code=ErrorCode.WRONG_BASE,
        )
    for checkpoint, row_count in ((base, shapes.base_rows), (primary, shapes.delta_rows)):
        for name, axis, expected, what in (
            (EMBEDDING, 0, row_count, "rows"),
            (EMBEDDING, 1, shapes.hidden_size, "columns"),
            (HEAD, 0, row_count, "rows"),
            (GATE, 0, shapes.intermediate_size, "rows"),
        ):
            tensor = checkpoint.model_tensors.get(name)
            shape = tensor.spec.shape if tensor is not None else ()
            if expected is not None and len(shape) == 2 and shape[axis] != expected:
                raise _mismatch(recipe, checkpoint, f"{shape[axis]} {what}", expected, name)
        found = layers(checkpoint.model_tensors)
        if shapes.layers is not None and found != shapes.layers:
            what = counted(found, "layer") if found else "no tensor named model.layers.*"
            wanted = counted(shapes.layers, "layer") if not found else shapes.layers
            raise _mismatch(recipe, checkpoint, what, wanted, None, incomplete(_specs(base), _specs(primary), role))


def _mismatch(
    recipe: Recipe,
    checkpoint: Checkpoint,
    found: str,
    expected: object,
    tensor: str | None,
    reason: str | None = None,
) -> Mismatch:
    role, form = checkpoint.role, _form_of(checkpoint)
    problem, where = f"not the {role} of recipe {recipe.name}", f"{role} {checkpoint.path}"
    remedies = {
        "base": REMEDY,
        "delta": "use the delta that the recipe names, or another recipe",
        "target": "use a model of the recipe's sizes, or another recipe",
    }
    code = ErrorCode.WRONG_BASE if role == "base" else ErrorCode.OTHER_TENSORS
    if form is not None:
        return Mismatch(f"{problem}: it is {form.what}", where=where, tensor=tensor, remedy=form.remedy, code=code)
    return Mismatch(
        problem,
        where=where,
        tensor=tensor,
        found=found,
        expected=expected,
        remedy=reason or remedies[role],
        code=code,
    )


def _form_of(checkpoint: Checkpoint) -> StoredForm | None:
    return stored_form(_specs(checkpoint))


def _specs(checkpoint: Checkpoint) -> Specs:
    return {name: tensor.spec for name, tensor in checkpoint.model_tensors.items()}


def likely_reason(base: Specs, primary: Specs, role: str) -> str:
    """Return why ``base`` and ``primary``, whose ``role`` is "delta" or "target", likely do not fit, and what to do."""
    reason = _other_content(base, primary, role) or _other_layout(base, primary, role)
    if reason is not None:
        return reason
    making = role == "target"
    remedy = REMEDY_TO_MAKE if making else REMEDY
    reason = _other_size(base, primary, role, remedy) or incomplete(base, primary, role)
    if reason is not None:
        return reason
    layers_base, layers_primary = layers(base), layers(primary)
    for of, found, specs in (("base", layers_base, base), (role, layers_primary, primary)):
        if found == 0 < layers_base + layers_primary:
            what = (
                f"the {of} has no tensor named model.layers.*, as the other one has; its names: {listed_names(specs)}"
            )
            return f"{what}; {COMPARE}"
    for name, twin in ((HEAD, EMBEDDING), (EMBEDDING, HEAD)):
        if name in primary and name not in base and twin in base:
            what = f"the base has no {name}, and no config.json that says tie_word_embeddings: true"
            return f"{what}, for which {twin} would be used: use the full checkpoint, or say so there"
        if name in base and name not in primary and twin in primary:
            return f"the {role} has no {name}: it ties its embeddings, and the base does not; {remedy}"
    if 0 < rows(base) - rows(primary) <= MOST_ADDED and rows(primary) and not making:
        added = rows(base) - rows(primary)
        padded = f"the base has {counted(added, 'added row')}, such as that of [PAD]"
        likely = f"likely {padded}; {leave_rows_out(rows(primary))}"
        return (
            f"{likely}, or {remedy}" if rows(base) not in FINE_TUNED_ROWS else f"{_owner(base)}; or {padded}; {remedy}"
        )
    if layers_base != layers_primary:
        return f"base has {layers_base} layers, the {role} {layers_primary}: two models, or an incomplete one; {remedy}"
    if rows(base) in FINE_TUNED_ROWS and not making:
        return f"{_owner(base)}; {remedy}"
    sees = next((name for name in base if SEES.search(name) and name not in primary), None)
    if sees is not None and not making:
        return f"the base is already a vision-language model: it has {sees}; {remedy}"
    if rows(base) > rows(primary) > 0:
        more = counted(rows(base) - rows(primary), "more row")
        return f"the base's embedding has {more} than the {role}'s: tokens were added to it; {remedy}"
    return _further_modules(base, primary, role) or f"nothing more is known of why they do not fit; {COMPARE}"


def _further_modules(base: Specs, primary: Specs, role: str) -> str | None:
    """Return the reason if all of the base fits, and the primary has more."""
    further = [name for name in primary if name not in base and not _is_buffer(name)]
    further = [
        name for name in further if name not in PROJECTOR
    ] or further  # a projector mostly fits: nothing is said of it
    common = [name for name in base if name in primary]
    fits = all(name in {EMBEDDING, HEAD} or base[name].shape == primary[name].shape for name in common)
    if not further or not common or not fits or any(name not in primary and not _is_buffer(name) for name in base):
        return None
    what = f"all of the base fits, and the {role} has more: {listed_names(further)}"
    return f"{what}; if they belong to it whole, list them in a recipe of your own as delta_only (docs/recipes.md)"


def _is_buffer(name: str) -> bool:
    return name.endswith(("inv_freq", "rope.freqs"))


def _owner(base: Specs) -> str:
    return f"{rows(base)} rows: the base is likely {FINE_TUNED_ROWS[rows(base)]}, which is already fine-tuned"


def _other_layout(base: Specs, primary: Specs, role: str) -> str | None:
    """Return the reason if tensors have the names of another layout. It is tried first: layers are counted by name."""
    forms = {"base": other_names(base), role: other_names(primary)}
    if forms["base"] == forms[role]:
        forms = {}  # what both are is not why they do not fit
    for of, form in forms.items():
        if form is not None:
            return f"the {of} is {form.what}: {form.remedy}"
    for of, specs in (("base", base), (role, primary)):
        prefix = _common_prefix(specs)
        if prefix:
            what = f"all names of the {of} begin with {prefix}, which is not known as a wrapper's"
            return f"{what}; save the model inside it"
    return None


def _common_prefix(specs: Specs) -> str:
    """Return what is before every name of a LLaMA, empty where nothing is."""
    found = next((name.removesuffix(EMBEDDING) for name in specs if name.endswith(f".{EMBEDDING}")), "")
    return found if all(name.startswith(found) for name in specs) else ""


def _other_size(base: Specs, primary: Specs, role: str, remedy: str) -> str | None:
    """Return the reason if the two differ in width, or one has a whole fraction of each matrix, as one of several devices has."""
    hidden_base, hidden_primary = hidden_size(base), hidden_size(primary)
    if _is_transposed(base, primary):
        what = f"the matrices of base and {role} are transposed to each other: JAX, and GPT-2's Conv1D, store columns for rows"
        return f"{what}; transpose those of one of them"
    if hidden_base != hidden_primary and hidden_base and hidden_primary:
        return f"likely models of two sizes: base {_size(hidden_base)}, {role} {_size(hidden_primary)}; {remedy}"
    for of, part, whole in (("base", base, primary), (role, primary, base)):
        ratios = {
            whole[name].shape[0] / max(1, part[name].shape[0])
            for name in (GATE, GATE.replace("mlp.gate_proj", "self_attn.q_proj"))
            if name in part and name in whole and whole[name].shape and part[name].shape
        }
        if len(ratios) == 1 and (parts := ratios.pop()) > 1 and parts.is_integer():
            what = f"the {of} has 1/{parts:.0f} of the rows of each matrix: it is likely one of {parts:.0f} tensor-parallel parts"
            return f"{what}; join them, with the tool that split them"
    return None


def _is_transposed(base: Specs, primary: Specs) -> bool:
    """Return whether all matrices that are not square have the other's shape turned round."""
    pairs = [
        (base[name].shape, primary[name].shape) for name in base if name in primary and name not in {EMBEDDING, HEAD}
    ]
    oblong = [(one, other) for one, other in pairs if len(one) == len(other) == 2 and one[0] != one[1]]
    return bool(oblong) and all(one == other[::-1] for one, other in oblong)


def _other_content(base: Specs, primary: Specs, role: str) -> str | None:
    making = role == "target"
    for of, specs in (("base", base), (role, primary)):
        for form in (quantized_form(specs), adapter_form(specs)):
            if form is not None:
                return f"the {of} is {form.what}: {form.remedy}"
    if any(spec.dtype in INTEGERS for spec in primary.values()):
        return f"the {role} holds whole numbers: it is likely a quantized model{'' if making else ', and no delta'}"
    if any(spec.dtype in INTEGERS for spec in base.values()):
        remedy = REMEDY_TO_MAKE if making else REMEDY
        return f"the base holds whole numbers: it is likely quantized; {remedy}, in float16"
    return None


def pair_warnings(base: Specs, delta: Specs) -> tuple[str, ...]:
    """Return warnings about a pair whose shapes fit, but whose base is likely not one that deltas are published for."""
    warnings = []
    if rows(base) in FINE_TUNED_ROWS and rows(base) != rows(delta):
        likely = f"likely {FINE_TUNED_ROWS[rows(base)]}, not the original LLaMA (32000 rows), or that with added rows"
        warnings.append(f"base has {rows(base)} rows: it is {likely}; {REMEDY}")
    if any("mm_projector" in name for name in base):
        warnings.append(f"base has a multimodal projector: it is likely already a LLaVA model; {REMEDY}")
    return tuple(warnings)


def leave_rows_out(count: int) -> str:
    """Return how to make the base as it was before rows were added."""
    return f"leave them out: load the base in transformers, resize_token_embeddings({count}), save_pretrained to a new folder"


def rows(specs: Specs) -> int:
    """Return the rows of the embedding, 0 when there is none."""
    return specs[EMBEDDING].shape[0] if EMBEDDING in specs and specs[EMBEDDING].shape else 0


def hidden_size(specs: Specs) -> int:
    """Return the columns of the embedding, 0 when there is none."""
    return specs[EMBEDDING].shape[-1] if EMBEDDING in specs and specs[EMBEDDING].shape else 0


def layers(names: Iterable[str]) -> int:
    """Return the number of layers that tensors of these names belong to."""
    found = (LAYER.match(name) for name in names)
    return max((int(layer.group(1)) + 1 for layer in found if layer), default=0)


def _size(hidden: int) -> str:
    return f"{MODEL_SIZES[hidden]} (hidden size {hidden})" if hidden in MODEL_SIZES else f"hidden size {hidden}"
