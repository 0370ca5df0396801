"""Read a manifest and its sha256 in one pass, and look whether it agrees with itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.small_files import refuse_long
from deltaweights.manifest.digest import content_digest, digested
from deltaweights.manifest.parse import Manifest, original_digest, parse_manifest
from deltaweights.manifest.records import FileRecord
from deltaweights.util import limits


def read_manifest(file: InputFile) -> tuple[Manifest | None, FileRecord, str | None]:
    """Return the manifest in ``file``, which is closed, its size and sha256, and what is wrong with it if it is none.

    Raises ``InputOutputError``, and ``MalformedInput`` when it is too long.
    """
    sha256, manifest, fault = hashlib.sha256(), None, None
    with closing(file):
        refuse_long(file, limits.MANIFEST.size)
        chunks = digested(file.chunks(), sha256)
        try:
            manifest = parse_manifest(chunks)
        except ValueError as error:
            fault = str(error)
        for _ in chunks:  # the rest, for its sha256
            pass
    return manifest, FileRecord(file.size, sha256.hexdigest()), fault


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield what a manifest says that does not follow from the tensors that it lists."""
    tensors, original = manifest.tensors, manifest.original_content_digest
    if content_digest((name, *row) for name, row in tensors.items()) != manifest.content_digest:
        yield "content_digest does not follow from the tensors that it lists"
    if original and original != original_digest(manifest, tensors):
        yield "original_content_digest does not follow from the tensors that it lists"
