"""The recipe schema: which delta, on which base, by which rules. docs/recipes.md describes every key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from blake3 import blake3

from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.errors import MalformedInput
from deltaweights.recipes.table import ARCHIVE, FILE_NAME, LINE, NAME, REPO, REVISION, SHA256, TEXT, URL, Table

FORMAT, VERSION = "deltaweights-recipe", 1

COMPUTE_DTYPES = ("float16", "float32", "bfloat16")

# What the delta's new rows are added to: nothing, so that they are copied; zero; or the mean of the base's rows.
NEW_ROWS = ("copy", "zero", "mean")
DELTA_ONLY = PROJECTOR  # the tensors that only the delta may have, unless a recipe says otherwise: LLaVA's projector
MAX_DIMENSION, MAX_LAYERS, MAX_FILE_SIZE = 1_000_000, 10_000, 2**53

KEYS = (
    "format", "version", "extends", "name", "title", "description", "sources", "notice", "notes",
    "delta", "base", "arithmetic", "rules", "shapes", "checks", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class FileHash:
    """The sha256 (hex) of a known file, and its size where that is known, too."""

    name: str
    sha256: str
    size: int | None


@dataclass(frozen=True)
class DeltaSource:
    """Where a delta is published: a repository on the Hub, and zip files with the same delta."""

    repo: str | None
    revision: str | None  # may be an abbreviated commit id
    has_weights: bool  # False when the repository exists without weights
    archives: tuple[str, ...]
    files: tuple[FileHash, ...]  # two of the same name both circulate


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model, None where unknown. Rows are those of embedding and head, in the base and in the delta."""

    hidden_size: int | None = None
    intermediate_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    base_rows: int | None = None
    delta_rows: int | None = None


@dataclass(frozen=True)
class SumCheck:
    """The published sum over all elements of the merged checkpoint, ``with_buffers`` or over weights only."""

    sum: float
    tolerance: float
    with_buffers: bool


@dataclass(frozen=True)
class Recipe:
    """A pair of base and delta, and the rules that merge it; the last four fields are for the layout of current transformers."""

    name: str
    title: str
    description: str
    sources: tuple[str, ...]
    notice: str
    notes: tuple[str, ...]
    delta: DeltaSource
    base_model: str | None  # a key of models.toml
    base_files: tuple[FileHash, ...]  # further known files of the right base
    compute_dtype: str
    stated: bool  # whether the delta is known to have been computed in compute_dtype
    new_rows: str  # one of NEW_ROWS
    delta_only: frozenset[str]  # tensors that only the delta may have
    required: tuple[str, ...]  # those of delta_only that it must have
    shapes: Shapes
    checks: SumCheck | None
    digest: str  # of all that decides the weights: name, arithmetic, rules (except required), shapes and checks
    vision_tower: str | None = None  # a key of models.toml
    conversation: str | None = None  # a key of conversations.toml
    tokens: Mapping[str, int] = field(default_factory=dict)  # ids of added tokens
    bos_token: str | None = None  # the token that begins a text, None where the delta's own files say it


def check_head(document: dict[str, Any], where: str, expected: str = FORMAT) -> None:
    """Raise ``MalformedInput`` unless ``document`` has the ``expected`` format and the supported version."""
    top = Table(document, where)
    top.require("format", "version")
    top.choice("format", (expected,), "")
    version = top.whole("version", MAX_DIMENSION)
    if version != VERSION:
        problem, remedy = "version is not known", "use a newer deltaweights"
        raise MalformedInput(problem, where=where, found=version, expected=VERSION, remedy=remedy)


def parse_recipe(document: dict[str, Any], where: str) -> Recipe:
    """Parse a recipe that extends no other. Raises ``MalformedInput`` when a key is unknown, missing or of the wrong kind."""
    check_head(document, where)
    top = Table(document, where, keys=KEYS)
    if "extends" in top:
        raise MalformedInput("a recipe of the package cannot have extends", where=where, remedy="leave it out")
    top.require("name", "arithmetic")
    name = top.text("name", NAME) or ""
    arithmetic = top.table("arithmetic", ("compute_dtype", "stated"))
    arithmetic.require("compute_dtype")
    compute_dtype = arithmetic.choice("compute_dtype", COMPUTE_DTYPES, "")
    stated = arithmetic.flag("stated", default=False)
    rules = _rules(top, compute_dtype)
    base = top.table("base", ("model", "files"))
    shapes = read_shapes(top)
    checks = _checks(top, shapes)
    recipe = Recipe(
        name=name,
        title=top.text("title", LINE) or name,
        description=top.text("description", TEXT) or "",
        sources=top.texts("sources", URL) or (),
        notice=top.text("notice", TEXT) or "",
        notes=top.texts("notes", TEXT) or (),
        delta=_delta(top),
        base_model=base.text("model", NAME),
        base_files=tuple(read_hashes(base.table("files"))),
        compute_dtype=compute_dtype,
        stated=stated,
        **rules,
        shapes=shapes,
        checks=checks,
        digest="",
        **_transformers(top),
    )
    return replace(recipe, digest=_digest(recipe))


