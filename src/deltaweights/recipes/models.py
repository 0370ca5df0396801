"""Known models by the hashes of their files, so that a base can be told from its siblings of the same shapes.

Enters: models.toml, which lies in the package. Leaves: ``KnownModel``. Never: a verdict on a file that is not listed: it is
unknown, not corrupt, since more copies circulate than anyone has listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from deltaweights.errors import UsageError
from deltaweights.recipes import table as forms
from deltaweights.recipes.recipe import FileHash, Shapes, check_head, read_hashes, read_shapes
from deltaweights.recipes.table import Table, candidates
from deltaweights.recipes.toml_document import parse_toml

FORMAT = "deltaweights-models"

FORMS = {"meta": "Meta's files", "bin": "Hugging Face .bin", "safetensors": "Hugging Face safetensors"}
"""Meta's own layout; the Hugging Face layout in torch's format, and in safetensors."""


@dataclass(frozen=True)
class KnownFile(FileHash):
    """A file of a known model; ``form`` is one of ``FORMS``."""

    form: str


@dataclass(frozen=True)
class KnownModel:
    """A model whose files are known. ``config`` holds what its config.json says and that of its siblings does not.

    ``revisions`` are the full commit ids of ``repo`` at which these files were seen, the one to take first.
    """

    key: str
    title: str
    generation: str
    repo: str | None
    revisions: tuple[str, ...]
    shapes: Shapes
    config: dict[str, float]
    files: tuple[KnownFile, ...]

    @property
    def revision(self) -> str | None:
        """The commit to take, if any is known."""
        return self.revisions[0] if self.revisions else None


@cache
def models() -> tuple[KnownModel, ...]:
    """Return all known models, in the order of models.toml."""
    document = parse_toml(files("deltaweights.recipes").joinpath("models.toml").read_bytes(), "models.toml")
    check_head(document, "models.toml", FORMAT)
    listed = Table(document, "models.toml", keys=("format", "version", "models")).table("models")
    return tuple(_model(key, listed) for key in listed)


def _model(key: str, listed: Table) -> KnownModel:
    table = listed.table(key, ("title", "generation", "repo", "revisions", "shapes", "config", "files"))
    table.require("title", "generation")
    by_form, config = table.table("files", tuple(FORMS)), table.table("config")
    return KnownModel(
        key,
        table.text("title", forms.LINE) or "",
        table.text("generation", forms.LINE) or "",
        table.text("repo", forms.REPO),
        table.texts("revisions", forms.REVISION) or (),
        read_shapes(table),
        {name: config.number(name) or 0.0 for name in config},
        tuple(KnownFile(**vars(file), form=form) for form in by_form for file in read_hashes(by_form.table(form))),
    )


def model(key: str) -> KnownModel:
    """Return the model of this key. Raises ``UsageError`` when there is none."""
    for known in models():
        if known.key == key:
            return known
    keys = [known.key for known in models()]
    raise UsageError("not a known model", found=key, expected=candidates(key, keys))


@cache
def _by_hash() -> dict[str, tuple[KnownModel, KnownFile]]:
    return {file.sha256: (known, file) for known in models() for file in known.files}


def known_file(sha256: str) -> tuple[KnownModel, KnownFile] | None:
    """Return the model that has a file of this sha256 (lower-case hex), and the file; None when it is unknown."""
    return _by_hash().get(sha256)
