"""What a recipe says: which delta, on which base, by which rules. docs/recipes.md states every key.

Enters: a document. Leaves: a ``Recipe``, or ``MalformedInput``. Never: an open file, or a key that is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from blake3 import blake3

from deltaweights.checkpoint.projector import NAMES as PROJECTOR
from deltaweights.errors import MalformedInput
from deltaweights.recipes import table as forms
from deltaweights.recipes.table import Table
from deltaweights.recipes.toml_document import TomlDocument

FORMAT, VERSION = "deltaweights-recipe", 1

COMPUTE_DTYPES = ("float16", "float32", "bfloat16")

NEW_ROWS = ("copy", "zero", "mean")
"""What the base has below its rows: nothing, so that the delta's rows are kept; rows of zero; or the mean of its rows."""

DELTA_ONLY = PROJECTOR
"""What may be in the delta alone unless a recipe says otherwise: LLaVA's projector."""

MOST_SIZE = 1_000_000
"""Far above any dimension of a LLaMA."""

MOST_LAYERS = 10_000

MOST_BYTES = 2**53

KEYS = (
    "format", "version", "extends", "name", "title", "description", "sources", "notice", "notes",
    "delta", "base", "arithmetic", "rules", "shapes", "checks", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class FileHash:
    """The sha256 (hex) that a file of this name is known to have, and its bytes where that is known, too."""

    name: str
    sha256: str
    size: int | None


@dataclass(frozen=True)
class DeltaSource:
    """Where a delta is published: a repository of the Hub, and zip files that hold the same delta.

    ``revision`` may be the beginning of a commit id. ``has_weights`` is False when the repository exists, but without weights. Two
    files of one name are two that circulate.
    """

    repo: str | None
    revision: str | None
    has_weights: bool
    archives: tuple[str, ...]
    files: tuple[FileHash, ...]


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model, None where not known; rows are those of embedding and head, of the base and of the delta."""

    hidden_size: int | None = None
    intermediate_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    base_rows: int | None = None
    delta_rows: int | None = None


@dataclass(frozen=True)
class SumCheck:
    """The sum over all elements of the merged checkpoint that is published, ``with_buffers`` or over weights alone."""

    sum: float
    tolerance: float
    with_buffers: bool


@dataclass(frozen=True)
class Recipe:
    """A pair of base and delta, and the rules that merge it.

    ``base_model`` is a key of models.toml, ``base_files`` are further files that a right base is known to have. ``stated`` says
    that the delta is known to have been computed in ``compute_dtype``. ``new_rows`` is one of ``NEW_ROWS``, ``delta_only`` names
    the tensors that may be in the delta alone, ``required`` those without which it is not whole. ``digest`` is over what decides
    the weights: name, arithmetic, rules (but ``required``), shapes and checks.

    For the layout of current transformers: ``vision_tower`` is a key of models.toml, ``conversation`` one of conversations.toml,
    ``tokens`` are the ids of tokens that were added.
    """

    name: str
    title: str
    description: str
    sources: tuple[str, ...]
    notice: str
    notes: tuple[str, ...]
    delta: DeltaSource
    base_model: str | None
    base_files: tuple[FileHash, ...]
    compute_dtype: str
    stated: bool
    new_rows: str
    delta_only: frozenset[str]
    required: tuple[str, ...]
    shapes: Shapes
    checks: SumCheck | None
    digest: str
    vision_tower: str | None = None
    conversation: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)


def check_head(document: TomlDocument, where: str, expected: str = FORMAT) -> None:
    """Raise ``MalformedInput`` unless ``document`` says that it is of the ``expected`` format, in the version that is read here."""
    top = Table(document, where)
    top.require("format", "version")
    top.choice("format", (expected,), "")
    top.whole("version", MOST_SIZE)
    if document["version"] != VERSION:
        raise MalformedInput(
            "version is not known",
            where=where,
            found=document["version"],
            expected=VERSION,
            remedy="use a newer deltaweights",
        )


def parse_recipe(document: TomlDocument, where: str) -> Recipe:
    """Return the recipe in ``document``, in which ``extends`` is resolved; ``where`` is for messages.

    Raises ``MalformedInput`` when a key is unknown, missing or of the wrong kind.
    """
    check_head(document, where)
    top = Table(document, where, keys=KEYS)
    if "extends" in top:
        raise MalformedInput("extends cannot stand in a recipe that others extend", where=where, remedy="leave it out")
    top.require("name", "arithmetic")
    name = top.text("name", forms.NAME) or ""
    arithmetic = top.table("arithmetic", ("compute_dtype", "stated"))
    arithmetic.require("compute_dtype")
    compute_dtype = arithmetic.choice("compute_dtype", COMPUTE_DTYPES, "")
    stated = arithmetic.flag("stated", default=False)
    rules = top.table("rules", ("new_rows", "delta_only", "required"))
    new_rows = rules.choice("new_rows", NEW_ROWS, "copy")
    named = rules.texts("delta_only", forms.LINE)
    delta_only = sorted(set(DELTA_ONLY if named is None else named))
    required = rules.texts("required", forms.LINE) or ()
    foreign = sorted(set(required) - set(delta_only))
    if foreign:
        raise rules.unusable("required", f"names of delta_only, which has no {foreign[0]}")
    if new_rows == "mean" and compute_dtype != "float32":
        raise rules.unusable("new_rows", 'mean only with arithmetic.compute_dtype = "float32"')
    base = top.table("base", ("model", "files"))
    shapes = read_shapes(top)
    checks = _checks(top, shapes)
    decisive = {
        "name": name,
        "arithmetic": {"compute_dtype": compute_dtype, "stated": stated},
        "rules": {"new_rows": new_rows, "delta_only": delta_only},
        "shapes": {key: size for key, size in asdict(shapes).items() if size is not None},
        "checks": asdict(checks) if checks else None,
    }
    return Recipe(
        name,
        top.text("title", forms.LINE) or name,
        top.text("description", forms.TEXT) or "",
        top.texts("sources", forms.URL) or (),
        top.text("notice", forms.TEXT) or "",
        top.texts("notes", forms.TEXT) or (),
        _delta(top),
        base.text("model", forms.NAME),
        tuple(read_hashes(base.table("files"))),
        compute_dtype,
        stated,
        new_rows,
        frozenset(delta_only),
        required,
        shapes,
        checks,
        f"recipe1:{blake3(_canonical(decisive)).hexdigest()}",
        **_transformers(top),
    )


def _transformers(top: Table) -> dict[str, Any]:
    """Return what stands under ``transformers``, which decides nothing of the weights."""
    table = top.table("transformers", ("vision_tower", "conversation", "tokens"))
    listed = table.table("tokens")
    for token in listed:
        if not forms.LINE.accepts(token):
            problem = f"the key {listed.name(token)} is not usable"
            raise MalformedInput(problem, where=listed.where, expected=forms.LINE.expected, remedy="correct it")
    return {
        "vision_tower": table.text("vision_tower", forms.NAME),
        "conversation": table.text("conversation", forms.NAME),
        "tokens": {token: listed.whole(token, MOST_SIZE) or 0 for token in listed},
    }


def _canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _delta(top: Table) -> DeltaSource:
    delta = top.table("delta", ("repo", "revision", "has_weights", "archives", "files"))
    return DeltaSource(
        delta.text("repo", forms.REPO),
        delta.text("revision", forms.REVISION),
        delta.flag("has_weights", default=True),
        delta.texts("archives", forms.ARCHIVE) or (),
        tuple(read_hashes(delta.table("files"))),
    )


def read_hashes(files: Table) -> Iterator[FileHash]:
    """Yield the hashes in a table of file names; each has a sha256, a table of sha256 and size, or a list of such.

    Raises ``MalformedInput``.
    """
    for name in files:
        if not forms.FILE_NAME.accepts(name):
            problem = f"the key {files.name(name)} is not usable"
            raise MalformedInput(problem, where=files.where, expected=forms.FILE_NAME.expected, remedy="correct it")
        value = files.value(name)
        for entry in value if isinstance(value, list) else [value]:
            known = entry if isinstance(entry, dict) else {"sha256": entry}
            table = Table(known, files.where, files.name(name), ("sha256", "size"))
            table.require("sha256")
            yield FileHash(name, table.text("sha256", forms.SHA256) or "", table.whole("size", MOST_BYTES))


def read_shapes(top: Table) -> Shapes:
    """Return what stands under ``shapes``. Raises ``MalformedInput``."""
    keys = tuple(asdict(Shapes()))
    table = top.table("shapes", keys)
    shapes = Shapes(**{key: table.whole(key, MOST_LAYERS if key == "layers" else MOST_SIZE) for key in keys})
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
