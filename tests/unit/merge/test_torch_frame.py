"""Tests of the torch files that are written: every reader finds every byte of any tensors.

Files are put together as the stream does it, piece by piece in the order of the file, and read by torch, by zipfile, by Info-ZIP's
unzip and by our own strict reader.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.checksums import Crc32, verify_checksum
from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.tensors import ContiguousSource, TensorSpec, WeightsFile, name_fault
from deltaweights.checkpoint.torch_format.pickled_types import TensorView
from deltaweights.checkpoint.torch_format.state_dict import read_state_dict
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.errors import MalformedInput
from deltaweights.merge.torch_frame import ALIGNMENT, TorchFrame
from deltaweights.merge.torch_pickle import state_dict_pickle

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}

SPECS = (
    TensorSpec("model.embed_tokens.weight", "F16", (7, 3)),
    TensorSpec("scalar", "BF16", ()),
    TensorSpec("no rows", "F32", (0, 4)),
    TensorSpec("no columns", "F64", (2, 0, 3)),
    TensorSpec("Gewicht größer 权重 🦙", "F64", (5,)),
    TensorSpec("five.axes", "F32", (2, 1, 3, 1, 2)),
    TensorSpec("long", "BF16", (70_000,)),
)


def contents_of(specs: Sequence[TensorSpec]) -> list[bytes]:
    """Return bytes for ``specs``, always the same ones, NaNs of all kinds among them."""
    return [hashlib.shake_128(spec.name.encode()).digest(spec.nbytes) for spec in specs]


def put_together(frame: TorchFrame, contents: Sequence[bytes]) -> bytes:
    """Return the file, made as the stream makes it: in its order, and with no CRC that is not known yet."""
    file = bytearray()
    crcs: list[int] = []
    for index, content in enumerate(contents):
        file += frame.bytes_before(index, crcs)
        assert len(file) == frame.offsets[index]
        file += content
        crcs.append(zlib.crc32(content))
    file += frame.bytes_before(len(contents), crcs)
    assert len(file) == frame.size
    return bytes(file)


def write(path: Path, specs: Sequence[TensorSpec]) -> Path:
    """Write a file of ``specs`` to ``path``."""
    path.write_bytes(put_together(TorchFrame(specs, path.stem), contents_of(specs)))
    return path


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor in row-major order."""
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


@contextmanager
def opened(path: Path) -> Iterator[WeightsFile]:
    """Open ``path`` with our own reader."""
    weights = open_torch_file(LocalFile(path))
    try:
        yield weights
    finally:
        weights.file.close()


@pytest.mark.parametrize(
    "how", [{"weights_only": True}, {"weights_only": False}, {"mmap": True}], ids=["weights-only", "pickle", "mmap"]
)
def test_torch_reads_every_byte(tmp_path: Path, how: dict[str, Any]) -> None:
    """Names, dtypes, shapes, strides and bytes are what torch loads, in their order, also of empty tensors and of scalars."""
    loaded = torch.load(write(tmp_path / "pytorch_model.bin", SPECS), **how)
    assert list(loaded) == [spec.name for spec in SPECS]
    for spec, content in zip(SPECS, contents_of(SPECS), strict=True):
        tensor = loaded[spec.name]
        assert type(tensor) is torch.Tensor
        assert (tensor.dtype, tuple(tensor.shape)) == (DTYPES[spec.dtype], spec.shape)
        assert tensor.stride() == torch.empty(spec.shape).stride()
        assert not tensor.requires_grad
        assert bytes_of(tensor) == content


@pytest.mark.parametrize("count", [2, 300, 999])
def test_the_pickle_is_torchs_own(tmp_path: Path, count: int) -> None:
    """``data.pkl`` is byte for byte what torch.save writes of the same dict; so are the small members, ids and formats apart."""
    specs = [*(TensorSpec(f"layers.{i}.weight", "F16", (i % 5, 300, 2)) for i in range(count)), *SPECS][-count:]
    torch.save({spec.name: torch.zeros(spec.shape, dtype=DTYPES[spec.dtype]) for spec in specs}, tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "a.bin") as theirs, zipfile.ZipFile(write(tmp_path / "b.bin", specs)) as ours:
        for member in ("data.pkl", "byteorder", "version"):
            assert ours.read(f"b/{member}") == theirs.read(f"a/{member}")
        names = {name.partition("/")[2] for name in ours.namelist()}
        assert names < {name.partition("/")[2] for name in theirs.namelist()}


