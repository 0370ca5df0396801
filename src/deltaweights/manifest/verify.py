"""Verify a folder against a manifest or a pinned digest: every file is compared, and there must be no other file."""

from __future__ import annotations

import os
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from deltaweights.manifest.base_claim import base_claim
from deltaweights.manifest.content_check import compare_files, compare_tensors, original_digest_of
from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.folder_check import FolderCheck
from deltaweights.manifest.open_source import FromHub, open_source
from deltaweights.manifest.parse import Manifest
from deltaweights.manifest.signed_files import SignedFiles, compare_signed, with_documents
from deltaweights.manifest.verdicts import report_of
from deltaweights.manifest.verify_report import CONTENT, VerifyReport
from deltaweights.manifest.verify_source import LocalSource
from deltaweights.report import Report
from deltaweights.util.workers import resolve_workers

if TYPE_CHECKING:
    from deltaweights.hub.locate import HubOptions


def verify(
    folder: str | os.PathLike[str],
    *,
    expect: str | None = None,
    expect_manifest: str | None = None,
    manifest: str | os.PathLike[str] | None = None,
    signed: SignedFiles | None = None,
    workers: int | None = None,
    hub: HubOptions | None = None,
    weights: bool = True,
    recompute: bool = False,
    report: Report | None = None,
) -> VerifyReport:
    """Check every file of ``folder`` against its manifest, and the folder against ``expect`` and ``expect_manifest``.

    ``expect`` is a content digest (``dw1:...``), of this layout or of the original one, recomputed from the bytes of all
    tensors; with ``recompute`` the one that the manifest states is expected where none is given. ``expect_manifest`` is the sha256
    of the manifest. ``manifest`` is the path of one that is stored elsewhere: then the
    folder's own is ignored, and links to files are followed. ``signed`` are the files that a signature covers
    (``signing.folder.read_signature``). A model of the Hub (``ORG/NAME[@REVISION]``) is fetched into the cache or, as ``hub`` says,
    read once and not kept; without ``weights``, the manifest is compared with what the Hub states, and only small files are
    read. The report collects all mismatches, and missing and extra files. Raises
    ``InputOutputError`` when the folder or ``manifest`` cannot be read, ``MalformedInput`` when ``manifest`` is malformed,
    ``UsageError`` when a pin is malformed.

    >>> from deltaweights import verify
    >>> verify("merged").ok
    True
    """
    if expect is not None and not re.fullmatch("dw1:[0-9a-f]{64}", expect):
        raise UsageError("not a content digest", found=expect, expected="dw1: and 64 lower-case hex digits")
    if expect_manifest is not None and not re.fullmatch("[0-9a-fA-F]{64}", expect_manifest):
        raise UsageError("not a sha256", found=expect_manifest, expected="64 hex digits")
    if (expect is not None or recompute) and not weights:
        remedy = "leave --expect or --no-weights out"
        raise UsageError("a content digest is recomputed from the weights", remedy=remedy)
    external = None if manifest is None else Path(manifest)
    from_hub = FromHub(hub, weights, external)
    with closing(open_source(folder, from_hub, with_tensors=expect is not None or recompute, report=report)) as source:
        check = FolderCheck(source, external, expects_content=expect is not None)
        check.read_manifest(expect_manifest)
        if recompute and expect is None and check.manifest is not None and source.only is None:
            expect = check.manifest.content_digest
        return finish_verify(check, expect=expect, signed=signed, workers=workers, report=report)


def finish_verify(
    check: FolderCheck,
    *,
    expect: str | None,
    signed: SignedFiles | None = None,
    workers: int | None = None,
    report: Report | None = None,
) -> VerifyReport:
    """Do the rest of ``verify`` once the manifest has been read: large ones need not be read twice."""
    check.compare_names()
    workers = check.source.most_workers or workers
    digests = compare_files(check, resolve_workers(workers), report or Report(), with_tensors=expect is not None)
    digest = check.manifest.content_digest if check.manifest and check.source.only is None else None
    recomputed = expect is not None and (check.manifest is not None or bool(digests.tensors))
    if recomputed:
        digest = content_digest((name, *row) for name, row in digests.tensors.items())
        if check.manifest is not None:
            compare_tensors(check, digests.tensors)
        check.content_matches = expect in {digest, original_digest_of(check, digests.tensors)}
        if not check.content_matches:
            is_pin, problem = check.is_intact and bool(check.compared_with), "content digest is not the expected one"
            check.add_problem(check.source.title, problem, digest, expect, about=CONTENT, is_pin=is_pin)
    elif expect is not None and not any(problem.about == CONTENT for problem in check.problems):
        check.add_problem(check.source.title, "there are no tensors to compare with it", None, expect, about=CONTENT)
    if signed is not None:
        compare_signed(check, signed, digests)
    claim = base_claim(check.manifest) if check.manifest else None
    return replace(report_of(check, digest, digests, recomputed=recomputed), base=claim)


def open_result(folder: Path) -> tuple[Manifest, FolderCheck] | None:
    """Return the manifest of ``folder`` and a check for ``finish_verify``, or None when there is no readable manifest."""
    try:
        check = FolderCheck(LocalSource(folder))
        check.read_manifest(None)
    except (InputOutputError, MalformedInput):
        return None
    return None if check.manifest is None else (check.manifest, check)


def digests_to_sign(folder: Path) -> tuple[Manifest, dict[str, str]]:
    """Return the manifest and all stated sha256, once names and sizes agree. Raises ``CheckFailed``, ``InputOutputError``."""
    check = FolderCheck(LocalSource(folder))
    check.read_manifest(None)
    check.compare_names()
    if check.is_listing:
        check.add_problem(check.title, "a listing of a folder, not the manifest of a result: only results are signed")
    check.refuse_extras()
    for name, kind in check.source.entries.unsigned.items():
        check.add_problem(name, "cannot be signed", kind)
    records = check.manifest.files if check.manifest else {}
    for name in sorted(check.files & set(records)):
        check.compare_size(name)
    report_of(check, None, recomputed=False).raise_if_failed()
    if check.manifest is None:
        raise AssertionError("a manifest that cannot be read is a problem")
    return check.manifest, with_documents(check, {name: record.sha256 for name, record in records.items()})
