"""Tell what somebody gave to verify, and open it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaweights.errors import UsageError
from deltaweights.hub.ids import hub_id
from deltaweights.manifest.records import MANIFEST
from deltaweights.manifest.sums_file import NAMES, SUFFIX, stated_by_sums
from deltaweights.manifest.verify_source import LocalSource, VerifySource

if TYPE_CHECKING:
    from deltaweights.hub.locate import HubOptions
    from deltaweights.report import Report


@dataclass(frozen=True)
class FromHub:
    """How files of the Hub are verified; without ``weights``, what it states of them is compared, and they are not read.

    ``manifest`` is one that is kept elsewhere.
    """

    options: HubOptions | None = None
    weights: bool = True
    manifest: Path | None = None


PREFIX = "models--"  # of the folder of a repository in the Hub's cache


def open_source(
    given: str | os.PathLike[str],
    from_hub: FromHub | None = None,
    *,
    with_tensors: bool = False,
    report: Report | None = None,
) -> VerifySource:
    """Return the files that ``given`` names: a folder, a snapshot of the Hub's cache, one file, an archive, or a model's id.

    ``with_tensors`` says that the content digest will be asked for. Raises ``InputOutputError`` when they cannot be listed,
    ``MalformedInput`` for an archive that is none, ``UsageError`` for a file that says what others should be.
    """
    how, wanted = from_hub or FromHub(), hub_id(given)
    if wanted is not None:
        from deltaweights.manifest.hub_source import HubSource  # noqa: PLC0415  (see above)

        return HubSource(wanted, how.options, report, how.manifest, weights=how.weights)
    if not how.weights:
        remedy = "leave --no-weights out, or give ORG/NAME"
        raise UsageError("--no-weights is about what the Hub states of a model", found=given, remedy=remedy)
    path = Path(given)
    if path.is_file():
        return _open_file(path, with_tensors=with_tensors, report=report)
    return _open_folder(path)


def _open_folder(path: Path) -> LocalSource:
    snapshot = _snapshot(path)
    if snapshot is not None:
        return _open_snapshot(snapshot)
    source = LocalSource(path)
    source.state(stated_by_sums(source))
    return source


def _snapshot(path: Path) -> Path | None:
    """Return the snapshot that ``path`` is or is in, or the one to take of the repository in the Hub's cache that it is."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow links)
    for folder in (absolute, *absolute.parents):  # also a folder in a snapshot: weights may be in one only
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(PREFIX):
            return path
    if absolute.name.startswith(PREFIX) and (absolute / "snapshots").is_dir():
        from deltaweights.manifest.cache_source import snapshot_in  # noqa: PLC0415  (loads the Hub's packages)

        return snapshot_in(path)
    return None


def _open_snapshot(path: Path) -> LocalSource:
    from deltaweights.manifest.cache_source import CacheSource  # noqa: PLC0415  (see above)

    source = CacheSource(path)
    if source.stated is None:
        source.state(stated_by_sums(source))
    return source


def _open_file(path: Path, *, with_tensors: bool, report: Report | None) -> VerifySource:
    from deltaweights.manifest.archive_source import ArchiveSource, is_archive  # noqa: PLC0415  (see above)

    if is_archive(path):
        archive = ArchiveSource(path, with_tensors=with_tensors, report=report)
        archive.state(stated_by_sums(archive))
        return archive
    if path.name == MANIFEST or path.name in NAMES or path.name.endswith(SUFFIX):
        remedy = f"give the folder: deltaweights verify {path.parent}"
        raise UsageError("this file says what others must be", found=path, expected="what it is about", remedy=remedy)
    source = _open_folder(path.parent)
    source.only, source.title = path.name, str(path)
    return source
