"""Model ids of the Hub: ``ORG/NAME``, ``ORG/NAME@REVISION``, the same after ``hf://``, and addresses of web pages."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

from deltaweights.errors import UsageError

PREFIX = "hf://"

HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
PAGES = ("tree", "commit")
"""The pages of a model whose address ends with a revision."""
NOT_MODELS = ("datasets", "spaces")

_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_ID = re.compile(f"(?:{_NAME}/)?{_NAME}", re.ASCII)
"""The Hub's own rule, except for what a name must not contain: ``--``, ``..``, and ``.git`` at its end."""
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]*", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """A repository, and a branch, tag or commit of it; None is its main branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class ModelSource:
    """A repository, without the files whose names end with one of ``hidden``."""

    id: HubId
    hidden: tuple[str, ...] = ()


PathLike = str | os.PathLike[str]

ModelLocation = PathLike | ModelSource
"""Where a checkpoint is: a path or an id, as a user writes it, or a repository."""


def is_repo(repo: str) -> bool:
    """Return whether ``repo`` can be the id of a repository: ``ORG/NAME``, or ``NAME`` alone."""
    return bool(_ID.fullmatch(repo)) and ".." not in repo and "--" not in repo and not repo.endswith(".git")


def is_address(given: str) -> bool:
    """Return whether this is the address of a web page; those of the Hub may lack ``https://``, as browsers show them."""
    return given.lower().startswith(("https://", "http://", *(f"{host}/" for host in HOSTS)))


def hub_id(given: PathLike) -> HubId | None:
    """Return the id that ``given`` is, None for a path, as is what exists here without ``hf://``. Raises ``UsageError``.

    The address of a model's page on the Hub, or on the mirror in ``HF_ENDPOINT``, is its id, too.
    """
    if not isinstance(given, str):
        return None
    if is_address(given) and not os.path.lexists(given):
        given = _id_at(given if "://" in given else f"https://{given}")
    forced = given.startswith(PREFIX)
    repo, at, revision = given.removeprefix(PREFIX).partition("@")
    if not forced and (repo.count("/") != 1 or os.path.lexists(given)):
        return None
    valid = is_repo(repo)
    valid_revision = _REVISION.fullmatch(revision) and ".." not in revision and "//" not in revision
    if valid and (not at or valid_revision):
        return HubId(repo, revision or None)
    if forced:
        raise UsageError("not a Hub id", found=given, expected="hf://ORG/NAME or hf://ORG/NAME@REVISION")
    return None


def _id_at(address: str) -> str:
    """Return the id of the model whose page is at ``address``, after ``hf://``. Raises ``UsageError`` for any other page."""
    bare = address.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0].rstrip("/")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    hubs = [f"{hub}/" for hub in (endpoint, *(f"https://{host}" for host in HOSTS)) if hub]
    path = next((bare[len(hub) :] for hub in hubs if bare.lower().startswith(hub.lower())), None)
    expected = "https://huggingface.co/ORG/NAME or .../tree/REVISION"
    if path is None:
        problem, remedy = "not an address of the Hub", "download it, and give the path"
        raise UsageError(problem, found=address, expected=expected, remedy=remedy)
    parts = path.split("/")
    name = "/".join(parts[:2])
    if parts[0] in NOT_MODELS or len(parts) not in {1, 2, 4} or (len(parts) == 4 and parts[2] not in PAGES):
        of_model = parts[0] not in NOT_MODELS and is_repo(name)
        give = f"give {name}, or {name}@REVISION" if of_model else None
        raise UsageError("not the address of a model", found=address, expected=expected, remedy=give)
    return f"{PREFIX}{name}@{unquote(parts[3])}" if len(parts) == 4 else f"{PREFIX}{name}"


def model_source(place: PathLike) -> ModelSource | None:
    """Return the repository that ``place`` names, None when it is a path. Raises ``UsageError``."""
    wanted = hub_id(place)
    return None if wanted is None else ModelSource(wanted)
