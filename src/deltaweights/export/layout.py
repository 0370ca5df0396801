"""A merged model in the layout of current transformers: names, what is added, configuration, tokenizer.

Enters: tensors that were matched, the files beside them, and an open vision tower for a model that sees. Leaves: the same matching
under other names, the tensors that are added, and other files. Never: a tensor without a place, or one whose shape the
configuration does not give: what is planned is what a library will look for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deltaweights.checkpoint.companions import Companions
from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.checkpoint.small_files import json_object
from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.errors import MalformedInput, Mismatch
from deltaweights.export.config import SPECIAL, Seeing, llava_config, read_seeing, text_config
from deltaweights.export.conversation import END, IMAGE, START, chat_template, conversations, stop_strings
from deltaweights.export.made import identity, zeros
from deltaweights.export.names import IDENTITY, ZEROS, transformers_name
from deltaweights.export.sizes import Shape, TextSizes
from deltaweights.export.tokenizer import RepairedTokenizer, repair_tokenizer
from deltaweights.export.tower import Tower
from deltaweights.merge.operation import Fate
from deltaweights.merge.plan import DTYPES
from deltaweights.merge.rules import Match, Matching
from deltaweights.recipes.recipe import Recipe
from deltaweights.recipes.table import Table
from deltaweights.util.text import Json, readable_json

USUAL_CONVERSATION = "llava-v0"
"""How one speaks to a LLaVA of which no recipe says."""

REWRITTEN = frozenset({
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja",
})  # fmt: skip
"""Files of the delta that are read, and not copied as they are."""


@dataclass(frozen=True)
class Laid:
    """What is planned: the matching, tensors that are in neither base nor primary, by the name of their spec, and the files."""

    matching: Matching
    added: Mapping[str, LazyTensor]
    companions: Companions


def sees(matching: Matching) -> bool:
    """Tell whether the model has a projector, and so sees."""
    return any(match.primary.name == PROJECTOR[0] for match in matching.matches)


def conversation_of(recipe: Recipe | None, *, sees: bool) -> str | None:
    """Return the name of the way to speak with a model, None where it is not known."""
    return recipe.conversation if recipe is not None else USUAL_CONVERSATION if sees else None


def lay_out(
    matching: Matching, companions: Companions, where: Path, dtype: str, recipe: Recipe | None, tower: Tower | None
) -> Laid:
    """Return ``matching`` and ``companions`` in the layout of current transformers; ``where`` is the folder of the latter.

    ``dtype`` is torch's name of what is written; ``tower`` is there when the model sees. Raises ``MalformedInput`` and
    ``Mismatch``.
    """
    specs = {match.primary.name: match.primary for match in matching.matches}
    sizes = _text_sizes(specs, where)
    _refuse_misfits(specs, dict(_expected(sizes, specs, tower)), where)
    config = _config(companions, where)
    seeing = read_seeing(config) if tower is not None else None
    tokenizer = _tokenizer(companions, sizes, where, recipe, seeing)
    special = dict(zip(SPECIAL, (tokenizer.tokens.bos, tokenizer.tokens.eos, tokenizer.tokens.pad), strict=True))
    text = text_config(config, sizes, special, dtype, recipe.shapes.heads if recipe is not None else None)
    documents: dict[str, Json] = {"config.json": text, "generation_config.json": special}
    if tower is not None and seeing is not None:
        documents |= _documents(where, text, tokenizer, seeing, tower, dtype, bias=PROJECTOR[1] in specs)
    kept = {name: data for name, data in companions.files.items() if name not in REWRITTEN}
    files = kept | tokenizer.files | {name: _written(document, where / name) for name, document in documents.items()}
    said = _said(conversation_of(recipe, sees=tower is not None), recipe)
    companions = Companions(files, companions.left_behind, (*tokenizer.notes, *said))
    if tower is None:
        return Laid(matching, {}, companions)
    return _with_tower(matching, companions, sizes.hidden, DTYPES[dtype], specs, tower)


def _written(document: Json, where: Path) -> bytes:
    try:
        return readable_json(document)
    except ValueError as error:
        raise MalformedInput(
            "cannot be written", where=where, found=error, remedy="correct the delta's configuration"
        ) from None


def refuse_laid_out(matching: Matching, where: Path) -> None:
    """Raise ``Mismatch`` when the tensors have the names of this layout already."""
    for match in matching.matches:
        if match.primary.name.startswith("language_model."):
            problem = "is in the layout of current transformers already"
            remedy = "use it as it is, or give the merge in the original layout"
            raise Mismatch(problem, where=where, tensor=match.primary.name, remedy=remedy)


def _config(companions: Companions, where: Path) -> Table:
    """Return config.json, without which nobody knows how many heads there are."""
    if "config.json" not in companions.files:
        remedy = "put the model's config.json beside the weights, or use --layout original"
        raise MalformedInput("is missing", where=where / "config.json", remedy=remedy)
    where = where / "config.json"
    return Table(json_object(companions.files["config.json"], where), str(where))


def _said(conversation: str | None, recipe: Recipe | None) -> tuple[str, ...]:
    """Return what people should know of the chat template."""
    if conversation is None:
        return ("chat template: none, since nobody says how one speaks to this model (--recipe)",)
    assumed = "" if recipe is not None else ", which is assumed: name the model with --recipe if it is another"
    return (f"chat template: that of {conversations()[conversation].title}{assumed}",)


def _text_sizes(specs: Mapping[str, TensorSpec], where: Path) -> TextSizes:
    sizes = TextSizes.of({name: spec.shape for name, spec in specs.items()})
    if sizes is None:
        problem = "not a LLaMA: layout transformers knows no other model"
        raise Mismatch(problem, where=where, found=next(iter(specs)), remedy="use --layout original")
    return sizes


def _tokenizer(
    companions: Companions, sizes: TextSizes, where: Path, recipe: Recipe | None, seeing: Seeing | None
) -> RepairedTokenizer:
    conversation = conversation_of(recipe, sees=seeing is not None)
    if conversation is not None and seeing is not None and not conversations()[conversation].images:
        problem = f"conversation {conversation} has no place for images, and this model sees"
        raise Mismatch(problem, where=where, remedy="name another in the recipe (docs/recipes.md)")
    around = seeing is not None and seeing.start_and_end
    return repair_tokenizer(
        companions.files,
        sizes.rows,
        where=where,
        known=recipe.tokens if recipe is not None else {},
        chat_template=chat_template(conversation, start_and_end=around) if conversation is not None else None,
        stop_strings=stop_strings(conversation) if conversation is not None else (),
    )


def _expected(sizes: TextSizes, specs: Mapping[str, TensorSpec], tower: Tower | None) -> Iterable[tuple[str, Shape]]:
    yield from sizes.tensors()
    if tower is not None:
        yield PROJECTOR[0], (sizes.hidden, tower.vision.sizes.hidden)
        if PROJECTOR[1] in specs:  # LLaVA's projectors have a bias, others' may have none
            yield PROJECTOR[1], (sizes.hidden,)


def _refuse_misfits(specs: Mapping[str, TensorSpec], expected: Mapping[str, Shape], where: Path) -> None:
    """Raise ``Mismatch`` unless there are the expected tensors, no others, each of its shape."""
    for name, shape in expected.items():
        found = str(list(specs[name].shape)) if name in specs else "no such tensor"
        if found != str(list(shape)):
            what = "the vision tower is another model's" if name in PROJECTOR else "the model is not whole"
            raise Mismatch(
                f"has no place in layout transformers: {what}",
                where=where,
                tensor=name,
                found=found,
                expected=str(list(shape)),
                remedy="use --layout original, or give the --vision-tower that belongs to it",
            )
    for name in specs:
        if name not in expected:
            problem = "has no place in layout transformers"
            raise Mismatch(problem, where=where, tensor=name, found=str(specs[name]), remedy="use --layout original")


def _documents(
    where: Path,
    text: dict[str, Json],
    tokenizer: RepairedTokenizer,
    seeing: Seeing,
    tower: Tower,
    dtype: str,
    *,
    bias: bool,
) -> dict[str, Json]:
    """Return the files of a model that sees, config.json among them."""
    vision = tower.vision
    if not -vision.sizes.layers - 1 <= seeing.layer <= vision.sizes.layers:
        raise Mismatch(
            "takes the features of a layer that the vision tower has not",
            where=where,
            found=f"mm_vision_select_layer {seeing.layer}",
            expected=f"one of {vision.sizes.layers} layers",
            remedy="give the --vision-tower that belongs to it",
        )
    ids = tokenizer.tokens.added
    for token in (IMAGE, START, END) if seeing.start_and_end else (IMAGE,):
        if token not in ids:
            raise Mismatch(
                f"the tokenizer lacks the token {token}",
                where=where,
                found=", ".join(ids) or "no added token",
                remedy="add added_tokens.json, or name the recipe: deltaweights recipes",
            )
    return {
        "config.json": llava_config(text, vision.config(dtype), seeing, ids[IMAGE], vision.sizes.patches, bias=bias),
        "preprocessor_config.json": vision.preprocessor(),
        "processor_config.json": vision.processor(IMAGE),
    }


def _with_tower(
    matching: Matching,
    companions: Companions,
    hidden: int,
    dtype: str,
    specs: Mapping[str, TensorSpec],
    tower: Tower,
) -> Laid:
    """Rename what is there, and add the tower and the projector's second layer, which changes nothing."""
    made = {IDENTITY: (identity(IDENTITY, dtype, hidden), Fate.IDENTITY)}
    if PROJECTOR[1] in specs:
        made[ZEROS] = zeros(ZEROS, dtype, hidden), Fate.ZEROS
    matches = [replace(match, renamed=transformers_name(match.primary.name)) for match in matching.matches]
    matches += [
        Match(tensor.spec, None, Fate.VISION_TOWER, transformers_name(name)) for name, tensor in tower.tensors.items()
    ]
    matches += [Match(tensor.spec, None, fate) for tensor, fate in made.values()]
    added = {**tower.tensors, **{name: tensor for name, (tensor, _) in made.items()}}
    return Laid(replace(matching, matches=tuple(matches)), added, companions)
