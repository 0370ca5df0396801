"""Plans a model in the layout of current transformers: tensors (of its names and shapes only), configuration, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deltaweights.checkpoint.companions import Companions
from deltaweights.checkpoint.llava_names import IDENTITY, ZEROS, transformers_name
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.small_files import json_object
from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.errors import MalformedInput, Mismatch
from deltaweights.export.config import (
    SPECIAL,
    USE_ORIGINAL,
    ImageFeatures,
    llava_config,
    read_image_features,
    text_config,
)
from deltaweights.export.constant_tensors import IdentitySource, ZeroSource, constant_tensor
from deltaweights.export.conversation import END, IMAGE, START, chat_template, conversations, stop_strings
from deltaweights.export.sizes import Shape, TextSizes
from deltaweights.export.tokenizer import encoded, repair_tokenizer
from deltaweights.export.vision_tower import VisionTower
from deltaweights.merge.choices import DTYPES
from deltaweights.merge.operation import Fate
from deltaweights.merge.rules import Match, Matching
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.table import Table
from deltaweights.util.text import Json

REWRITTEN = frozenset({
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja",
})  # fmt: skip
"""Files of the delta that are not copied as they are."""


@dataclass(frozen=True)
class ExportPlan:
    """The matching, the tensors that are in neither base nor primary, by the name of their spec, and the files."""

    matching: Matching
    added: Mapping[str, LazyTensor]
    companions: Companions


def has_projector(matching: Matching) -> bool:
    """Return whether this is a vision-language model."""
    return PROJECTOR[0] in matching.primary_specs


def conversation_name(recipe: Recipe | None, *, vision: bool) -> str | None:
    """Return the name of the model's conversation, None where it is not known."""
    if recipe is not None:
        return recipe.conversation
    return "llava-v0" if vision else None


def plan_export(
    matching: Matching,
    companions: Companions,
    where: Path,
    dtype: str,
    recipe: Recipe | None,
    tower: VisionTower | None,
) -> ExportPlan:
    """Return ``matching`` and ``companions``, of the folder ``where``, in the layout of current transformers.

    ``dtype`` is torch's name of what is written; a vision-language model has a ``tower``.

    Raises ``MalformedInput`` and ``Mismatch``.
    """
    specs = matching.primary_specs
    sizes = _text_sizes(specs, where)
    _check_tensors(specs, dict(_expected(sizes, specs, tower)), where)
    config = _read_config(companions, where)
    features = read_image_features(config) if tower is not None else None
    conversation = conversation_name(recipe, vision=tower is not None)
    if conversation is not None and features is not None and not conversations()[conversation].images:
        problem = f"conversation {conversation} has no place for images, and this is a vision-language model"
        raise Mismatch(problem, where=where, remedy="name another in the recipe (docs/recipes.md)")
    start_and_end = features is not None and features.start_and_end
    tokenizer = repair_tokenizer(
        companions.files,
        sizes.rows,
        where=where,
        known=recipe.tokens if recipe is not None else {},
        bos=recipe.bos_token if recipe is not None else None,
        chat_template=None if conversation is None else chat_template(conversation, start_and_end=start_and_end),
        stop_strings=() if conversation is None else stop_strings(conversation),
    )
    tokens = tokenizer.tokens
    special = dict(zip(SPECIAL, (tokens.bos, tokens.eos, tokens.pad), strict=True))
    text = text_config(config, sizes, special, dtype, recipe.shapes.heads if recipe is not None else None)
    documents: dict[str, Json] = {"config.json": text, "generation_config.json": special}
    if tower is not None and features is not None:
        _check_features(features, tower, tokens.added, where)
        bias = PROJECTOR[1] in specs
        documents |= {
            "config.json": llava_config(text, tower.vision, features, tokens.added[IMAGE], projector_bias=bias),
            "preprocessor_config.json": tower.vision.preprocessor(),
            "processor_config.json": tower.vision.processor(IMAGE),
        }
    kept = {name: data for name, data in companions.files.items() if name not in REWRITTEN}
    problem, remedy = "cannot be written", "correct the delta's configuration"
    written = {name: encoded(each, where / name, problem, remedy) for name, each in documents.items()}
    notes = (*tokenizer.notes, _template_note(conversation, recipe))
    companions = Companions(kept | tokenizer.files | written, companions.left_behind, notes)
    if tower is None:
        return ExportPlan(_under_model_names(matching), {}, companions)
    return ExportPlan(*_with_tower(matching, sizes.hidden, DTYPES[dtype], specs, tower), companions)


def _under_model_names(matching: Matching) -> Matching:
    """Leave out what a wrapper of the model put before all names."""
    return replace(matching, matches=tuple(replace(each, renamed=each.known_as) for each in matching.matches))


