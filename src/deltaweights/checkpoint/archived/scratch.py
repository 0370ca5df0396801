"""A folder for what must be unpacked to be looked at.

Enters: nothing. Leaves: folders, and nothing once the work is done. Never: a folder that is made before it is needed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from deltaweights.errors import InputOutputError
from deltaweights.util.open_folder import OpenFolder


class Scratch:
    """An ``Unpacker`` whose folders lie where temporary files do (``TMPDIR``), and are gone at the end."""

    copies = 1
    """See ``Unpacker``: what is looked at has no result."""

    def __init__(self) -> None:
        self._root: Path | None = None

    def folder(self, role: str) -> OpenFolder:
        """See ``Unpacker``. Raises ``InputOutputError``."""
        try:
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="deltaweights-"))
            path = self._root / role.replace(" ", "-")
            path.mkdir()
        except OSError as error:
            raise InputOutputError.from_os(error, tempfile.gettempdir(), "make a folder to unpack in") from error
        return OpenFolder.at(path, follow=False)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._root is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._root)
