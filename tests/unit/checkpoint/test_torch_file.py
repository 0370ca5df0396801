"""The reader of torch's zip files: what torch writes is read byte for byte, everything else is refused by name.

Good files are written by ``torch.save``; bad ones are good ones taken apart and put together again with one thing wrong.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.checksums import Crc32
from deltaweights.checkpoint.file_type import detect_file_type
from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.tensors import ContiguousSource, LazyTensor, TensorSpec, WeightsFile
from deltaweights.checkpoint.torch_format import state_dict, torch_file
from deltaweights.checkpoint.torch_format.pickled_types import TensorView
from deltaweights.checkpoint.torch_format.strided import view_source
from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.util.limits import MOST_TENSORS
from tests.support.errors import facts, refused
from tests.support.zips import Part, join, parts_of, saved


def open_torch_file(path: Path) -> WeightsFile:
    return torch_file.open_torch_file(LocalFile(path))


# Writing archives, right and wrong.


WEIGHT = torch.arange(12, dtype=torch.float16).reshape(3, 4)
GOOD = parts_of(saved({"w": WEIGHT}))
AT = {part.name.removeprefix("archive/"): index for index, part in enumerate(GOOD)}


def changed(name: str, **fields: Any) -> list[Part]:
    """Return the good parts with ``fields`` of one changed."""
    parts = list(GOOD)
    parts[AT[name]] = replace(parts[AT[name]], **fields)
    return parts


def with_pickle(data: bytes) -> bytes:
    return join(changed("data.pkl", data=data))


def written(tmp_path: Path, content: bytes, name: str = "x.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refusal(tmp_path: Path, content: bytes) -> str:
    """Check that the content is refused with its path and a remedy; return the tensor, problem and facts of the error."""
    path = written(tmp_path, content)
    with refused(MalformedInput, where=path) as caught:
        open_torch_file(path)
    assert caught.value.remedy
    assert str(caught.value).isprintable()
    return facts(caught.value)


# Writing pickles.


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", kind: str = "torch\nHalfStorage", count: int = 12, device: str = "cpu") -> bytes:
    return b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text(device) + number(count) + b"tQ"


def tensor(
    offset: int = 0, shape: tuple[int, ...] = (3, 4), strides: tuple[int, ...] = (4, 1), extras: bytes = b"", **of: Any
) -> bytes:
    arguments = storage(**of) + number(offset) + numbers(shape) + numbers(strides) + b"\x89}" + extras
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def table(*items: tuple[bytes, bytes], end: bytes = b".") -> bytes:
    return b"\x80\x02}(" + b"".join(key + value for key, value in items) + b"u" + end


def holding(value: bytes) -> bytes:
    """Return the pickle of a dict with one sound tensor and, under ``evil``, ``value``."""
    return table((text("w"), tensor()), (text("evil"), value))


PICKLES: dict[str, tuple[bytes, str]] = {
    "row19-global": (
        holding(b"cbuiltins\neval\n"),
        "tensor evil: the pickle names a global that no dict of tensors needs",
    ),
    "row19-torch-function": (holding(b"ctorch.hub\nload\n"), "found torch.hub.load"),
    "row19-global-escaped": (holding(b"c\x1b[31m\nx\n"), r"found \\x1b[31m.x"),
    "row19-global-without-end": (holding(b"c" + b"a" * 300), "a global's name is too long: expected at most 256"),
    "row19-opcode-new-object": (holding(b")\x81"), r"found opcode b'\x81', an object"),
    "row19-opcode-instance": (holding(b"(ios\nsystem\n"), "found opcode b'i', an object"),
    "row19-opcode-string-global": (holding(text("os") + text("system") + b"\x93"), r"found opcode b'\x93'"),
    "row19-opcode-extension": (holding(b"\x82\x01"), r"found opcode b'\x82'"),
    "row19-call-of-a-dict": (holding(b"})R"), "calls something that is not a function: found a dict"),
    "row19-call-of-a-dtype": (holding(b"ctorch\nfloat16\n)R"), "calls something that is not a function"),
    "row19-call-arguments": (holding(b"ccollections\nOrderedDict\n}\x85R"), "wrong number of arguments: found 1"),
    "row19-attributes": (holding(b"}}" + text("x") + b"K\x01sb"), "sets attributes"),
    "row19-parameter-of-dict": (holding(b"ctorch._utils\n_rebuild_parameter\n}\x88}\x87R"), "a Parameter of something"),
    "row19-parameter-state": (
        holding(b"ctorch._utils\n_rebuild_parameter_with_state\n(" + tensor() + b"\x88}}" + text("x") + b"K\x01stR"),
        "tensor evil: a tensor with hooks, attributes",
    ),
    "row19-conjugation": (holding(tensor(extras=b"}" + text("conj") + b"\x88s")), "pending conjugation"),
    "row19-requires-grad": (holding(tensor().replace(b"\x89}", b"K\x01}")), "requires_grad is not true or false"),
    "row20-protocol-3": (b"\x80\x03" + holding(tensor())[2:], r"found b'\x80\x03', expected b'\x80\x02'"),
    "row20-protocol-0": (pickle.dumps({}, 0), "the pickle's protocol is not 2"),
    "row20-protocol-4": (pickle.dumps({}, 4), "the pickle's protocol is not 2"),
    "row20-protocol-again": (holding(b"\x80\x02"), r"found opcode b'\x80'"),
    "row20-after-stop": (holding(tensor()) + b"..", "bytes after the end of the pickle"),
    "row20-no-stop": (table((text("w"), tensor()), end=b""), "the pickle is cut short"),
    "row20-empty": (b"", "the pickle is cut short"),
    "row20-leftovers": (b"\x80\x02N" + holding(tensor())[2:], "leaves values behind"),
    "row20-empty-stack": (b"\x80\x02.", "takes a value from an empty stack"),
    "row20-no-mark": (b"\x80\x02t.", "a mark that is not there"),
    "row21-memo-unset": (holding(b"h\x09"), "memo index that was never set: found 9, expected less than 0"),
    "row21-memo-far": (
        holding(b"Nr\xff\xff\xff\x7f"),
        "memo index out of bounds: found 2147483647, expected at most 0",
    ),
    "row21-long-number": (holding(b"\x8a\x09" + b"\xff" * 9), "a number is too long: found 9 bytes"),
    "row21-long-string": (holding(b"X\xff\xff\xff\xff"), "a string is too long: found 4294967295 bytes"),
    "row21-cut-string": (holding(b"X\x00\x01\0\0abc"), "the pickle is cut short"),
    "row21-marks": (holding(b"(" * 100), "nested too deeply"),
    "row21-tuple": (holding(b"(" + b"N" * 65 + b"t"), "a tuple is too long: found 65 items, expected at most 64"),
    "row21-axes": (holding(tensor(shape=(1,) * 65, strides=(1,) * 65)), "a tuple is too long"),
    "row21-stack": (holding(b"N" * 300_000), "stack grows too high"),
    "row21-doubling-tuples": (holding(b"Nq\0" + b"h\0\x86q\0" * 10_000), "found a tuple, expected a tensor"),
    "row21-doubling-dicts": (
        holding((b"}" + text("a")) * 10_000 + b"}q\0" + (b"s" + text("b") + b"h\0sq\0") * 10_000),
        "found a dict, expected a tensor",
    ),
    "row21-dict-in-itself": (b"\x80\x02}q\0" + text("a") + b"h\0s.", "tensor a: a value that is not a tensor"),
    "row21-nested-tuples": (holding(b")" + b"\x85" * 100_000), "found a tuple, expected a tensor"),
    "row21-steps": (holding(b"N" + b"q\0" * 1_100_000), "does too much for its tensors"),
    "row21-tuples": (holding(b")" + b"\x85" * 800_000), "builds too much for its tensors"),
    "row21-strings": (
        holding((b"X\xff\x0f\0\0" + "😀".ljust(4092).encode()) * 2100),
        "builds too much for its tensors",
    ),
    "row21-names": (
        table(*((text(str(index)), b"N") for index in range(MOST_TENSORS + 1))),
        "too many tensors: found 100001, expected at most 100000",
    ),
    "row22-count": (holding(tensor(count=11, shape=(1,), strides=(1,))), "two records of one storage disagree"),
    "row22-type": (
        holding(tensor(kind="torch\nShortStorage")),
        "tensor evil: two records of one storage disagree",
    ),
    "row22-negative-count": (holding(tensor(key="1", count=-1)), "invalid storage record"),
    "row22-bool-count": (holding(storage()[:-2].replace(number(12), b"\x88") + b"tQ"), "invalid storage record"),
    "row22-record": (holding(b"K\0Q"), "invalid storage record: found a number"),
    "row23-past-the-end": (holding(tensor(offset=1)), "tensor evil: a view past the end of its storage"),
    "row23-shape-past-the-end": (holding(tensor(shape=(4, 4))), "expected 12 elements in storage 0"),
    "row23-strides-past-the-end": (holding(tensor(shape=(3, 4), strides=(5, 1))), "a view past the end of its storage"),
    "row23-negative-offset": (holding(tensor(offset=-1)), "not whole numbers from 0 on"),
    "row23-negative-stride": (holding(tensor(offset=11, strides=(-4, -1))), "not whole numbers from 0 on"),
    "row23-negative-size": (holding(tensor(shape=(-3, -4))), "not whole numbers from 0 on"),
    "row23-strides-for-another-shape": (holding(tensor(strides=(1,))), "one stride for each size"),
    "row23-bool-offset": (holding(tensor().replace(b"tQ" + number(0), b"tQ\x89")), "not whole numbers from 0 on"),
    "row24-expanded": (holding(tensor(shape=(9, 12), strides=(0, 1))), "holds one element twice"),
    "row24-overlapping": (holding(tensor(shape=(3, 4), strides=(3, 1))), "holds one element twice"),
    "row24-same-strides": (holding(tensor(shape=(3, 3), strides=(1, 1))), "holds one element twice"),
    "row25-tensor": (holding(tensor(shape=(2**40, 2**40), strides=(2**40, 1))), "huge tensor"),
    "row25-storage": (holding(tensor(key="1", count=2**62)), "huge storage: found 4611686018427387904 elements"),
    "row26-missing": (holding(tensor(key="1")), "tensor evil: storage 1 is missing from the archive"),
    "row26-way-up": (holding(tensor(key="../data/0")), "tensor evil: unsafe storage key: found '../data/0'"),
    "row26-empty-key": (holding(tensor(key="")), "unsafe storage key"),
    "row30-key": (table((text("w"), tensor()), (text("w"), tensor())), "duplicate key in a dict"),
    "row30-key-later": (
        table((text("w"), tensor()), end=text("w") + tensor() + b"s."),
        "duplicate key in a dict: found w",
    ),
    "row35-quantized": (holding(b"ctorch._utils\n_rebuild_qtensor\n"), "tensor evil: a quantized tensor"),
    "row35-quantized-storage": (holding(tensor(kind="torch\nQInt8Storage")), "tensor evil: a quantized tensor"),
    "row35-meta-device": (holding(tensor(key="1", device="meta")), "a meta tensor, which has no data"),
    "row35-number": (holding(b"K\x03"), "tensor evil: a value that is not a tensor"),
    "row35-none": (holding(b"N"), "found None, expected a tensor"),
    "row35-storage": (holding(storage()), "found a storage, expected a tensor"),
    "row35-float": (holding(b"G" + bytes(8)), "found opcode b'G', a float"),
    "row35-list": (holding(b"]"), "found opcode b']', a list"),
    "row35-dict": (holding(b"}" + text("w") + tensor() + b"s"), "tensor evil: a value that is not a tensor"),
    "row35-bare-tensor": (b"\x80\x02" + tensor() + b".", "not a dict of tensors"),
    "row35-number-as-name": (table((number(1), tensor())), "a key that is not a string: found a number"),
    "row35-tuple-as-name": (
        table((b"Nq\0" + b"h\0\x86q\0" * 50, tensor())),
        "a key that is not a string: found a tuple",
    ),
    "row35-empty-name": (table((text(""), tensor())), "unusable tensor name"),
    "row35-control-name": (table((text("a\0\x1b[2J"), tensor())), r"tensor a\x00\x1b[2J: unusable tensor name"),
    "row35-surrogate-name": (table((b"X\3\0\0\0\xed\xa0\x80", tensor())), "a string is not UTF-8"),
    "row35-complex128": (holding(tensor(kind="torch\nComplexDoubleStorage")), "a complex128 tensor"),
    "row35-untyped-v2": (holding(tensor(key="1", kind="torch.storage\nUntypedStorage")), "without a typed storage"),
}


@pytest.mark.sampled(28)
@pytest.mark.parametrize(("data", "message"), PICKLES.values(), ids=PICKLES)
def test_refuses_pickle(tmp_path: Path, data: bytes, message: str) -> None:
    """A pickle of anything but a dict of tensors is refused with the reason."""
    assert message.replace(r"\\x", r"\x") in refusal(tmp_path, with_pickle(data))


def test_row19_runs_nothing(tmp_path: Path) -> None:
    """A pickle that would run a command when unpickled is refused, and the command is not run."""
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {mark}",)

    data = pickle.dumps({"w": Evil()}, 2)
    message = refusal(tmp_path, with_pickle(data))
    assert "tensor w: the pickle names a global that no dict of tensors needs" in message
    assert not mark.exists()
    pickle.loads(data)  # noqa: S301  the proof that it would have
    assert mark.exists()


def test_row21_counts_views_that_are_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building more tensors than any checkpoint has is refused, whether or not they end up in the dict."""
    monkeypatch.setattr(state_dict, "MOST_TENSORS", 5)
    values = [(text("w"), b"(" + tensor() * 6 + b"t")]
    assert "too many tensors" in refusal(tmp_path, with_pickle(table(*values)))


