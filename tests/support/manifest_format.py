"""docs/manifest-format.md, the pages beside it, and the worked example."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = ("manifest-format.md", "digests-format.md", "inputs-format.md", "verification-format.md")

DOCUMENT = "\n".join((ROOT / "docs" / page).read_text() for page in PAGES)

FIXTURE = ROOT / "tests" / "fixtures" / "manifest-v1"

CONTENT_DIGEST = "dw1:319d38af75afc6491943880a2a5c554b448dbbfedf94a66fbcbe78bb4155c7c6"
