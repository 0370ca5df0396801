"""Checks that the tree is the release that a tag names: the version, the changelog and the citation say the same.

    python3 scripts/check_release.py v1.2.3

Prints a line for each thing that is wrong, and ends with 1. Needs nothing installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(tag: str) -> None:
    """Look for the version of the tag in the files that state it."""
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        sys.exit(f"check_release: {tag} is not the tag of a release: expected vX.Y.Z")
    version = tag.removeprefix("v")
    wanted = {
        "src/deltaweights/__init__.py": f'__version__ = "{version}"',
        "CITATION.cff": f"version: {version}",
        "CHANGELOG.md": f"## [{version}] - YYYY-MM-DD",
    }
    missing = [
        f"check_release: {file} has no line '{line}'"
        for file, line in wanted.items()
        if not re.search(pattern_of(line), (ROOT / file).read_text("utf-8"), re.MULTILINE)
    ]
    chooser = ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"
    if "OWNER" in chooser.read_text("utf-8"):
        missing.append(f"check_release: {chooser.relative_to(ROOT)} still says OWNER for the repository's owner")
    sys.exit("\n".join(missing) or 0)


def pattern_of(line: str) -> str:
    """Return a pattern for a whole line, in which YYYY-MM-DD stands for a date."""
    return "^" + re.escape(line).replace(re.escape("YYYY-MM-DD"), r"\d{4}-\d\d-\d\d") + "$"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 scripts/check_release.py vX.Y.Z")
    main(sys.argv[1])
