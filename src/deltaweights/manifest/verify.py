"""Checking a folder against a manifest, its own or one that is kept elsewhere, or against a pinned digest, in both directions.

Enters: a folder. Leaves: a report of everything that is not as it should be. Never: torch, a file that no name in the folder
stands for, or trust in what the manifest says where the bytes can be asked.
"""

from __future__ import annotations

import os
from pathlib import Path

from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from deltaweights.manifest.digest import content_digest
from deltaweights.manifest.folder_check import FolderCheck
from deltaweights.manifest.folder_entries import unsigned_entries
from deltaweights.manifest.parse import Manifest
from deltaweights.manifest.signed_files import SignedFiles
from deltaweights.manifest.verify_report import CONTENT, VerifyReport
from deltaweights.report import Report
from deltaweights.util.workers import resolve_workers


def verify(
    folder: str | os.PathLike[str],
    *,
    expect: str | None = None,
    expect_manifest: str | None = None,
    manifest: str | os.PathLike[str] | None = None,
    signed: SignedFiles | None = None,
    workers: int | None = None,
    report: Report | None = None,
) -> VerifyReport:
    """Check every file of ``folder`` against its manifest, and the folder against ``expect`` and ``expect_manifest``.

    ``expect`` is a content digest (``dw1:...``), of this layout or of the original one, recomputed from the bytes of all
    tensors; ``expect_manifest`` is the sha256 of the manifest. ``manifest`` is one that is kept elsewhere: then the folder's own
    is not looked at, and links to files are followed. ``signed`` is what a signature vouches for
    (``signing.folder.read_signature``). Mismatches, missing and extra files are collected in the report. Raises
    ``InputOutputError`` when the folder or ``manifest`` cannot be read, ``MalformedInput`` when ``manifest`` is none,
    ``UsageError`` when a pin is malformed.
    """
    _check_pins(expect, expect_manifest)
    check = FolderCheck(Path(folder), None if manifest is None else Path(manifest))
    check.read_manifest(expect_manifest)
    return finish_verify(check, expect=expect, signed=signed, workers=workers, report=report)


def finish_verify(
    check: FolderCheck,
    *,
    expect: str | None,
    signed: SignedFiles | None = None,
    workers: int | None = None,
    report: Report | None = None,
) -> VerifyReport:
    """Do what ``verify`` does once the manifest is read, which may be large. Raises as ``verify`` does."""
    check.hold_names()
    found = check.read_bytes(resolve_workers(workers), report or Report(), with_tensors=expect is not None)
    digest = check.manifest.content_digest if check.manifest else None
    recomputed = expect is not None and check.manifest is not None
    if recomputed:
        digest = content_digest((name, *row) for name, row in found.tensors.items())
        check.hold_tensors(found.tensors)
        if expect not in {digest, check.original(found.tensors)}:
            check.fail(str(check.root), "content digest is not the expected one", digest, expect, about=CONTENT)
    if signed is not None:
        check.hold_signed(signed, found)
    return check.report(digest, recomputed=recomputed)


def standing(folder: Path) -> tuple[Manifest, FolderCheck] | None:
    """Return the manifest of ``folder``, and the check that ``finish_verify`` ends; None when there is none that can be read."""
    try:
        check = FolderCheck(folder, None)
        check.read_manifest(None)
    except (InputOutputError, MalformedInput):
        return None
    return None if check.manifest is None else (check.manifest, check)


def listed(folder: Path) -> tuple[Manifest, dict[str, str]]:
    """Return the manifest of ``folder``, and the sha256 of all its files as the manifest states them, its own included.

    Names and sizes are looked at, bytes are not read. Raises ``CheckFailed`` for the first that differs, ``InputOutputError``.
    """
    check = FolderCheck(folder, None)
    check.read_manifest(None)
    check.hold_names()
    if check.listing:
        check.fail(check.title, "a listing of a folder, not the manifest of a result: only results are signed")
    for name, kind in unsigned_entries(folder).items():
        check.fail(name, "cannot be signed", kind)
    for name in check.there & set(check.records):
        check.has_size(name)
    check.report(None, recomputed=False).raise_if_failed()
    if check.manifest is None:
        raise AssertionError("a manifest that is not read is a problem")
    return check.manifest, check.digests({name: record.sha256 for name, record in check.records.items()})


def _check_pins(expect: str | None, expect_manifest: str | None) -> None:
    def is_hex(text: str) -> bool:
        return len(text) == 64 and not set(text.lower()) - set("0123456789abcdef")

    if expect is not None and not (expect.startswith("dw1:") and is_hex(expect[4:]) and expect == expect.lower()):
        raise UsageError("not a content digest", found=expect, expected="dw1: and 64 lower-case hex digits")
    if expect_manifest is not None and not is_hex(expect_manifest):
        raise UsageError("not a sha256", found=expect_manifest, expected="64 hex digits")
