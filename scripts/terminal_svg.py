"""Writes docs/assets/demo.svg, the picture of a run in the README, from what the demo prints: scripts/terminal-svg.

tests/cli/test_readme.py compares the picture with the demo of today. Run this again when they differ.
"""

from __future__ import annotations

import re
import subprocess
import sys
from html import escape, unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "assets" / "demo.svg"
COLUMNS, LINE, CHARACTER, MARGIN = 100, 18, 8.0, 16
"""Columns of the terminal, and in pixels the height of a line, the width of a character and the margin."""

STYLE = (
    "text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre;fill:#d6dae0}"
    ".command{fill:#fff;font-weight:600}.good{fill:#7fd88f}.dim{fill:#8b93a1}"
)
GOOD = ("verified ", "identical ", "base            proved")


def recorded() -> list[str]:
    """Run the demo and return the lines of the picture: steps 2 to 4, temporary paths shortened, wrapped as a terminal does."""
    command = [sys.executable, "-m", "deltaweights", "demo"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = re.sub(r"'?/[^\s']*/deltaweights-demo-\w+([^\s']*)'?", r"demo\1", done.stdout)
    steps = text[text.index("\n2. ") + 1 : text.index("\nWith real weights")].rstrip()
    lines = ["$ deltaweights demo", "...", *steps.splitlines()]
    return [line[at : at + COLUMNS] for line in lines for at in range(0, max(len(line), 1), COLUMNS)]


def drawn(lines: list[str]) -> str:
    """Return the picture of a terminal with these lines."""
    width, height = int(COLUMNS * CHARACTER + 2 * MARGIN), len(lines) * LINE + 2 * MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    parts = [head, "<title>deltaweights demo</title>", f"<style>{STYLE}</style>"]
    parts.append(f'<rect width="{width}" height="{height}" rx="8" fill="#1d2129"/>')
    for number, line in enumerate(lines):
        y = MARGIN + LINE * number + 13
        parts.append(f'<text x="{MARGIN}" y="{y}"{_kind(line)} xml:space="preserve">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def shown(picture: str) -> list[str]:
    """Return the lines of a picture."""
    return [unescape(text) for text in re.findall(r"<text [^>]*>(.*?)</text>", picture)]


def _kind(line: str) -> str:
    if re.match(r"\$ |\d\. ", line):
        return ' class="command"'
    if line.startswith(GOOD):
        return ' class="good"'
    return ' class="dim"' if line.startswith(("     ", "...")) else ""


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(recorded()), encoding="utf-8")
