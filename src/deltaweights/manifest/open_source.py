"""Tell what somebody gave to verify, and open it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaweights.errors import UsageError
from deltaweights.hub.ids import hub_id
from deltaweights.manifest.verify_source import LocalSource, VerifySource
from deltaweights.report import Report

if TYPE_CHECKING:
    from deltaweights.hub.locate import HubOptions


@dataclass(frozen=True)
class FromHub:
    """How files of the Hub are verified; without ``weights``, what it states of them is compared, and they are not read."""

    options: HubOptions | None = None
    weights: bool = True


def open_source(
    given: str | os.PathLike[str],
    from_hub: FromHub | None = None,
    manifest: Path | None = None,
    report: Report | None = None,
) -> VerifySource:
    """Return the files that ``given`` names: a path, or a model of the Hub, which is fetched.

    ``manifest`` is one that is kept elsewhere. Raises ``InputOutputError`` when files cannot be listed or fetched, and
    ``UsageError`` for a path of which only what the Hub states is to be compared.
    """
    how, wanted = from_hub or FromHub(), hub_id(os.fspath(given)) if isinstance(given, str) else None
    if wanted is not None:
        from deltaweights.manifest.hub_source import HubSource  # noqa: PLC0415  (slow to load)

        return HubSource(wanted, how.options, report or Report(), manifest, weights=how.weights)
    if not how.weights:
        remedy = "leave --no-weights out, or give ORG/NAME"
        raise UsageError("--no-weights is about what the Hub states of a model", found=given, remedy=remedy)
    return LocalSource(Path(given))
