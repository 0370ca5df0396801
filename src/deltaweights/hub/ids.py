"""The names of models on the Hub: ``ORG/NAME``, ``ORG/NAME@REVISION``, and the same after ``hf://``.

Enters: what a user gave for a base or a delta. Leaves: a ``HubId``, or None when it is a path. Never: a look at the network.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from deltaweights.errors import UsageError

PREFIX = "hf://"

_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_ID = re.compile(f"(?:{_NAME}/)?{_NAME}", re.ASCII)
"""The Hub's own rule, but for what must not stand in a name: ``--``, ``..``, and ``.git`` at its end."""
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]*", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """A repository, and a branch, tag or commit of it; None stands for its main branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class ModelSource:
    """A repository that is meant, but for its files whose names end as one of ``hidden``."""

    id: HubId
    hidden: tuple[str, ...] = ()


PathLike = str | os.PathLike[str]

ModelLocation = PathLike | ModelSource
"""Where a checkpoint is: a path or an id, as a user writes it, or a repository."""


def hub_id(given: PathLike) -> HubId | None:
    """Return the id that ``given`` is, None when it is a path: what exists on this machine is one, unless it begins with ``hf://``.

    Raises ``UsageError`` when it begins so and is no id.
    """
    if not isinstance(given, str):
        return None
    forced = given.startswith(PREFIX)
    repo, at, revision = given.removeprefix(PREFIX).partition("@")
    if not forced and (repo.count("/") != 1 or os.path.lexists(given)):
        return None
    fits = _ID.fullmatch(repo) and ".." not in repo and "--" not in repo and not repo.endswith(".git")
    if fits and (not at or _is_revision(revision)):
        return HubId(repo, revision or None)
    if forced:
        raise UsageError("not a Hub id", found=given, expected="hf://ORG/NAME or hf://ORG/NAME@REVISION")
    return None


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text and "//" not in text