def refuse_transformers_layout(matching: Matching, where: Path) -> None:
    """Raise ``Mismatch`` when the tensors have the names of this layout already, or some of them have."""
    layout = matching.naming.layout
    for match in matching.matches:
        if layout or match.primary.name.startswith("language_model."):
            problem = "is in the layout of current transformers already"
            remedy = "use it as it is, or give the merge in the original layout"
            raise Mismatch(problem, where=where, tensor=match.primary.name, remedy=remedy)


def _read_config(companions: Companions, where: Path) -> Table:
    where = where / "config.json"
    if "config.json" not in companions.files:
        remedy = f"put the model's config.json beside the weights, or {USE_ORIGINAL}"
        raise MalformedInput("is missing", where=where, remedy=remedy)
    return Table(json_object(companions.files["config.json"], where), str(where))


def _template_note(conversation: str | None, recipe: Recipe | None) -> str:
    if conversation is None:
        return "chat template: none, since this model's prompt format is not known (--recipe)"
    assumed = "" if recipe is not None else ", which is assumed: name the model with --recipe if it is another"
    return f"chat template: that of {conversations()[conversation].title}{assumed}"


def _text_sizes(specs: Mapping[str, TensorSpec], where: Path) -> TextSizes:
    sizes = TextSizes.from_shapes({name: spec.shape for name, spec in specs.items()})
    if sizes is None:
        problem = "not a LLaMA: layout transformers supports no other model"
        raise Mismatch(problem, where=where, found=next(iter(specs)), remedy=USE_ORIGINAL)
    return sizes


def _expected(
    sizes: TextSizes, specs: Mapping[str, TensorSpec], tower: VisionTower | None
) -> Iterator[tuple[str, Shape]]:
    yield from sizes.tensors()
    if tower is not None:
        yield PROJECTOR[0], (sizes.hidden, tower.vision.sizes.hidden)
        if PROJECTOR[1] in specs:  # LLaVA's projectors have a bias, others may have none
            yield PROJECTOR[1], (sizes.hidden,)


def _check_tensors(specs: Mapping[str, TensorSpec], expected: Mapping[str, Shape], where: Path) -> None:
    for name, shape in expected.items():
        found = str(list(specs[name].shape)) if name in specs else "no such tensor"
        if found != str(list(shape)):
            what = "the vision tower is another model's" if name in PROJECTOR else "the model is incomplete"
            problem = f"has no place in layout transformers: {what}"
            remedy = f"{USE_ORIGINAL}, or give the --vision-tower that belongs to it"
            raise Mismatch(problem, where=where, tensor=name, found=found, expected=str(list(shape)), remedy=remedy)
    for name in specs:
        if name not in expected:
            problem = "has no place in layout transformers"
            raise Mismatch(problem, where=where, tensor=name, found=str(specs[name]), remedy=USE_ORIGINAL)


def _check_features(features: ImageFeatures, tower: VisionTower, added: Mapping[str, int], where: Path) -> None:
    layers = tower.vision.sizes.layers
    if not -layers - 1 <= features.layer <= layers:
        problem = "takes the features of a layer that the vision tower does not have"
        found, expected = f"mm_vision_select_layer {features.layer}", f"one of {layers} layers"
        remedy = "give the --vision-tower that belongs to it"
        raise Mismatch(problem, where=where, found=found, expected=expected, remedy=remedy)
    for token in (IMAGE, START, END) if features.start_and_end else (IMAGE,):
        if token not in added:
            found = ", ".join(added) or "no added token"
            remedy = "add added_tokens.json, or name the recipe: deltaweights recipes"
            raise Mismatch(f"the tokenizer lacks the token {token}", where=where, found=found, remedy=remedy)


def _with_tower(
    matching: Matching, hidden: int, dtype: str, specs: Mapping[str, TensorSpec], tower: VisionTower
) -> tuple[Matching, dict[str, LazyTensor]]:
    """Rename the tensors; add the tower's, and the projector's second layer, which changes nothing."""
    square = TensorSpec(IDENTITY, dtype, (hidden, hidden))
    constants = [(constant_tensor(square, IdentitySource(hidden, dtype)), Fate.IDENTITY)]
    if PROJECTOR[1] in specs:
        constants.append((constant_tensor(TensorSpec(ZEROS, dtype, (hidden,)), ZeroSource()), Fate.ZEROS))
    matches = [replace(each, renamed=transformers_name(each.name)) for each in _under_model_names(matching).matches]
    for name, tensor in tower.tensors.items():
        matches.append(Match(tensor.spec, None, Fate.VISION_TOWER, transformers_name(name)))
    matches += [Match(tensor.spec, None, fate) for tensor, fate in constants]
    added = tower.tensors | {tensor.spec.name: tensor for tensor, _ in constants}
    return replace(matching, matches=tuple(matches)), added
