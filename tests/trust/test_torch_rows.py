"""Rows 19 to 43 of the table: torch's zip files and its legacy files.

The files are made in ``tests/unit/checkpoint/test_torch_file.py`` and ``test_torch_legacy.py``,
which test many more; here some of each row go through a merge.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save
from tests.support.zips import saved
from tests.trust.harness import Case, Outcome, case, hold, merging, run_command, with_file
from tests.unit.checkpoint.test_torch_file import ARCHIVES, PICKLES, UNSUPPORTED, with_pickle
from tests.unit.checkpoint.test_torch_legacy import FILES

SHARD = "pytorch_model-00001-of-00002.bin"

PICKLE_ROWS = """
    row19-global row19-global-escaped row19-opcode-new-object row19-call-of-a-dict row20-protocol-4 row20-after-stop
    row21-memo-far row21-long-string row21-marks row21-tuple row21-doubling-tuples row21-steps row22-count row22-negative-count
    row23-past-the-end row23-negative-offset row23-negative-stride row24-overlapping row25-tensor row25-storage row26-way-up
    row30-key row35-quantized row35-number row35-control-name
"""
ARCHIVE_ROWS = """
    row22-storage-size row26-missing row27-deflated row28-pickle row29-cut row29-half row30-member row31-overlap row31-local-name
    row31-huge-directory row32-two row32-nested row33-before row33-after row34-encrypted row34-torchscript row34-big-endian
    row44-control
"""
LEGACY_ROWS = """
    row37-first row37-last row38-unknown row38-twice row39-fewer row39-negative row40-cut row40-trailing row41-magic
    row42-also-a-tar row43-record row43-both
"""


def made_by_torch(row: str) -> Case:
    """Return the case of a file that torch writes gladly, but that is no dict of plain tensors."""
    make, part = UNSUPPORTED[row]
    return case(with_file(SHARD, saved(make()), "torch"), 3, SHARD, part)


def flip_a_weight(_: Path, delta: Path) -> None:
    """Change one bit in the middle of the largest member of a shard."""
    with zipfile.ZipFile(delta / SHARD) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        weights = archive.read(largest)
    data = bytearray((delta / SHARD).read_bytes())
    data[data.index(weights) + len(weights) // 2] ^= 1
    (delta / SHARD).write_bytes(data)


def tar() -> bytes:
    """Return a tar archive, as torch wrote before its legacy format."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


CASES: dict[str, Case] = {
    **{
        row: case(
            with_file(SHARD, with_pickle(PICKLES[row][0]), "torch"), 3, SHARD, PICKLES[row][1].replace(r"\\x", r"\x")
        )
        for row in PICKLE_ROWS.split()
    },
    **{
        row: case(with_file(SHARD, ARCHIVES[row][0], "torch"), 3, SHARD, ARCHIVES[row][1])
        for row in ARCHIVE_ROWS.split()
    },
    **{row: made_by_torch(row) for row in ("row24-expand", "row35-sparse", "row35-meta", "row35-module")},
    **{
        row: case(with_file(SHARD, bytes(FILES[row][0]), "torch"), 3, SHARD, FILES[row][1])
        for row in LEGACY_ROWS.split()
    },
    "row28-a-weight": case(
        merging(flip_a_weight, "torch"),
        3,
        SHARD,
        "tensor ",
        "stored bytes are damaged: found CRC-32 ",
        "fetch the file",
    ),
    "row42-tar": case(with_file(SHARD, tar(), "torch"), 3, SHARD, "found a tar archive"),
}


@pytest.mark.sampled(12)
@pytest.mark.trust
@pytest.mark.parametrize("subject", CASES.values(), ids=CASES.keys())
def test_a_bad_torch_file_is_refused(subject: Case, tmp_path: Path, normal: float) -> None:
    """A bad torch file ends the run with one line and exit code 3, and nothing is touched."""
    hold(subject, tmp_path, normal)


