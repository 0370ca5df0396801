"""The examples of docstrings as blocks of code in the site; an extension of griffe, which reads the docstrings (mkdocs.yml)."""

from __future__ import annotations

import re

import griffe


class Examples(griffe.Extension):
    """Fences each ``>>>`` example: as Markdown it would be a quotation, and what it prints a link."""

    def on_object(self, *, obj: griffe.Object, **_others: object) -> None:
        """Fence the examples of one docstring (called by griffe)."""
        if obj.docstring is not None:
            fence = r"\1```pycon\n\2```\n"
            text = obj.docstring.value.rstrip() + "\n"
            obj.docstring.value = re.sub(r"(\A|\n\n)(>>> (?:.+\n)+)", fence, text)