def _rules(top: Table, compute_dtype: str) -> dict[str, Any]:
    table = top.table("rules", ("new_rows", "delta_only", "required"))
    new_rows = table.choice("new_rows", NEW_ROWS, "copy")
    named = table.texts("delta_only", LINE)
    delta_only = frozenset(DELTA_ONLY if named is None else named)
    required = table.texts("required", LINE) or ()
    others = sorted(set(required) - delta_only)
    if others:
        raise table.unusable("required", f"names of delta_only, which has no {others[0]}")
    if new_rows == "mean" and compute_dtype != "float32":
        raise table.unusable("new_rows", 'mean only with arithmetic.compute_dtype = "float32"')
    return {"new_rows": new_rows, "delta_only": delta_only, "required": required}


def _digest(recipe: Recipe) -> str:
    """Return ``recipe1:`` and the BLAKE3 of the canonical JSON of what decides the weights."""
    decisive = {
        "name": recipe.name,
        "arithmetic": {"compute_dtype": recipe.compute_dtype, "stated": recipe.stated},
        "rules": {"new_rows": recipe.new_rows, "delta_only": sorted(recipe.delta_only)},
        "shapes": {key: size for key, size in asdict(recipe.shapes).items() if size is not None},
        "checks": asdict(recipe.checks) if recipe.checks else None,
    }
    canonical = json.dumps(decisive, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return f"recipe1:{blake3(canonical.encode()).hexdigest()}"


def _transformers(top: Table) -> dict[str, Any]:
    table = top.table("transformers", ("vision_tower", "conversation", "tokens", "bos_token"))
    tokens = table.table("tokens")
    for token in tokens:
        tokens.check_key(token, LINE)
    return {
        "vision_tower": table.text("vision_tower", NAME),
        "conversation": table.text("conversation", NAME),
        "tokens": {token: tokens.whole(token, MAX_DIMENSION) or 0 for token in tokens},
        "bos_token": table.text("bos_token", LINE),
    }


def _delta(top: Table) -> DeltaSource:
    delta = top.table("delta", ("repo", "revision", "has_weights", "archives", "files"))
    return DeltaSource(
        repo=delta.text("repo", REPO),
        revision=delta.text("revision", REVISION),
        has_weights=delta.flag("has_weights", default=True),
        archives=delta.texts("archives", ARCHIVE) or (),
        files=tuple(read_hashes(delta.table("files"))),
    )


def read_hashes(files: Table) -> Iterator[FileHash]:
    """Yield the hashes in a table of file names; each value is a sha256, a table of sha256 and size, or a list of these.

    Raises ``MalformedInput``.
    """
    for name in files:
        files.check_key(name, FILE_NAME)
        value = files.value(name)
        for entry in value if isinstance(value, list) else [value]:
            values = entry if isinstance(entry, dict) else {"sha256": entry}
            table = Table(values, files.where, files.name(name), ("sha256", "size"))
            table.require("sha256")
            yield FileHash(name, table.text("sha256", SHA256) or "", table.whole("size", MAX_FILE_SIZE))


def read_shapes(top: Table) -> Shapes:
    """Return the sizes in the table ``shapes``. Raises ``MalformedInput``."""
    keys = tuple(asdict(Shapes()))
    table = top.table("shapes", keys)
    shapes = Shapes(**{key: table.whole(key, MAX_LAYERS if key == "layers" else MAX_DIMENSION) for key in keys})
    if shapes.base_rows is not None and shapes.delta_rows is not None and shapes.delta_rows < shapes.base_rows:
        raise table.unusable("delta_rows", f"base_rows, {shapes.base_rows}, or more")
    return shapes


def _checks(top: Table, shapes: Shapes) -> SumCheck | None:
    if "checks" not in top:
        return None
    table = top.table("checks", ("sum", "tolerance", "with_buffers"))
    table.require("sum", "tolerance")
    total, tolerance = table.number("sum"), table.number("tolerance", least=0)
    with_buffers = table.flag("with_buffers", default=False)
    if with_buffers and None in {shapes.hidden_size, shapes.heads, shapes.layers}:
        raise table.unusable("with_buffers", "true only with shapes.hidden_size, heads and layers")
    return SumCheck(total or 0.0, tolerance or 0.0, with_buffers)
