"""The pages that people read, and the commands that they show."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]

PAGES = {"README.md": ROOT / "README.md"} | {
    path.relative_to(ROOT / "docs").as_posix(): path for path in sorted((ROOT / "docs").rglob("*.md"))
}
"""All pages that are written by hand, by their names below docs/."""

TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}

OURS = ("deltaweights ", "apply-delta ", "make-delta ", "$ ")


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the commands that a page shows, in order, without comments; lines that end with a backslash are joined."""
    shown = []
    for language, text in blocks(page):
        if language in {"", "console", "bash"}:
            lines = text.replace("\\\n", " ").splitlines()
            shown += [line.removeprefix("$ ").partition("  #")[0].strip() for line in lines if line.startswith(OURS)]
    return shown


def words(page: str) -> int:
    """Count the words of a page, those of code and tables too; bars, rules and bullets are none."""
    return sum(bool(re.search(r"\w", word)) for word in TEXTS[page].split())


def script(name: str) -> ModuleType:
    """Import a module of scripts/."""
    if name not in sys.modules:
        spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
