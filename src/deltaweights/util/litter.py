"""The files that systems, file managers and notebooks leave in any folder: no part of what is in it."""

from __future__ import annotations

import re

LITTER = re.compile(
    r"\._.*|\.nfs[0-9a-fA-F]+"
    r"|\.DS_Store|\.localized|\.AppleDouble|\.Spotlight-V100|\.Trashes|\.fseventsd|__MACOSX|Icon\r"
    r"|(eh)?Thumbs\.db|desktop\.ini|System Volume Information|\$RECYCLE\.BIN"
    r"|\.directory|@eaDir|\.ipynb_checkpoints",
    re.IGNORECASE,
)
"""macOS (with ``._`` and a file's name: its attributes), NFS (a file that was removed while it was open), Windows, KDE, Synology,
Jupyter. A name that means something to any loader must not be here."""

JUPYTER = ".ipynb_checkpoints"
"""Where Jupyter keeps copies of the files that were edited with it: ``NAME-checkpoint.json`` of ``NAME.json``."""

_COPY = re.compile(r"(.+)-checkpoint((\.[^.]*)?)")


def is_litter(name: str) -> bool:
    """Return whether a file or folder of this name is no part of the folder that it is in."""
    return LITTER.fullmatch(name) is not None


def jupyter_original(name: str) -> str | None:
    """Return the name of the file of which ``name``, in a folder ``JUPYTER``, is a copy; None when it is none."""
    match = _COPY.fullmatch(name)
    return match[1] + match[2] if match else None