# What must pass.


@contextmanager
def no_checksums() -> Iterator[None]:
    """Have torch write no CRCs."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def merged(folder: Path, base: Tensors, delta: Tensors, change: Callable[[Path], object]) -> Outcome:
    """Merge the pair once ``change`` was made to the delta's folder; assert that it verifies and is what torch computes."""
    save(base, folder / "base", "torch", 2)
    save(delta, folder / "delta", "torch", 1)
    change(folder / "delta")
    paths: list[str | Path] = ["--base", folder / "base", "--delta", folder / "delta", "--target", folder / "out"]
    outcome = run_command(["apply", *paths, "--allow-unproved-base"])
    assert outcome.code == 0, outcome.err
    plain = {name: tensor.detach() for name, tensor in delta.items()}
    assert same_bits(load(folder / "out"), reference(base, plain))
    assert run_command(["verify", folder / "out"]).code == 0
    return outcome


def transposed(tensors: Tensors) -> Tensors:
    """Return the same values, the matrices stored by columns."""
    return {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}


def parameters(tensors: Tensors) -> Tensors:
    """Return the tensors as Parameters."""
    return {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}


def sliced(tensors: Tensors) -> Tensors:
    """Return views into larger storages."""
    return {name: torch.cat([tensor, tensor])[: tensor.shape[0]] for name, tensor in tensors.items()}


SHAPES: dict[str, Callable[[Tensors], Tensors]] = {
    "row36-transposed": transposed,
    "row36-parameters": parameters,
    "row36-views": sliced,
}


@pytest.mark.trust
@pytest.mark.parametrize("view", SHAPES.values(), ids=SHAPES)
def test_what_torch_may_store_is_merged(tmp_path: Path, view: Callable[[Tensors], Tensors]) -> None:
    """Transposed views, Parameters and parts of larger storages are merged as torch reads them, and the result verifies."""
    base = base_tensors()
    merged(tmp_path, base, view(delta_tensors(base)), lambda _: None)


@pytest.mark.trust
def test_row36_tied_weights(tmp_path: Path) -> None:
    """Two names of one storage are both merged, each with its own base."""
    base = base_tensors()
    delta = delta_tensors(base)
    delta["lm_head.weight"] = delta["model.embed_tokens.weight"]
    merged(tmp_path, base, delta, lambda _: None)


def zip64(folder: Path) -> None:
    """Write the archive again, all sizes in zip64 fields."""
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as source:
        parts = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name, data in parts.items():
            with target.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(data)


def renamed(folder: Path) -> None:
    """Give the file the name of a shard, so that the folder in the archive is named otherwise."""
    path, name = folder / "pytorch_model.bin", "pytorch_model-00001-of-00001.bin"
    tensors = torch.load(path, weights_only=True)
    path.rename(folder / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def legacy(folder: Path) -> None:
    """Write the file in the legacy format."""
    path = folder / "pytorch_model.bin"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)


REPACKED: dict[str, Callable[[Path], None]] = {"row36-zip64": zip64, "row36-renamed": renamed, "row36-legacy": legacy}


@pytest.mark.trust
@pytest.mark.parametrize("change", REPACKED.values(), ids=REPACKED)
def test_what_others_pack_is_merged(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Archives with zip64 fields, renamed files and legacy files are merged, and the result verifies."""
    base = base_tensors()
    merged(tmp_path, base, delta_tensors(base), change)


@pytest.mark.trust
def test_row28_no_checksums(tmp_path: Path) -> None:
    """An archive in which all CRCs are zero is merged, and it is said that none is recorded."""

    def without(folder: Path) -> None:
        tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        shutil.rmtree(folder)
        with no_checksums():
            save(tensors, folder, "torch", 1)

    base = base_tensors()
    outcome = merged(tmp_path, base, delta_tensors(base), without)
    assert "pytorch_model.bin: records no checksums" in outcome.err
