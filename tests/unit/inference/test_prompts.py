"""Images that cannot be used are refused before anything is loaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.inference.prompts import open_images
from tests.support.errors import refused

BAD_IMAGES: dict[str, tuple[Callable[[Path], object], type[DeltaweightsError]]] = {
    "missing": (Path.exists, InputOutputError),
    "no-image": (lambda path: path.write_text("<html>"), MalformedInput),
    "empty": (lambda path: path.write_bytes(b""), MalformedInput),
    "row60-folder": (lambda path: path.mkdir(), MalformedInput),
    "row60-fifo": (os.mkfifo, MalformedInput),
    "cut-short": (lambda path: path.write_bytes(png()[:120]), MalformedInput),
    "bomb": (lambda path: path.write_bytes(bomb()), MalformedInput),
}


def png() -> bytes:
    """Return the bytes of an image that does not compress."""
    path = Path(tempfile.mkdtemp()) / "x.png"
    Image.effect_noise((40, 40), 90).save(path)
    data = path.read_bytes()
    shutil.rmtree(path.parent)
    return data


def bomb() -> bytes:
    """Return the bytes of an image whose header states 400 million pixels."""
    import zlib  # noqa: PLC0415

    data = bytearray(png())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_refused(name: str, tmp_path: Path) -> None:
    """An image that does not exist, is none, is damaged or too large is an error that names it."""
    make, kind = BAD_IMAGES[name]
    path = tmp_path / "image.png"
    make(path)
    with refused(kind, where=path):
        open_images([path])
