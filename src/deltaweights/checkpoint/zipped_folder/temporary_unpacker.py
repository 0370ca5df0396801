"""Temporary folders for archives that are unpacked only to be read."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from deltaweights.errors import InputOutputError
from deltaweights.util.open_folder import OpenFolder


class TemporaryUnpacker:
    """An ``Unpacker`` whose folders are made on demand in ``TMPDIR``, and removed at the end."""

    copies = 1

    def __init__(self) -> None:
        self._root: Path | None = None

    def folder(self, role: str) -> OpenFolder:
        """Make the folder for the checkpoint of that role. Raises ``InputOutputError``."""
        try:
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="deltaweights-"))
            path = self._root / role.replace(" ", "-")
            path.mkdir()
        except OSError as error:
            raise InputOutputError.from_os(error, tempfile.gettempdir(), "make a folder to unpack in") from error
        return OpenFolder.at(path, follow=False)

    def __enter__(self) -> TemporaryUnpacker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._root is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._root)