HUGE = [TensorSpec("axes", "F16", (255, 256, 65_535, 65_536, 2**31 - 1)[:count]) for count in range(1, 4)]
HUGE += [TensorSpec(f"count {count}", "F16", (count,)) for count in (2**31 - 1, 2**31, 2**32, 2**39 - 1, 2**39, 2**61)]
HUGE += [TensorSpec(f"{i}", "BF16", (1,) * 64) for i in range(300)]


def test_the_pickle_of_huge_tensors() -> None:
    """Numbers of all lengths, 64 axes, and more values than a byte can number are written so that our own reader finds them."""
    views = read_state_dict(state_dict_pickle([TensorSpec(f"{i}", s.dtype, s.shape) for i, s in enumerate(HUGE)]), "")
    assert len(views) == len(HUGE)
    for spec, (key, view) in zip(HUGE, views.items(), strict=True):
        strides = torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device="meta").stride()
        assert view == TensorView(key, spec.nbytes, spec.dtype, 0, spec.shape, strides)


OPCODES_OF_1_13 = {
    "PROTO", "EMPTY_DICT", "MARK", "SETITEMS", "STOP", "BINUNICODE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "BININT", "BININT1", "BININT2", "LONG1", "NEWFALSE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE",
    "GLOBAL", "REDUCE", "BINPERSID",
}  # fmt: skip
"""Those that we need of those that torch 1.13's weights-only unpickler, the first, knows (torch/_weights_only_unpickler.py)."""


def test_the_pickle_asks_for_no_more_than_2023s_loaders_know() -> None:
    """Opcodes are those of torch 1.13's weights-only unpickler, and the names those of plain tensors."""
    opcodes = list(pickletools.genops(state_dict_pickle([*HUGE, *SPECS])))
    assert {opcode.name for opcode, _, _ in opcodes} == OPCODES_OF_1_13
    assert {argument for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"} == {
        "torch._utils _rebuild_tensor_v2",
        "collections OrderedDict",
        *(f"torch {kind}Storage" for kind in ("Half", "BFloat16", "Float", "Double")),
    }


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)
SPEC = st.builds(TensorSpec, NAMES, st.sampled_from(sorted(DTYPES)), SHAPES)


@given(specs=st.lists(SPEC, min_size=1, max_size=12, unique_by=lambda spec: spec.name))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tensors_come_back(tmp_path: Path, specs: list[TensorSpec]) -> None:
    """Whatever the names, dtypes and shapes: torch reads every byte, our reader also the places and CRCs, all aligned."""
    assert not any(name_fault(spec.name) for spec in specs)
    path, contents = write(tmp_path / "any.bin", specs), contents_of(specs)
    assert [bytes_of(tensor) for tensor in torch.load(path).values()] == contents
    offsets = TorchFrame(specs, "any").offsets
    with opened(path) as weights:
        assert [tensor.spec for tensor in weights.tensors.values()] == specs
        for tensor, offset, content in zip(weights.tensors.values(), offsets, contents, strict=True):
            assert isinstance(tensor.source, ContiguousSource)
            assert (tensor.source.offset, offset % ALIGNMENT) == (offset, 0)
            assert tensor.checksum == Crc32(zlib.crc32(content))
            verify_checksum(tensor)


def test_a_frame_is_a_value() -> None:
    """The bytes of a file depend on nothing but specs and name, and never change."""
    file = put_together(TorchFrame(SPECS, "pytorch_model-00001-of-00002"), contents_of(SPECS))
    assert file == put_together(TorchFrame(list(SPECS), "pytorch_model-00001-of-00002"), contents_of(SPECS))
    assert len(file) == 142_978
    assert hashlib.sha256(file).hexdigest() == "800b8c09dba146b8341431fe3d281fbfe6e55d7dfa7317be69e0fb970647aa23"


def test_members_are_few_and_come_in_the_order_of_the_tensors(tmp_path: Path) -> None:
    """One folder, named after the file, holds the pickle, what says byte order and version, and a storage for each tensor."""
    with zipfile.ZipFile(write(tmp_path / "pytorch_model.bin", SPECS)) as archive:
        small = ["data.pkl", "byteorder", "version"]
        assert archive.namelist() == [f"pytorch_model/{name}" for name in [*small, *(f"data/{i}" for i in range(7))]]
        assert archive.read("pytorch_model/version") == b"3\n"
        assert archive.read("pytorch_model/byteorder") == b"little"