def deflated() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for part in GOOD:
            target.writestr(part.name, part.data)
    return out.getvalue()


def commented() -> bytes:
    out = io.BytesIO(join(GOOD))
    with zipfile.ZipFile(out, "a") as target:
        target.comment = b"hello"
    return out.getvalue()


def patched(content: bytes, at: int, value: bytes) -> bytes:
    at %= len(content)
    return content[:at] + value + content[at + len(value) :]


SOUND = join(GOOD)
WEIGHT_CRC = zlib.crc32(GOOD[AT["data/0"]].data)
TWICE = [*GOOD, replace(GOOD[AT["data/0"]], data=bytes(24))]
INSIDE = {"offset": SOUND.index(b"PK\3\4", 4)}  # where the second member stands

ARCHIVES: dict[str, tuple[bytes, str]] = {
    "row22-storage-size": (
        join(changed("data/0", data=bytes(22))),
        "tensor w: storage 0 does not have the size in its record: found 22 bytes, expected 24",
    ),
    "row26-missing": (join([p for p in GOOD if "data/0" not in p.name]), "tensor w: storage 0 is missing"),
    "row26-unused": (
        join([*GOOD, Part("archive/data/7", b"1234")]),
        "storages that no tensor uses: found archive/data/7",
    ),
    "row26-unknown-member": (join([*GOOD, Part("archive/extra", b"")]), "a member that torch.save does not write"),
    "row27-deflated": (deflated(), "is compressed (torch.load(mmap=True) would take the compressed bytes for weights)"),
    "row27-method": (join(changed("data/0", method=12)), "found method 12, expected stored"),
    "row28-pickle": (join(changed("data.pkl", crc=1)), "member archive/data.pkl is damaged: found CRC"),
    "row28-byteorder": (join(changed("byteorder", crc=1)), "member archive/byteorder is damaged"),
    "row29-empty": (b"", "found an empty file"),
    "row29-cut": (SOUND[:-1], "truncated: the zip has no end record"),
    "row29-half": (SOUND[: len(SOUND) // 2], "truncated: the zip has no end record"),
    "row29-git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "found a git-LFS pointer",
    ),
    "row29-html": (b"\n<!DOCTYPE html><html>", "found an HTML page"),
    "row29-safetensors": (b"\x08" + bytes(7) + b"{}      ", "found a safetensors file"),
    "row29-noise": (bytes(range(100, 200)), "not a file that torch.save wrote"),
    "row30-member": (join(TWICE), "duplicate member in the zip: found archive/data/0"),
    "row30-member-same-place": (
        join([*GOOD[:-1], replace(GOOD[0], name=GOOD[-1].name, central={"offset": 0})]),
        "overlaps what follows it",
    ),
    "row31-overlap": (join(changed(".format_version", central={"packed": 99, "size": 99})), "overlaps what follows it"),
    "row31-false-place": (join(changed("byteorder", central={"offset": 5})), "overlaps what follows it"),
    "row31-no-header": (patched(SOUND, INSIDE["offset"], b"PK\3\5"), "no local header of zip member"),
    "row31-shared-place": (join(changed("byteorder", central=INSIDE)), "overlaps what follows it"),
    "row31-past-the-end": (join(changed("version", central={"offset": 0x7FFFFFFF})), "belong to nothing"),
    "row31-local-name": (join(changed("data/0", local={"name": b"archive/data/1"})), "local and central name of a zip"),
    "row31-local-crc": (join(changed("data/0", local={"crc": 5})), "local and central header of zip member"),
    "row31-local-size": (join(changed("data/0", local={"size": 5})), "local and central header of zip member"),
    "row31-local-flags": (join(changed("data/0", local={"flags": 0x0800})), "local and central header of zip member"),
    "row31-local-method": (join(changed("data/0", local={"method": 8})), "local and central header of zip member"),
    "row31-sizes": (join(changed("data/0", central={"packed": 22})), "impossible sizes of zip member"),
    "row31-descriptor": (
        join(changed("data/0", descriptor=struct.pack("<4s3L", b"PK\7\x08", WEIGHT_CRC, 24, 25))),
        "data descriptor and central header of zip member archive/data/0 differ",
    ),
    "row31-descriptor-missing": (join(changed("data/0", descriptor=b"")), "that belong to nothing: found 0"),
    "row31-count": (join(GOOD, end={"count": 10, "count_here": 10}), "the zip's member counts disagree"),
    "row31-counts": (join(GOOD, end={"count": 10}), "the zip's member counts disagree: found"),
    "row31-directory-place": (join(GOOD, end={"offset": 0}), "belong to nothing: found central directory at byte"),
    "row31-directory-short": (join(GOOD, end={"size": 46}), "belong to nothing: found central directory at byte"),
    "row31-directory-long": (join(GOOD, end={"size": 2**20}), "is not where the end record says"),
    "row31-huge-directory": (join(GOOD, end={"size": 2**27}), "oversized zip central directory: found 134217728 bytes"),
    "row31-many": (join(GOOD, end={"count": 2**16 - 1, "count_here": 2**16 - 1}), "member counts disagree"),
    "row31-end-records": (patched(SOUND, -22 + 8, b"\1\0\1\0"), "end record and its zip64 end record disagree"),
    "row31-zip64-record": (patched(SOUND, -22 - 20 - 56, b"PK\6\5"), "invalid zip64 end record"),
    "row31-zip64-marks": (join(changed("data/0", central={"size": 0xFFFFFFFF})), "invalid zip64 field"),
    "row31-disks": (join(GOOD, end={"disk": 1, "start_disk": 1}), "part of a multi-disk zip"),
    "row31-disks-zip64": (patched(SOUND, -22 - 4, b"\2"), "part of a multi-disk zip"),
    "row31-flags": (join(changed("data/0", flags=0x0828)), "flags that torch.save does not write"),
    "row32-two": (join([*GOOD, Part("other/data.pkl", GOOD[0].data)]), "more than one root folder in the archive"),
    "row32-nested": (join([replace(p, name=f"top/{p.name}") for p in GOOD]), "nested root folders in the archive"),
    "row32-none": (join([replace(p, name=p.name.replace("archive/", "")) for p in GOOD]), "more than one root folder"),
    "row32-no-pickle": (join(GOOD[1:]), "no data.pkl in the archive"),
    "row32-no-members": (join([]), "an archive without members"),
    "row33-before": (b"#!/bin/sh\n" + SOUND, "10 bytes before the archive"),
    "row33-before-adjusted": (
        join([replace(GOOD[0], before=b"junk"), *GOOD[1:]]),
        "bytes before the archive: found first",
    ),
    "row33-between": (join(changed("data/0", before=b"junk")), "that belong to nothing: found 20"),
    "row33-before-directory": (join(GOOD, before_directory=b"junk"), "that belong to nothing: found 20"),
    "row33-after": (SOUND + b"junk", "bytes after the archive: found 4 bytes after the end record"),
    "row33-zeros-after": (SOUND + bytes(30), "bytes after the archive: found 30 bytes"),
    "row33-comment": (
        commented(),
        "bytes after the archive: found 5 bytes after the end record, expected none, nor a comment",
    ),
    "row34-encrypted": (join(changed("data/0", flags=0x0809)), "zip member archive/data/0 is encrypted"),
    "row34-torchscript": (
        join([*GOOD, Part("archive/code/m.py", b"")]),
        "a TorchScript program: found archive/code/m.py",
    ),
    "row34-constants": (join([*GOOD, Part("archive/constants.pkl", b"")]), "a TorchScript program"),
    "row34-big-endian": (
        join(changed("byteorder", data=b"big")),
        "not little-endian: found b'big', expected b'little'",
    ),
    "row34-long-small-member": (join(changed("version", data=b"3" * 2000)), "archive/version is too long"),
    "row44-way-up": (join([*GOOD, Part("archive/../x", b"")]), "unsafe name of a zip member: found archive/../x"),
    "row44-absolute": (join([*GOOD, Part("/etc/x", b"")]), "unsafe name of a zip member"),
    "row44-backslash": (join([*GOOD, Part("archive\\x", b"")]), "unsafe name of a zip member"),
    "row44-control": (
        join([*GOOD, Part("archive/\x1b[2J", b"")]),
        r"unsafe name of a zip member: found archive/\x1b[2J",
    ),
    "row44-not-utf8": (join([*GOOD, Part("", b"", raw_name=b"archive/\xff")]), "is not UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_refuses_archive(tmp_path: Path, content: bytes, message: str) -> None:
    """An archive with one fault is refused with that fault."""
    assert message in refusal(tmp_path, content)


UNSUPPORTED: dict[str, tuple[Callable[[], object], str]] = {
    "row35-sparse": (lambda: {"w": torch.eye(3).to_sparse()}, "tensor w: a sparse tensor"),
    "row35-meta": (lambda: {"w": torch.empty(3, device="meta")}, "tensor w: a meta tensor, which has no data"),
    "row35-module": (lambda: torch.nn.Linear(2, 2), "found torch.nn.modules.linear.Linear"),
    "row35-attributes": (lambda: {"w": attributed()}, "tensor w: a tensor subclass, or a tensor with attributes"),
    "row35-conjugated": (lambda: {"w": torch.zeros(2, dtype=torch.complex64).conj()}, "tensor w: a tensor with hooks"),
    "row35-epoch": (lambda: {"w": WEIGHT, "epoch": 3}, "tensor epoch: a value that is not a tensor"),
    "row35-training": (lambda: {"model": {"w": WEIGHT}}, "tensor model: a value that is not a tensor"),
    "row24-expand": (lambda: {"w": torch.ones(3, 1).expand(3, 4)}, "tensor w: a view that holds one element twice"),
}


def attributed() -> torch.Tensor:
    value = torch.zeros(2)
    value.note = "x"  # type: ignore[attr-defined]
    return value


@pytest.mark.parametrize(("make", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_refuses_what_torch_saves_and_no_model_needs(tmp_path: Path, make: Callable[[], object], message: str) -> None:
    """Files that torch writes but that are not a dict of plain tensors are refused with kind and tensor."""
    assert message in refusal(tmp_path, saved(make()))


def test_row28_all_zero_checksums_are_said(tmp_path: Path) -> None:
    """An archive without checksums is read with a note, and its tensors have none."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = written(tmp_path, saved({"w": WEIGHT, "s": torch.zeros(4)[1:]}))
    finally:
        torch.serialization.set_crc32_options(before)
    weights = open_torch_file(path)
    assert weights.notes == (torch_file.NO_CHECKSUMS,)
    assert [tensor.checksum for tensor in weights.tensors.values()] == [None, None]
    assert weights.extra_checksums == ()
    weights.file.close()


def test_row29_missing_file(tmp_path: Path) -> None:
    """A missing file is an input error, not a malformed one."""
    with pytest.raises(InputOutputError, match="cannot open: No such file"):
        open_torch_file(tmp_path / "none.bin")


def test_row61_cut_while_open(tmp_path: Path) -> None:
    """Reading from a file that was truncated after it was opened is an input error."""
    path = written(tmp_path, SOUND)
    weights = open_torch_file(path)
    os.truncate(path, 100)
    with pytest.raises(InputOutputError, match="cut short while being read"):
        content(weights.tensors["w"])
    weights.file.close()


def test_errors_close_the_file(tmp_path: Path) -> None:
    """A refused file leaves no descriptor open."""
    path = written(tmp_path, SOUND[:-1])
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(MalformedInput):
            open_torch_file(path)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


# What must pass.


def content(tensor: LazyTensor) -> bytes:
    out = bytearray(tensor.spec.nbytes)
    tensor.source.read_into(memoryview(out), 0)
    return bytes(out)


def raw(tensor: torch.Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.copy_(tensor.detach().flatten())
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def same(path: Path) -> WeightsFile:
    """Return the open file, having checked it against ``torch.load``: names, shapes, bytes, and checksums where claimed."""
    weights = open_torch_file(path)
    expected = torch.load(path, weights_only=True)
    assert list(weights.tensors) == list(expected)
    for name, tensor in weights.tensors.items():
        assert tensor.spec.name == name
        assert tensor.spec.shape == tuple(expected[name].shape)
        assert content(tensor) == raw(expected[name])
        assert tensor.checksum in {None, Crc32(zlib.crc32(content(tensor)))}
        assert tensor.file == path.name
    for storage in weights.extra_checksums:
        out = bytearray(storage.spec.nbytes)
        storage.source.read_into(memoryview(out), 0)
        assert storage.checksum == Crc32(zlib.crc32(out))
    return weights


def with_metadata() -> dict[str, torch.Tensor]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state: dict[str, torch.Tensor] = model.state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    return state


BIG = torch.arange(60, dtype=torch.int32).reshape(5, 12)

GOOD_STATES: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "row36-tied": lambda: {"a": WEIGHT, "b": WEIGHT, "c": WEIGHT.view(4, 3)},
    "row36-transposed": lambda: {"t": WEIGHT.t()},
    "row36-sliced": lambda: {"rows": BIG[1:3], "columns": BIG[:, 2:7], "steps": BIG[::2, ::3], "cell": BIG[4, 11]},
    "row36-permuted": lambda: {"p": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1)},
    "row36-parameter": lambda: {"p": torch.nn.Parameter(torch.ones(2, 2)), "f": torch.nn.Parameter(torch.ones(1), False)},
    "row36-metadata": with_metadata,
    "row36-scalar": lambda: {"s": torch.tensor(2.5), "one": torch.ones(1, 1, 1)},
    "row36-empty": lambda: {"e": torch.empty(0), "e2": torch.empty(3, 0, 2), "slice": BIG[5:]},
    "row36-no-tensors": dict,
    "row36-mixed": lambda: {
        str(dtype): torch.ones(3).to(dtype)
        for dtype in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
            torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.uint32, torch.uint64,
            torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
        )
    },
    "row36-names": lambda: {"café 模型": WEIGHT, "a.b/c": WEIGHT},
    "row36-many": lambda: {f"layers.{index}.weight": torch.full((2,), index) for index in range(2100)},
}  # fmt: skip


@pytest.mark.parametrize("make", GOOD_STATES.values(), ids=GOOD_STATES)
def test_reads_what_torch_wrote(tmp_path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> None:
    """Every state dict of plain tensors is read as torch reads it, byte for byte."""
    path = tmp_path / "x.bin"
    torch.save(make(), path)
    same(path).file.close()


def old_torch() -> bytes:
    return join([p for p in GOOD if p.name.rpartition("/")[2] in {"data.pkl", "0", "version"}])


def repacked(*, force_zip64: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for part in GOOD:
            with target.open(zipfile.ZipInfo(part.name), "w", force_zip64=force_zip64) as member:
                member.write(part.data)
    return out.getvalue()


def v1_tensor() -> bytes:
    arguments = storage() + number(0) + numbers((3, 4)) + numbers((4, 1))
    return with_pickle(table((text("w"), b"ctorch._utils\n_rebuild_tensor\n(" + arguments + b"tR")))


WIDE = struct.pack("<4sL2Q", b"PK\7\x08", WEIGHT_CRC, 24, 24)

GOOD_FILES: dict[str, bytes] = {
    "row36-rebuilt-by-this-test": SOUND,
    "row36-torch-1": old_torch(),
    "row36-repacked": repacked(),
    "row36-zip64-repacked": repacked(force_zip64=True),
    "row36-zip64-descriptor": join(changed("data/0", descriptor=WIDE)),
    "row36-renamed-root": join([replace(p, name=p.name.replace("archive", "pytorch_model-00001")) for p in GOOD]),
    "row36-other-order": join(GOOD[::-1]),
    "row36-first-rebuild-function": v1_tensor(),
}


@pytest.mark.parametrize("archive", GOOD_FILES.values(), ids=GOOD_FILES)
def test_reads_what_others_wrote(tmp_path: Path, archive: bytes) -> None:
    """Archives of older torch versions, and repacked ones without compression, are read as torch reads them."""
    weights = same(written(tmp_path, archive, "another-name.pth"))
    assert weights.container == "torch"
    assert [tensor.checksum for tensor in weights.tensors.values()] == [Crc32(WEIGHT_CRC)]
    weights.file.close()


def test_row36_past_four_gigabytes(tmp_path: Path) -> None:
    """Members longer than 4 GiB, and members beyond that offset, are found by zip64 fields as torch 2.13 writes them."""
    size, tail = 2**32 + 100, torch.arange(7)
    data = table(
        (text("a"), tensor(kind="torch\nByteStorage", count=size, shape=(size,), strides=(1,))),
        (text("b"), tensor(key="1", kind="torch\nLongStorage", count=7, shape=(7,), strides=(1,))),
    )
    path = tmp_path / "big.bin"
    directory = b""
    with path.open("wb") as out:

        def member(name: bytes, content: bytes | None, nbytes: int, crc: int, sizes: bytes, place: bytes) -> None:
            nonlocal directory
            local = sizes[:8] + bytes(len(sizes[8:])) + place  # miniz knows the packed size only afterwards
            extra = struct.pack("<2H", 1, len(local)) + local if local else b""
            wide = struct.pack("<2H", 1, len(sizes + place)) + sizes + place if local else b""
            marks = [0xFFFFFFFF if sizes else nbytes] * 2 + [0xFFFFFFFF if place else out.tell()]
            fields = (0, 0, 0x808, 0, 0, 0, crc, *marks[:2], len(name), len(wide), 0, 0, 0, 0, marks[2])
            directory += b"PK\1\2" + struct.pack("<6H3L5H2L", *fields) + name + wide
            out.write(
                b"PK\3\4" + struct.pack("<5H3L2H", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra
            )
            if content is None:
                out.seek(nbytes, os.SEEK_CUR)  # a hole: no disk is used
            else:
                out.write(content)
            out.write(struct.pack("<4sL2Q" if local else "<4s3L", b"PK\7\x08", crc, nbytes, nbytes))

        member(b"x/data.pkl", data, len(data), zlib.crc32(data), b"", b"")
        member(b"x/data/0", None, size, 12345, struct.pack("<2Q", size, size), b"")
        member(b"x/data/1", raw(tail), 56, zlib.crc32(raw(tail)), b"", struct.pack("<Q", out.tell()))
        begin, end = out.tell(), out.tell() + len(directory)
        out.write(directory + b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 0, 45, 0, 0, 3, 3, len(directory), begin))
        out.write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
        out.write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 3, 3, len(directory), 0xFFFFFFFF, 0))
    weights = open_torch_file(path)
    assert content(weights.tensors["b"]) == raw(tail)
    assert weights.tensors["a"].spec.shape == (size,)
    assert weights.tensors["a"].checksum == Crc32(12345)
    weights.file.close()


def test_checksums_stand_where_they_can_be_proven(tmp_path: Path) -> None:
    """A tensor that is its whole storage in order has the CRC; storages without such a tensor are in ``extra_checksums``."""
    cut, turned = torch.arange(8.0), torch.arange(6.0).reshape(2, 3)
    path = written(tmp_path, saved({"w": WEIGHT, "again": WEIGHT, "cut": cut[2:], "turned": turned.t()}))
    weights = same(path)
    checksums = {name: tensor.checksum for name, tensor in weights.tensors.items()}
    whole = Crc32(zlib.crc32(raw(WEIGHT)))
    assert checksums == {"w": whole, "again": whole, "cut": None, "turned": None}
    loose = [(storage.spec.name, storage.spec.nbytes, storage.checksum) for storage in weights.extra_checksums]
    assert loose == [
        ("archive/data/1", 32, Crc32(zlib.crc32(raw(cut)))),
        ("archive/data/2", 24, Crc32(zlib.crc32(raw(turned)))),
    ]
    weights.file.close()


def test_ties_are_told_from_views(tmp_path: Path) -> None:
    """Two names of one tensor have equal storage; a transpose of the same square storage does not."""
    square = torch.arange(9.0).reshape(3, 3)
    weights = same(written(tmp_path, saved({"a": square, "b": square, "t": square.t()})))
    a, b, t = (weights.tensors[name] for name in "abt")
    assert a.storage == b.storage
    assert a.storage != t.storage
    assert a.spec.shape == t.spec.shape
    weights.file.close()


def test_header_digest_changes_with_records_only(tmp_path: Path) -> None:
    """The header digest covers central directory and pickle: a flipped weight does not change it, another name does."""
    flipped = patched(SOUND, SOUND.index(raw(WEIGHT)), b"\xff")
    contents = [SOUND, flipped, join(parts_of(saved({"v": WEIGHT})))]
    digests = []
    for index, archive in enumerate(contents):
        weights = open_torch_file(written(tmp_path, archive, f"{index}.bin"))
        digests.append(weights.header_digest)
        weights.file.close()
    assert digests[0] == digests[1] != digests[2]
    assert digests[0].startswith("blake3:")


@pytest.mark.parametrize(
    "head", [b"\x1f\x8b" + bytes(6) + b'{"a":', b"{" + bytes(7) + b"{", b" {" + bytes(6) + b"{", b"xyz"]
)
def test_sniff_leaves_safetensors_alone(head: bytes) -> None:
    """The length of a safetensors header may spell another format's magic number, and is not mistaken for it."""
    assert detect_file_type(head) is None


@st.composite
def views_with_ranges(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Draw a storage, a view of it (sliced in steps, axes permuted), and a range of the view's elements."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]))
    count = int(torch.Size(sizes).numel())
    stored = torch.arange(count).to(dtype)
    view = stored.reshape(sizes)
    for axis, size in enumerate(sizes):
        first = draw(st.integers(0, size - 1))
        view = view.narrow(axis, first, size - first)[
            (slice(None),) * axis + (slice(None, None, draw(st.integers(1, 3))),)
        ]
    view = view.permute(draw(st.permutations(range(len(sizes)))))
    start = draw(st.integers(0, view.numel()))
    return stored, view, start, draw(st.integers(start, view.numel()))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=views_with_ranges())
def test_row36_any_range_of_any_view(tmp_path: Path, case: tuple[torch.Tensor, torch.Tensor, int, int]) -> None:
    """Any range of any transposed and sliced view equals torch's contiguous copy, also where the range cuts rows."""
    stored, view, start, stop = case
    file = LocalFile(written(tmp_path, raw(stored)))
    size = view.element_size()
    source = view_source(file, int(view.storage_offset()) * size, size, tuple(view.shape), tuple(view.stride()))
    out = bytearray((stop - start) * size)
    source.read_into(memoryview(out), start * size)
    assert bytes(out) == raw(view)[start * size : stop * size]
    assert isinstance(source, ContiguousSource) or not view.is_contiguous()
    file.close()


FUZZED = saved(OrderedDict(w=WEIGHT, t=torch.arange(6).reshape(2, 3).t(), e=torch.empty(0)))


def read_back(weights: WeightsFile) -> dict[str, tuple[TensorSpec, bytes]]:
    """Return all tensors; an empty dict when a checksum shows that the weights are damaged."""
    for storage in weights.extra_checksums:
        out = bytearray(storage.spec.nbytes)
        storage.source.read_into(memoryview(out), 0)
        if Crc32(zlib.crc32(out)) != storage.checksum:
            return {}
    found = {name: (tensor.spec, content(tensor)) for name, tensor in weights.tensors.items()}
    damaged = any(
        tensor.checksum not in {None, Crc32(zlib.crc32(found[name][1]))} for name, tensor in weights.tensors.items()
    )
    return {} if damaged else found


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(FUZZED) - 1), mask=st.integers(1, 255))
def test_any_changed_byte_is_noticed_or_means_nothing(tmp_path: Path, at: int, mask: int) -> None:
    """After any one byte is changed, the file is refused, a checksum fails, or the tensors are the same."""
    whole = open_torch_file(written(tmp_path, FUZZED, "whole.bin"))
    expected = read_back(whole)
    whole.file.close()
    assert list(expected) == ["w", "t", "e"]
    path = written(tmp_path, patched(FUZZED, at, bytes([FUZZED[at] ^ mask])))
    try:
        weights = open_torch_file(path)
    except DeltaweightsError:
        return
    assert read_back(weights) in ({}, expected)
    weights.file.close()


@settings(max_examples=300, deadline=None)
@given(
    seed=st.sampled_from([GOOD[0].data, *(data for data, _ in PICKLES.values() if len(data) < 5000)]),
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=4),
)
def test_any_edited_pickle_is_refused_or_read(seed: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    """A pickle with pieces removed and inserted gives a dict of tensors or a refusal, and no other exception."""
    data = seed
    for at, length, piece in edits:
        begin = at % (len(data) + 1)
        data = data[:begin] + piece + data[begin + length :]
    try:
        views = state_dict.read_state_dict(data, "x.bin")
    except MalformedInput:
        return
    assert {type(view) for view in views.values()} <= {TensorView}
