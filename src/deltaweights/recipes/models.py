"""Known models, identified by the hashes of their files (models.toml).

Other models have the same shapes. A file that is not listed is unknown, not corrupt: more copies circulate than anyone has listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from deltaweights.errors import UsageError
from deltaweights.recipes.recipe import FileHash, Shapes, check_head, read_hashes, read_shapes
from deltaweights.recipes.table import LINE, REPO, REVISION, Table, candidates, parse_toml

# Meta's own layout, and the Hugging Face layout in both containers.
FORMS = {"meta": "Meta's files", "bin": "Hugging Face .bin", "safetensors": "Hugging Face safetensors"}


@dataclass(frozen=True)
class KnownFile(FileHash):
    """A file of a known model; ``form`` is one of ``FORMS``."""

    form: str


@dataclass(frozen=True)
class KnownModel:
    """A model whose files are known."""

    key: str
    title: str
    generation: str
    repo: str | None
    revisions: tuple[str, ...]  # full commit ids that have these files, the preferred one first
    shapes: Shapes
    config: dict[str, float]  # the values of its config.json that distinguish it from its siblings
    files: tuple[KnownFile, ...]

    @property
    def revision(self) -> str | None:
        """The preferred commit, if any is known."""
        return self.revisions[0] if self.revisions else None


@cache
def models() -> tuple[KnownModel, ...]:
    """Return all known models, in the order of models.toml."""
    document = parse_toml(files("deltaweights.recipes").joinpath("models.toml").read_bytes(), "models.toml")
    check_head(document, "models.toml", "deltaweights-models")
    listed = Table(document, "models.toml", keys=("format", "version", "models")).table("models")
    return tuple(_model(key, listed) for key in listed)


def _model(key: str, listed: Table) -> KnownModel:
    table = listed.table(key, ("title", "generation", "repo", "revisions", "shapes", "config", "files"))
    table.require("title", "generation")
    by_form, config = table.table("files", tuple(FORMS)), table.table("config")
    return KnownModel(
        key=key,
        title=table.text("title", LINE) or "",
        generation=table.text("generation", LINE) or "",
        repo=table.text("repo", REPO),
        revisions=table.texts("revisions", REVISION) or (),
        shapes=read_shapes(table),
        config={name: config.number(name) or 0.0 for name in config},
        files=tuple(
            KnownFile(**vars(file), form=form) for form in by_form for file in read_hashes(by_form.table(form))
        ),
    )


def model(key: str) -> KnownModel:
    """Return the model with this key. Raises ``UsageError`` when there is none."""
    by_key = {known.key: known for known in models()}
    if key not in by_key:
        raise UsageError("not a known model", found=key, expected=candidates(key, list(by_key)))
    return by_key[key]


def known_file(sha256: str) -> tuple[KnownModel, KnownFile] | None:
    """Return the model that has a file with this sha256 (lower-case hex), and the file; None when it is unknown."""
    return next(((known, file) for known in models() for file in known.files if file.sha256 == sha256), None)
