"""Identify a checkpoint by the hashes of its files or, failing that, guess from its manifest, its shapes and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deltaweights.checkpoint.folder import Checkpoint
from deltaweights.errors import DeltaweightsError
from deltaweights.manifest.input_manifest import lists_same_tensors
from deltaweights.manifest.parse import Manifest
from deltaweights.recipes.catalogue import load, recipe_of_file
from deltaweights.recipes.models import FORMS, known_file, models
from deltaweights.recipes.pair_check import FINE_TUNED_ROWS, hidden_size, layers, rows
from deltaweights.recipes.stored_form import ZERO_3, empty_weight, stored_form
from deltaweights.recipes.weight_scale import SMALL, typical_weight
from deltaweights.util.text import UTF8_MARK, Json, counted, strict_json

MAX_CONFIG = 1024 * 1024  # bytes of a config.json; real ones have a few kilobytes
# Added to hashes that were not computed here; they were right when the file was downloaded.
STATED = " (stated by the Hub's cache)"


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is, in words and as a key of models.toml."""

    text: str
    model: str | None = None
    certain: bool = False  # whether computed hashes of all files match
    typical: float | None = None  # the root mean square of sampled matrices, if there are any
    is_delta: bool = False  # whether the hashes of all files, or a manifest of ours, say so
    is_merge: bool = False  # whether a manifest of ours says so

    @property
    def no_model(self) -> str | None:
        """What is wrong with it where a model is wanted: it is known to be a delta, or its weights are as small as a delta's."""
        if self.is_delta:
            return "is a delta, not a model"
        if self.typical is None or self.typical >= SMALL:
            return None
        if not self.typical:
            return "looks like a delta, not a model: its weights are zero, as far as samples tell"
        return f"looks like a delta, not a model: its weights are typically {self.typical:.2g}, a model's are 0.01 and more"


def identify(
    checkpoint: Checkpoint,
    hashes: Mapping[str, str],
    *,
    read: bool,
    stated: Callable[[Checkpoint], Manifest | None],
) -> Identity:
    """Return what ``checkpoint`` is; ``hashes`` are sha256 by file name, ``read`` from the files or stated by the Hub's cache."""
    typical = typical_weight(checkpoint.tensors.values())
    by_hash = _by_hashes(checkpoint, hashes, read=read)
    if by_hash is not None:
        text, model, certain = by_hash
        is_delta = all(recipe_of_file(hashes.get(weights.file.path.name, "")) for weights in checkpoint.files)
        return Identity(text, model, certain, typical, is_delta)
    manifest = stated(checkpoint)
    said = _by_manifest(checkpoint, manifest)
    is_delta = said is not None and manifest is not None and manifest.kind == "delta"
    text = said or _by_shapes(checkpoint, typical)
    if all(weights.file.path.name in hashes for weights in checkpoint.files):
        text += f"; the sha256 of its files{'' if read else STATED} are not among those that are known"
    is_merge = said is not None and manifest is not None and manifest.kind == "merge"
    return Identity(text, typical=typical, is_delta=is_delta, is_merge=is_merge)


def _by_hashes(checkpoint: Checkpoint, hashes: Mapping[str, str], *, read: bool) -> tuple[str, str | None, bool] | None:
    """Return text, model and certainty if the hash of a file is known."""
    names = [weights.file.path.name for weights in checkpoint.files]
    found = {name: known for name in names if (known := known_file(hashes.get(name, "")))}
    recipes = {name: recipe for name in names if (recipe := recipe_of_file(hashes.get(name, "")))}
    matching = len(found) + len(recipes)
    if not matching:
        return None
    files = "" if matching == len(names) else f" of {matching} of {len(names)} files"
    whole = f"sha256{files}{'' if read else STATED} matches"
    titles = {f"the delta of {load(recipe).title}, recipe {recipe}" for recipe in recipes.values()}
    titles |= {f"{model.title} ({FORMS[file.form]})" for model, file in found.values()}
    if len(titles) > 1:
        return f"files of different models: {', '.join(sorted(titles))}; {whole}", None, False
    keys = {model.key for model, _ in found.values()}
    return f"{titles.pop()}; {whole}", keys.pop() if keys else None, read and matching == len(names)


def _by_manifest(checkpoint: Checkpoint, manifest: Manifest | None) -> str | None:
    """Return what an unverified manifest says that deltaweights made, if it lists the same tensors."""
    if manifest is None or not lists_same_tensors(manifest, checkpoint):
        return None
    by = f" by recipe {manifest.recipe}" if manifest.recipe else ""
    what = {
        "delta": "a delta that deltaweights made",
        "merge": f"a merge that deltaweights made{by}, neither a base nor a delta",
    }
    return f"{what[manifest.kind]} (as its manifest says)" if manifest.kind in what else None


def _by_shapes(checkpoint: Checkpoint, typical: float | None) -> str:
    specs = {name: tensor.spec for name, tensor in checkpoint.model_tensors.items()}
    hidden, depth = hidden_size(specs), layers(specs)
    if empty_weight(specs) is not None:
        return ZERO_3
    form = stored_form(specs)
    if form is not None:
        return form.what
    if not hidden:
        return "no embedding under a LLaMA's name"
    with_rows = [known for known in models() if known.shapes.base_rows is not None]
    likely = [known.title for known in with_rows if (known.shapes.hidden_size, known.shapes.layers) == (hidden, depth)]
    size = f"{counted(depth, 'layer')}, hidden size {hidden}, {rows(specs)} rows"
    facts = [f"shapes of {' or '.join(likely)}" if likely else f"{size}: no model that is known by its shapes"]
    if rows(specs) in FINE_TUNED_ROWS:
        facts.append(f"{rows(specs)} rows as {FINE_TUNED_ROWS[rows(specs)]} has")
    hint = generation_of_config(checkpoint)
    if hint:
        facts.append(f"config.json is that of {hint}")
    if typical is not None:
        kind = "as small as a delta's" if typical < SMALL else "as large as a model's"
        facts.append(f"weights {kind} (typically {typical:.2g})")
    return "; ".join(facts)


def config_of(checkpoint: Checkpoint) -> dict[str, Json]:
    """Return config.json; empty if it is missing or malformed, or may be that of other weights in the folder."""
    if checkpoint.is_lone_file:
        return {}
    try:
        config = strict_json(checkpoint.directory.read("config.json", MAX_CONFIG).removeprefix(UTF8_MARK))
    except (DeltaweightsError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def ties_head(checkpoint: Checkpoint) -> bool:
    """Return whether config.json says that output and input embeddings are one, so that a loader makes the one that is not stored.

    It must say so: the default of ``tie_word_embeddings`` is another in each architecture.
    """
    return config_of(checkpoint).get("tie_word_embeddings") is True


def generation_of_config(checkpoint: Checkpoint) -> str | None:
    """Return the generation that config.json belongs to. It is only a hint: configurations get copied around."""
    config = config_of(checkpoint)
    generations = {
        known.generation
        for known in models()
        if known.config and all(config.get(key) == value for key, value in known.config.items())
    }
    return generations.pop() if len(generations) == 1 else None
