"""docs/manifest-format.md and its worked example."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

DOCUMENT = (ROOT / "docs" / "manifest-format.md").read_text()

FIXTURE = ROOT / "tests" / "fixtures" / "manifest-v1"

CONTENT_DIGEST = "dw1:319d38af75afc6491943880a2a5c554b448dbbfedf94a66fbcbe78bb4155c7c6"
