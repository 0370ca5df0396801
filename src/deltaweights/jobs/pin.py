"""Pinning models: what a lock says of each, once it was checked."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import CheckFailed, UsageError
from deltaweights.hub.ids import PREFIX, hub_id
from deltaweights.hub.locate import Hub, HubOptions
from deltaweights.jobs.lock_file import PEM, Pin
from deltaweights.jobs.wanted_signature import WantedSignature
from deltaweights.manifest.records import MANIFEST
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import VerifyReport
from deltaweights.report import Report


def pin_model(
    model: str,
    *,
    root: Path,
    wanted: WantedSignature | None = None,
    hub: HubOptions | None = None,
    workers: int | None = None,
    report: Report | None = None,
) -> Pin:
    """Return the pin of ``model``: ``ORG/NAME[@REVISION]``, or a folder below ``root``, where the lock will be.

    A folder is verified, which reads all of it; of a model of the Hub the manifest is compared with what the Hub states, and
    weights are not fetched. A model of the Hub without a manifest is pinned by its commit alone. ``wanted`` is the signature that
    must be there, too. Raises ``CheckFailed`` for what does not verify, ``UsageError`` for a folder elsewhere, and the errors of
    ``verify``.

    >>> from pathlib import Path
    >>> from deltaweights import pin_model
    >>> pin_model("merged", root=Path()).path
    'merged'
    """
    path = None if hub_id(model) is not None else _inside(model, root)
    given, signed = (model, None) if wanted is None else wanted.read(model, hub)
    if path is None:
        given, has_manifest = _at_commit(str(given), hub or HubOptions(), report or Report())
        if not has_manifest and wanted is None:
            at = hub_id(given)
            return Pin(id=at.repo if at else None, revision=at.revision if at else None)
    here = path is not None
    found = verify(
        given, signed=signed if path else None, weights=here, recompute=here, workers=workers, hub=hub, report=report
    )
    found.raise_if_failed()
    if found.base is not None and found.base.warning is not None:
        (report or Report()).warn(f"{model}: {found.base.warning}")
    if found.manifest_sha256 is None:
        problem, remedy = "has no manifest to pin", "keep one in git: deltaweights manifest, and verify --manifest"
        raise CheckFailed(problem, where=model, remedy=remedy)
    if path is None:
        _check_signed_manifest(found, signed)
    at = hub_id(str(given)) if path is None else None
    return Pin(
        id=at.repo if at else None,
        revision=at.revision if at else None,
        path=path,
        content_digest=found.content_digest,
        manifest_sha256=found.manifest_sha256,
        public_key=None if wanted is None else _pem(wanted),
        identity=None if wanted is None else wanted.identity,
        issuer=None if wanted is None else wanted.issuer,
    )


def _at_commit(model: str, options: HubOptions, report: Report) -> tuple[str, bool]:
    """Return the id of ``model`` with its commit, and whether it has a manifest."""
    wanted, hub = hub_id(model), Hub(options, report)
    if wanted is None:
        raise AssertionError("an id stays one")
    with closing(hub):
        directory = hub.open(wanted)
        return str(directory.id), MANIFEST in directory.names()


def _check_signed_manifest(found: VerifyReport, signed: SignedFiles | None) -> None:
    """Raise ``CheckFailed`` unless the manifest is what was signed; it vouches for the rest."""
    if signed is not None and signed.digests.get(MANIFEST) != found.manifest_sha256:
        problem, expected = "is not what was signed", signed.digests.get(MANIFEST)
        where, remedy = f"{found.target}/{MANIFEST}", "do not pin it: ask who signed it"
        raise CheckFailed(problem, where=where, found=found.manifest_sha256, expected=expected, remedy=remedy)


def _inside(folder: str, root: Path) -> str:
    """Return the path of a folder relative to ``root``, with slashes."""
    try:
        return Path(folder).absolute().relative_to(root.absolute()).as_posix()
    except ValueError:
        expected = f"a folder in {root.absolute()}: a lock names what is beside or below it"
        remedy = f"name a lock above it with --output, or write {PREFIX}ORG/NAME for a model of the Hub"
        raise UsageError("cannot be pinned from here", found=folder, expected=expected, remedy=remedy) from None


def _pem(wanted: WantedSignature) -> str | None:
    if wanted.public_key is None:
        return None
    key = wanted.public_key
    text = (key if isinstance(key, bytes) else read_small(Path(key), 64 * 1024)).decode("ascii", "replace")
    text = "".join(f"{line.strip()}\n" for line in text.strip().splitlines())
    if not PEM.accepts(text):
        raise UsageError("not a key that a lock can hold", found=key, expected=PEM.expected)
    return text
