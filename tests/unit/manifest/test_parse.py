"""Which manifests are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.manifest.parse import parse_manifest
from deltaweights.util.text import readable_json, strict_json
from tests.support.manifest_format import CONTENT_DIGEST, FIXTURE


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    """A manifest of version 1 with unknown keys is read."""
    document = strict_json((FIXTURE / "out" / "manifest.json").read_bytes())
    document["result"]["proof of tomorrow"] = {"from": "a later release"}
    assert parse_manifest(readable_json(document)).content_digest == CONTENT_DIGEST


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions_are_refused(version: object) -> None:
    """A manifest of another version is refused."""
    document = strict_json((FIXTURE / "out" / "manifest.json").read_bytes()) | {"version": version}
    with pytest.raises(ValueError, match=f"version {version}"):
        parse_manifest(readable_json(document))