def test_zip_tools_agree(tmp_path: Path) -> None:
    """Python's zipfile and Info-ZIP's unzip find nothing wrong, and find the damage of one byte of a tensor."""
    path = write(tmp_path / "pytorch_model.bin", SPECS)
    assert complaints(path) == []
    with path.open("r+b") as file:
        file.seek(TorchFrame(SPECS, "pytorch_model").offsets[4])
        file.write(bytes([contents_of(SPECS)[4][0] ^ 1]))
    assert len(complaints(path)) == 1 + (shutil.which("unzip") is not None)
    with opened(path) as weights, pytest.raises(MalformedInput) as caught:
        verify_checksum(weights.tensors[SPECS[4].name])
    crc = zlib.crc32(contents_of(SPECS)[4])
    error = caught.value
    assert (error.where, error.tensor) == (path, SPECS[4].name)
    assert f"{crc:08x}" in str(error.expected)


def complaints(path: Path) -> list[str]:
    """Return the complaints of the installed zip tools about a file."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    found = [] if bad is None else [f"zipfile: {bad}"]
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tqq", path], capture_output=True, text=True, check=False)
        if done.returncode or done.stderr or done.stdout:
            found.append(f"unzip: {done.returncode} {done.stdout}{done.stderr}")
    return found


# Past the sizes of the first zip.

SMALL = TensorSpec("small", "F32", (3,))


def write_sparse(path: Path, spec: TensorSpec, crc: int) -> TorchFrame:
    """Write a file of ``spec``, all zeros, as a hole, with a small tensor before and behind it."""
    specs = [SMALL, spec, TensorSpec("behind", "F32", (3,))]
    frame, content = TorchFrame(specs, path.stem), contents_of([SMALL])[0]
    crcs = [zlib.crc32(content), crc, zlib.crc32(content)]
    with path.open("wb") as file:
        end = 0
        for index, tensor in enumerate([*specs, None]):
            assert os.pwrite(file.fileno(), between := frame.bytes_before(index, crcs), end) == len(between)
            if tensor is not None:
                end = frame.offsets[index] + tensor.nbytes
                if tensor is not spec:
                    os.pwrite(file.fileno(), content, frame.offsets[index])
    assert path.stat().st_size == frame.size
    return frame


@pytest.mark.parametrize(
    "size", [2**32 - 2**10, 2**32 - 2, 2**32 - 1, 2**32, 2**33 + 6], ids=["offsets", "last", "mark", "first", "twice"]
)
def test_past_four_gigabytes(tmp_path: Path, size: int) -> None:
    """Storages of about 4 GiB and more, and what follows them, are found by torch, zipfile and our reader."""
    spec = TensorSpec("big", "U8", (size,))
    path = tmp_path / "big.bin"
    frame = write_sparse(path, spec, 12345)
    loaded = torch.load(path, mmap=True)
    assert loaded["big"].shape == (size,)
    assert not loaded["big"][-1000:].any()
    assert bytes_of(loaded["small"]) == bytes_of(loaded["behind"]) == contents_of([SMALL])[0]
    with zipfile.ZipFile(path) as archive:
        assert [archive.getinfo(f"big/data/{i}").file_size for i in range(3)] == [12, size, 12]
        assert archive.read("big/data/2") == contents_of([SMALL])[0]
    with opened(path) as weights:
        assert [t.spec.count for t in weights.tensors.values()] == [3, size, 3]
        assert weights.tensors["big"].checksum == Crc32(12345)
        verify_checksum(weights.tensors["behind"])
        assert [t.source.offset for t in weights.tensors.values()] == list(frame.offsets)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [2**31 - 512, 2**31 + 3])
def test_zip_tools_agree_past_four_gigabytes(tmp_path: Path, count: int) -> None:
    """Zipfile and unzip, which compare every CRC and find every record, have nothing against wide records either."""
    spec = TensorSpec("big", "F16", (count,))
    crc, piece = 0, bytes(2**20)
    for begin in range(0, spec.nbytes, len(piece)):
        crc = zlib.crc32(piece[: spec.nbytes - begin], crc)
    path = tmp_path / "big.bin"
    write_sparse(path, spec, crc)
    assert complaints(path) == []
    assert not torch.load(path)["big"].any()


@pytest.mark.slow
def test_more_members_than_the_first_zip_could_count(tmp_path: Path) -> None:
    """65,535 members and more are counted by the wide end record."""
    specs = [TensorSpec(f"{i}", "F16", (1,)) for i in range(65_536)]
    path = write(tmp_path / "many.bin", specs)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 65_539
    with opened(path) as weights:
        assert [tensor.spec for tensor in weights.tensors.values()] == specs
    loaded = torch.load(path)
    assert b"".join(map(bytes_of, loaded.values())) == b"".join(contents_of(specs))
