"""Row 86: whoever reads weights compares what their file records of them, not merges alone."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltaweights.cli.group import deltaweights
from deltaweights.diff.compare import diff_checkpoints
from deltaweights.errors import MalformedInput
from deltaweights.jobs.check_base import check_base
from tests.conftest import Run
from tests.support.meta import save_meta
from tests.support.pairs import base_tensors, make_pair, save

pytestmark = pytest.mark.trust


def flip(path: Path, member: str = "") -> None:
    """Change a bit in the middle of the file, or of the largest of its members whose name contains ``member``."""
    with zipfile.ZipFile(path) as archive:
        largest = max((info for info in archive.infolist() if member in info.filename), key=lambda info: info.file_size)
        stored = archive.read(largest)
    data = bytearray(path.read_bytes())
    data[data.index(stored) + len(stored) // 2] ^= 1
    path.write_bytes(data)


def whole(folder: Path) -> Path:
    """Save tensors that are whole storages."""
    model = save(base_tensors(), folder / "model", "torch", 1)
    flip(model / "pytorch_model.bin")
    return model


def of_several_blocks(folder: Path) -> Path:
    """Save one tensor that takes more blocks than there are workers."""
    model = save({"model.w": torch.randn(3 << 20).half(), "model.v": torch.ones(0)}, folder / "model", "torch", 1)
    flip(model / "pytorch_model.bin")
    return model


def slices(folder: Path) -> Path:
    """Save tensors that each show a part of one storage, of which the damaged byte is in none."""
    storage = torch.randn(1000)
    model = save({"model.a": storage[:300], "model.b": storage[700:]}, folder / "model", "torch", 1)
    flip(model / "pytorch_model.bin")
    return model


def in_meta_layout(folder: Path) -> Path:
    """Save a base as Meta published it, in two parts, whose rows stand in another order."""
    save_meta(base_tensors(), folder / "model", 2)
    flip(folder / "model" / "consolidated.01.pth")
    return folder / "model"


def archived(folder: Path) -> Path:
    """Save safetensors, which record no checksum, in a zip archive, which does."""
    model = save(base_tensors(), folder / "inside", "safetensors", 1)
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        for path in model.iterdir():
            archive.write(path, f"model/{path.name}")
    flip(folder / "model.zip", ".safetensors")
    return folder / "model.zip"


DAMAGED = {make.__name__: make for make in (whole, of_several_blocks, slices, in_meta_layout, archived)}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("make", DAMAGED.values(), ids=DAMAGED)
def test_row86_a_damaged_file_is_not_even_its_own_equal(
    make: Callable[[Path], Path], tmp_path: Path, workers: int
) -> None:
    """On either side, and on both."""
    damaged = make(tmp_path)
    copy = tmp_path / f"copy{damaged.suffix}"
    (shutil.copytree if damaged.is_dir() else shutil.copy)(damaged, copy)
    with pytest.raises(MalformedInput, match="stored bytes are damaged: found CRC-32"):
        diff_checkpoints(damaged, damaged, workers=workers)
    with pytest.raises(MalformedInput, match="stored bytes are damaged"):
        diff_checkpoints(damaged, copy, workers=workers)


@pytest.mark.parametrize("side", [0, 1])
def test_row86_damage_is_no_difference(run: Run, tmp_path: Path, side: int) -> None:
    """What would be told as one bit that differs is told as the damage that it is, whichever side it is on."""
    sound = save(base_tensors(), tmp_path / "sound", "safetensors", 2)
    pair = [sound, sound]
    pair[side] = whole(tmp_path)
    done = run("diff", *pair)
    assert (done.returncode, done.stdout) == (3, "")
    assert "pytorch_model.bin: tensor " in done.stderr
    assert "stored bytes are damaged: found CRC-32" in done.stderr
    assert "fetch the file again" in done.stderr


@pytest.mark.parametrize("role", ["base", "delta"])
def test_row86_damage_is_no_sign_of_another_base(run: Run, tmp_path: Path, role: str) -> None:
    """check-base, too, tells of damage; of a sample, as its help says, it cannot."""
    make_pair(tmp_path, "torch", 1)
    arguments = ["check-base", "--base", tmp_path / "base", "--delta", tmp_path / "delta"]
    sound = run(*arguments)
    assert "damaged" not in sound.stderr
    flip(tmp_path / role / "pytorch_model.bin")
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (3, "")
    assert "stored bytes are damaged: found CRC-32" in done.stderr
    assert "stored bytes" not in run(*arguments, "--sample", "0.5").stderr
    command = deltaweights.get_command(None, "check-base")  # type: ignore[arg-type]
    assert command is not None
    assert "not with --sample" in " ".join((command.help or "").split())


def test_row86_a_base_in_meta_layout_is_proved_whole(tmp_path: Path) -> None:
    """The checksums of parts that are put together are compared by check-base, too."""
    _, delta = make_pair(tmp_path, "torch", 1)
    with pytest.raises(MalformedInput, match=r"found CRC-32 \w+ in consolidated.01.pth"):
        check_base(in_meta_layout(tmp_path), delta)


def test_row86_sound_files_compare_as_before(tmp_path: Path) -> None:
    """With the checksums that torch records, in any layout, equal checkpoints are identical."""
    base = base_tensors()
    save_meta(base, tmp_path / "meta", 2)
    forms = [save(base, tmp_path / form, form, 2) for form in ("torch", "safetensors")]
    for one in forms:
        for other in (*forms, tmp_path / "meta"):
            assert diff_checkpoints(one, other).identical
