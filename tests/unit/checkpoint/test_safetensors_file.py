"""The reader of safetensors files: what the library writes is read byte for byte, everything else is refused by name.

Bad files are made byte by byte; ids begin with the row of the project's table of bad inputs.
"""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import load_file, save, save_file

from deltaweights.checkpoint import safetensors_file
from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.tensors import ITEM_SIZES, WeightsFile
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.util.limits import HEADER, MOST_TENSORS
from tests.support.errors import refused
from tests.support.limits import MOMENT
from tests.support.pairs import Tensors


def open_safetensors(path: Path) -> WeightsFile:
    return safetensors_file.open_safetensors(LocalFile(path))


# Writing files, right and wrong.


def framed(header: bytes, data: bytes = b"") -> bytes:
    """Return a file of ``header``, its true length before it, and ``data``."""
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: object = "F16", shape: object = (2,), offsets: object = (0, 4), **extra: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **extra}


def header(**entries: object) -> bytes:
    return json.dumps(entries).encode()


def one(data: bytes = bytes(4), **fields: Any) -> bytes:
    """Return a file with one tensor, ``w``, some of whose ``fields`` are wrong."""
    return framed(header(w=entry(**fields)), data)


def two(first: tuple[int, int], second: tuple[int, int], size: int) -> bytes:
    """Return a file with the tensors ``v`` and ``w`` of int8 at these places."""
    return framed(
        header(**{
            name: entry("I8", [end - begin], [begin, end])
            for name, (begin, end) in (("v", first), ("w", second))
        }),
        bytes(size),
    )  # fmt: skip


def raw(entries: str, data: bytes = bytes(4)) -> bytes:
    return framed(entries.encode(), data)


W = '{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return out.getvalue()


@dataclass(frozen=True)
class Bad:
    """A malformed file, and parts of the expected message."""

    content: bytes
    parts: tuple[str, ...]


def bad(content: bytes, *parts: str) -> Bad:
    return Bad(content, parts)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9976576152\n"
MANY = {str(number): entry("I8", [0], [0, 0]) for number in range(MOST_TENSORS + 1)}

BAD = {
    "row01-empty": bad(b"", "found an empty file", "download it again"),
    "row01-seven-bytes": bad(bytes(7), "found 7 bytes, expected at least 8"),
    "row02-header-past-the-end": bad(
        (17).to_bytes(8, "little") + b"{" + b" " * 15, "past the end", "a header of 17 bytes in a file of 24"
    ),
    "row02-header-length-without-header": bad((2).to_bytes(8, "little"), "a header of 2 bytes in a file of 8"),
    "row02-header-length-2-63": bad((2**63).to_bytes(8, "little") + b"{}", "found a header of 9223372036854775808 bytes"),
    "row04-not-utf-8": bad(framed(b'{"\xff":1}'), "header is not strict JSON", "not UTF-8 at byte 2"),
    "row04-utf-16": bad(framed("{}".encode("utf-16-le")), "header is not strict JSON"),
    "row04-byte-order-mark": bad(framed(b"\xef\xbb\xbf{}"), "starts with a byte-order mark"),
    "row04-empty-header": bad(framed(b""), "header is not strict JSON"),
    "row04-list": bad(framed(b"[]"), "header is not a JSON object"),
    "row04-number": bad(framed(b"12"), "header is not a JSON object"),
    "row04-space-first": bad(raw(f' {{"w":{W}}}'), "header is not a JSON object"),
    "row04-two-objects": bad(framed(b"{}{}"), "Extra data at character 2"),
    "row04-not-a-number": bad(one(shape=float("nan")), "NaN is not JSON"),
    "row04-nested": bad(framed(b'{"w":' + b"[" * 100_000), "nested too deeply"),
    "row04-many-objects": bad(framed(b'{"w":[' + b"{}," * 110_001 + b"0]}"), "more than 110,000 objects"),
    "row05-duplicate-key": bad(raw(f'{{"w":{W},"w":{W}}}'), 'duplicate key "w"'),
    "row05-duplicate-key-escaped": bad(raw(f'{{"w":{W},"\\u0077":{W}}}'), 'duplicate key "w"'),
    "row05-duplicate-field": bad(raw('{"w":' + W[:-1] + ',"shape":[2]}}'), 'duplicate key "shape"'),
    "row05-duplicate-metadata": bad(raw('{"__metadata__":{"a":"1","a":"2"}}', b""), 'duplicate key "a"'),
    "row06-overlap": bad(two((0, 4), (3, 7), 7), "tensor w", "overlaps", "found begin at 3, expected 4"),
    "row06-same-place": bad(two((0, 4), (0, 4), 4), "tensor w", "overlaps", "found begin at 0, expected 4"),
    "row06-inside": bad(two((0, 8), (2, 4), 8), "tensor w", "overlaps", "found begin at 2, expected 8"),
    "row06-empty-inside": bad(two((0, 8), (2, 2), 8), "tensor w", "overlaps", "found begin at 2, expected 8"),
    "row07-hole": bad(two((0, 4), (5, 9), 9), "tensor w", "hole", "found begin at 5, expected 4"),
    "row07-hole-first": bad(one(bytes(5), offsets=[1, 5]), "tensor w", "hole", "found begin at 1, expected 0"),
    "row07-empty-far-away": bad(two((0, 4), (9, 9), 4), "tensor w", "hole", "found begin at 9, expected 4"),
    "row08-begin-after-end": bad(one(offsets=[4, 0]), "tensor w", "begins after its end", "data_offsets [4, 0]"),
    "row08-past-the-end": bad(one(bytes(3)), "tensor w", "past the end of the file", "found 3 bytes of data"),
    "row08-far-past-the-end": bad(
        one(shape=[2**60], offsets=[0, 2**61]), "tensor w", "past the end of the file", "at least 2305843009213693952"
    ),
    "row09-trailing-byte": bad(one(bytes(5)), "bytes after the last tensor", "found 5 bytes of data, expected 4"),
    "row09-data-without-tensors": bad(framed(b"{}", b"x"), "bytes after the last tensor", "found 1 bytes"),
    "row10-one-byte-short": bad(two((0, 4), (4, 8), 7), "tensor w", "found 7 bytes of data, expected at least 8"),
    "row11-shape-too-long": bad(one(shape=[3]), "tensor w", "disagree", "found 4 bytes, expected 6 for F16 [3]"),
    "row11-shape-too-short": bad(one(shape=[1]), "tensor w", "disagree", "found 4 bytes, expected 2 for F16 [1]"),
    "row11-scalar": bad(one(shape=[]), "tensor w", "found 4 bytes, expected 2 for F16 []"),
    "row11-empty": bad(one(shape=[7, 0]), "tensor w", "found 4 bytes, expected 0 for F16 [7, 0]"),
    "row11-dtype": bad(one(dtype="F32"), "tensor w", "found 4 bytes, expected 8 for F32 [2]"),
    "row12-negative-size": bad(one(shape=[-1, -2]), "tensor w", "shape is not a list of sizes", "found [-1, -2]"),
    "row12-minus-zero": bad(
        one(b"", shape=[-0.0], offsets=[0, 0]), "tensor w", "shape is not a list of sizes"
    ),
    "row12-minus-zero-whole": bad(
        raw('{"w":{"dtype":"F16","shape":[-0],"data_offsets":[0,0]}}', b""), "tensor w", "shape is not a list of sizes"
    ),
    "row12-fraction": bad(one(shape=[2.0]), "tensor w", "shape is not a list of sizes", "found [2.0]"),
    "row12-true": bad(one(shape=[2, True]), "tensor w", "shape is not a list of sizes", "found [2, True]"),
    "row12-text": bad(one(shape=["2"]), "tensor w", "shape is not a list of sizes"),
    "row12-not-a-list": bad(one(shape=2), "tensor w", "shape is not a list of sizes", "found 2"),
    "row12-null": bad(one(shape=None), "tensor w", "shape is not a list of sizes"),
    "row12-2-64": bad(one(shape=[2**64 + 2]), "tensor w", "shape is not a list of sizes"),
    "row12-product-2-64": bad(one(shape=[2**32, 2**32, 2]), "tensor w", "shape is too large"),
    "row12-product-2-64-then-zero": bad(
        one(b"", shape=[2**32, 2**32, 0], offsets=[0, 0]), "tensor w", "shape is too large"
    ),
    "row12-wraps-to-4": bad(one(shape=[2**62 + 1, 2]), "tensor w", "shape is too large"),
    "row12-endless-number": bad(
        raw(f'{{"w":{{"dtype":"F16","shape":[{"9" * 5000}],"data_offsets":[0,4]}}}}'), "number with 5000 digits"
    ),
    "row12-many-axes": bad(one(shape=[1] * 65), "tensor w", "too many axes", "found 65, expected at most 64"),
    "row12-endless-axes": bad(one(shape=[2**63 - 1] * 1_000_000), "tensor w", "too many axes", "found 1000000"),
    "row12-negative-offset": bad(one(offsets=[-4, 0]), "tensor w", "data_offsets is not a pair", "found [-4, 0]"),
    "row12-fractional-offset": bad(one(offsets=[0, 4.5]), "tensor w", "data_offsets is not a pair"),
    "row12-offset-2-64": bad(one(offsets=[2**64, 2**64 + 4]), "tensor w", "data_offsets is not a pair"),
    "row12-one-offset": bad(one(offsets=[0]), "tensor w", "data_offsets is not a pair", "found [0]"),
    "row12-three-offsets": bad(one(offsets=[0, 4, 8]), "tensor w", "data_offsets is not a pair"),
    "row13-unknown-dtype": bad(one(dtype="F12"), "tensor w", "unknown dtype", "found F12, expected one of BOOL U8"),
    "row13-lower-case": bad(one(dtype="f16"), "tensor w", "unknown dtype", "found f16"),
    "row13-half-byte": bad(one(bytes(1), dtype="F4", offsets=[0, 1]), "tensor w", "unknown dtype", "found F4"),
    "row13-list": bad(one(dtype=["F16"]), "tensor w", "unknown dtype"),
    "row13-null": bad(one(dtype=None), "tensor w", "unknown dtype"),
    "row14-metadata-number": bad(framed(header(__metadata__={"format": 1})), "__metadata__ is not a map"),
    "row14-metadata-nested": bad(framed(header(__metadata__={"format": {}})), "__metadata__ is not a map"),
    "row14-metadata-list": bad(framed(header(__metadata__=["pt"])), "__metadata__ is not a map"),
    "row14-metadata-null": bad(framed(header(__metadata__=None)), "__metadata__ is not a map"),
    "row14-metadata-tensor": bad(framed(header(__metadata__=entry()), bytes(4)), "__metadata__ is not a map"),
    "row14-metadata-half-pair": bad(framed(b'{"__metadata__":{"a":"\\ud800"}}'), "__metadata__ is not a map"),
    "row15-extra-field": bad(
        one(strides=[1]), "tensor w", "found ['data_offsets', 'dtype', 'shape', 'strides'], expected dtype, shape"
    ),
    "row15-missing-field": bad(
        framed(header(w={"dtype": "F16", "shape": [2]}), bytes(4)), "tensor w", "found ['dtype', 'shape'], expected"
    ),
    "row15-other-case": bad(
        framed(header(w={"dtype": "F16", "Shape": [2], "data_offsets": [0, 4]}), bytes(4)), "tensor w", "wrong fields"
    ),
    "row15-entry-is-a-list": bad(framed(header(w=["F16", [2], [0, 4]]), bytes(4)), "tensor w", "found list"),
    "row15-entry-is-null": bad(framed(header(w=None)), "tensor w", "wrong fields", "found NoneType"),
    "row16-empty-name": bad(framed(header(**{"": entry()}), bytes(4)), "unusable tensor name", "an empty name"),
    "row16-nul": bad(framed(header(**{"a\0b": entry()}), bytes(4)), "unusable tensor name", r"a\x00b"),
    "row16-escape-sequence": bad(
        framed(header(**{"a\x1b[2J": entry()}), bytes(4)), "unusable tensor name", r"a\x1b[2J"
    ),
    "row16-c1-control": bad(framed(header(**{"a\x9b2J": entry()}), bytes(4)), "unusable tensor name", r"a\x9b2J"),
    "row16-new-line": bad(framed(header(**{"a\nb": entry()}), bytes(4)), "unusable tensor name", r"a\nb"),
    "row16-half-pair": bad(framed(header(**{"a\ud800": entry()}), bytes(4)), "unusable tensor name", r"a\ud800"),
    "row16-raw-control": bad(framed(b'{"a\x01":1}'), "header is not strict JSON", "Invalid control character"),
    "row16-endless-name": bad(
        framed(header(**{"a" * 1_000_000: entry()}), bytes(4)), "unusable tensor name: found a name of 1000000 characters"
    ),
    "row16-line-separator": bad(
        framed(header(**{"a\u2028b": entry(dtype="F12")}), bytes(4)), r"tensor a\u2028b: unknown dtype"
    ),
    "row17-too-many-tensors": bad(framed(header(**MANY)), "too many tensors", "found 100001, expected at most 100000"),
    "row18-git-lfs-pointer": bad(LFS, "found a git-LFS pointer", "run git lfs pull"),
    "row18-html": bad(b"<!DOCTYPE html>\n<html>" + b" " * 600, "found an HTML page", "download the file itself"),
    "row18-html-without-doctype": bad(b"\n<html><body>404</body></html>", "found an HTML page"),
    "row18-error-document": bad(b'{"error":"Repository not found"}', "found a text document", "read it, and download again"),
    "row18-zip": bad(zipped(), "found a zip archive", "name it .bin or .pth"),
    "row18-legacy-torch": bad(
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "not a safetensors file: found a file in torch's legacy format; if it holds tensors, name it .bin or .pth",
    ),
    "row18-gzip": bad(b"\x1f\x8b\x08" + bytes(9), "found a gzip file", "unpack it first"),
}  # fmt: skip


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.sampled(18)
@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_refuses(tmp_path: Path, case: Bad) -> None:
    """A file that breaks a rule is refused at once, in one printable line with file, tensor and facts."""
    path = written(tmp_path, case.content)
    began = time.process_time()
    with pytest.raises(MalformedInput) as caught:
        open_safetensors(path)
    message = str(caught.value)
    assert time.process_time() - began < MOMENT
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 1000
    assert [part for part in case.parts if part not in message] == [], message


@pytest.mark.parametrize("length", [HEADER.size + 1, 100_000_001], ids=["row03-over-ours", "row03-over-the-format's"])
def test_refuses_long_header(tmp_path: Path, length: int) -> None:
    """A header longer than any checkpoint needs is refused by its length, though the file has as many bytes."""
    path = written(tmp_path, length.to_bytes(8, "little") + b"{")
    with path.open("r+b") as file:
        file.truncate(8 + length)
    with refused(MalformedInput, where=path, found=f"{length} bytes", expected=f"at most {HEADER.size}"):
        open_safetensors(path)


def test_refusal_closes_the_file(tmp_path: Path) -> None:
    """A refused file is closed."""
    path = written(tmp_path, one(bytes(3)))
    before = set(Path("/dev/fd").iterdir())
    with pytest.raises(MalformedInput):
        open_safetensors(path)
    assert set(Path("/dev/fd").iterdir()) <= before


# What must pass.


def bytes_of(weights: WeightsFile) -> dict[str, tuple[str, list[int], bytes]]:
    """Return dtype, shape and bytes of every tensor, read through our reader."""
    found = {}
    for name, tensor in weights.tensors.items():
        data = bytearray(tensor.spec.nbytes)
        tensor.source.read_into(memoryview(data), 0)
        assert tensor.spec.name == name
        found[name] = tensor.spec.dtype, list(tensor.spec.shape), bytes(data)
    return found


def by_library(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Return the same, read by the safetensors library."""
    return {name: (item["dtype"], item["shape"], bytes(item["data"])) for name, item in _items(content)}


def _items(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    return list(deserialize(content))  # type: ignore[no-untyped-call]


def noise(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = torch.empty(shape, dtype=dtype).nbytes
    return torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8).view(dtype).reshape(shape)


DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip


def test_every_dtype_is_tried() -> None:
    """The table of dtypes above lacks only the one that the safetensors library cannot write from torch."""
    assert ITEM_SIZES.keys() - DTYPES.keys() == {"F8_E8M0"}


SOUND: dict[str, Tensors] = {
    **{f"dtype-{name}": {"w": noise((3, 5), dtype), "v": noise((2,), dtype)} for name, dtype in DTYPES.items()},
    "all-dtypes": {f"w{number}": noise((7,), dtype) for number, dtype in enumerate(DTYPES.values())},
    "scalar": {"w": torch.tensor(2.5)},
    "empty": {"a": torch.empty(0), "w": torch.ones(3), "z": torch.empty(0, dtype=torch.int64)},
    "only-empty": {"a": torch.empty(0)},
    "zero-size-shapes": {"a": torch.empty(4, 0, 3), "b": torch.empty(0, 0), "w": torch.ones(1, 1, 1)},
    "no-tensors": {},
    "names": {"a b": torch.ones(1), "ключ": torch.ones(2), "x/../y": torch.ones(3), 'q"\\': torch.ones(4)},
}


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "a": "ü\n"}], ids=["plain", "metadata"])
@pytest.mark.parametrize("tensors", SOUND.values(), ids=SOUND)
def test_reads_what_the_library_writes(tmp_path: Path, tensors: Tensors, metadata: dict[str, str] | None) -> None:
    """Every dtype, shape and name that the safetensors library writes is read with equal names, dtypes, shapes and bytes."""
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata)
    assert by_library(path.read_bytes()) == bytes_of(open_safetensors(path))
    assert load_file(path).keys() == tensors.keys()


HAND_MADE = {
    "padded": framed(header(w=entry()) + b" " * 7, b"\1\2\3\4"),
    "padded-with-other-space": framed(header(w=entry()) + b"\t\r\n ", b"\1\2\3\4"),
    "unaligned": framed(b'{"w":{"dtype":"F64","shape":[1],"data_offsets":[0,8]} }', bytes(range(8))),
    "last-first": framed(header(w=entry(offsets=[4, 8]), v=entry(offsets=[0, 4])), bytes(range(8))),
    "fields-in-any-order": framed(b'{"w":{"data_offsets":[0,4],"shape":[2],"dtype":"F16"}}', bytes(range(4))),
    "metadata-last": framed(header(w=entry(), __metadata__={"format": "pt"}), bytes(range(4))),
    "metadata-empty": framed(header(__metadata__={}, w=entry()), bytes(range(4))),
    "escaped-name": framed(b'{"\\u0077\\/\\ud83d\\ude00":' + W.encode() + b"}", bytes(range(4))),
    "dtype-F8_E8M0": framed(header(w=entry("F8_E8M0", [4])), b"\x7f\x80\xff\0"),
    "huge-but-empty": framed(header(w=entry("F64", [2**59, 0], [0, 0]))),
    "empty-at-both-ends": framed(
        header(a=entry("I8", [0], [0, 0]), w=entry(), z=entry("I8", [0], [4, 4])), bytes(range(4))
    ),
    "empty-object": framed(b"{}"),
    "gzip's-magic-as-length": framed(header(w=entry()).ljust(0x8B1F), bytes(range(4))),
}


@pytest.mark.parametrize("content", HAND_MADE.values(), ids=HAND_MADE)
def test_reads_what_the_format_allows(tmp_path: Path, content: bytes) -> None:
    """An unusual file that the format allows is read as the safetensors library reads it."""
    assert by_library(content) == bytes_of(open_safetensors(written(tmp_path, content)))


def test_reads_parts(tmp_path: Path) -> None:
    """Any range of a tensor is read relative to the tensor's own offset."""
    content = framed(header(v=entry("U8", [5], [0, 5]), w=entry("U8", [5], [5, 10])), bytes(range(10)))
    tensor = open_safetensors(written(tmp_path, content)).tensors["w"]
    out = bytearray(3)
    tensor.source.read_into(memoryview(out), 1)
    assert bytes([6, 7, 8]) == bytes(out)


def test_header_digest(tmp_path: Path) -> None:
    """The header digest covers every byte of the header, including padding, and no byte of the weights."""
    contents = [
        framed(header(w=entry()), b"\0\0\0\0"),
        framed(header(w=entry()), b"\1\2\3\4"),
        framed(header(w=entry()) + b" ", b"\0\0\0\0"),
        framed(header(w=entry("BF16")), b"\0\0\0\0"),
    ]
    digests = [open_safetensors(written(tmp_path, content)).header_digest for content in contents]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_gone(tmp_path: Path) -> None:
    """A missing file is an input error (5), not a malformed file."""
    with pytest.raises(InputOutputError, match="cannot open: No such file"):
        open_safetensors(tmp_path / "model.safetensors")


# Properties.

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def judge(path: Path, content: bytes) -> bool:
    """Check that the content is refused properly, or read as the library reads it; return whether it was read."""
    path.write_bytes(content)
    try:
        weights = open_safetensors(path)
    except MalformedInput as error:
        assert str(error).isprintable()  # noqa: PT017  (acceptance is no failure here)
        return False
    try:
        assert by_library(content) == bytes_of(weights)
    finally:
        weights.file.close()
    return True


def sizes() -> st.SearchStrategy[object]:
    return st.one_of(
        st.integers(0, 4), st.integers(-2, 2**65), st.sampled_from([0.0, 1.5, True, None, "1", 2**63, 2**64])
    )


def near_entries() -> st.SearchStrategy[object]:
    """Draw header entries that are right or nearly right."""
    lists = st.lists(sizes(), max_size=3)
    return st.one_of(
        st.fixed_dictionaries(
            {"dtype": st.sampled_from([*ITEM_SIZES, "F4", "x", 3]), "shape": lists, "data_offsets": lists}
        ),
        st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), lists, max_size=4),
        sizes(),
    )


@QUICK
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    """Any bytes are read or refused; no other exception occurs."""
    judge(tmp_path / "x.safetensors", content)


@QUICK
@given(
    entries=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), near_entries(), max_size=3),
    data=st.binary(max_size=12),
    ascii_only=st.booleans(),
)
def test_near_headers(tmp_path: Path, entries: dict[str, object], data: bytes, ascii_only: bool) -> None:
    """Any header of nearly the right form is refused, or read as the library reads it."""
    text = json.dumps(entries, ensure_ascii=ascii_only)
    judge(tmp_path / "x.safetensors", framed(text.encode(errors="surrogatepass"), data))


GOOD = save(
    {"w": torch.arange(6, dtype=torch.float16).reshape(2, 3), "v": torch.ones(3), "e": torch.empty(0, 2)},
    {"format": "pt"},
)
HEADER_END = 8 + struct.unpack("<Q", GOOD[:8])[0]
GOOD_HEADER, GOOD_DATA = GOOD[8:HEADER_END].decode(), GOOD[HEADER_END:]

JSON_PIECES = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "0",
    "-0",
    "1e0",
    "2.0",
    " ",
    "\\u0077",
    "\\ud800",
    "null",
    "true",
    "\t",
]


@QUICK
@given(
    at=st.integers(0, len(GOOD_HEADER)),
    cut=st.integers(0, 3),
    piece=st.sampled_from(JSON_PIECES) | st.text(max_size=2),
    data_change=st.integers(-2, 2),
)
def test_mutated_headers(tmp_path: Path, at: int, cut: int, piece: str, data_change: int) -> None:
    """A sound file with a piece of its header replaced is refused, or read as the library reads it."""
    text = GOOD_HEADER[:at] + piece + GOOD_HEADER[at + cut :]
    data = GOOD_DATA[: len(GOOD_DATA) + data_change] if data_change < 0 else GOOD_DATA + bytes(data_change)
    judge(tmp_path / "x.safetensors", framed(text.encode(errors="surrogatepass"), data))


def test_every_bit_of_the_header(tmp_path: Path) -> None:
    """With any one bit of length or header flipped, a file is refused or read as the library reads it; most are refused."""
    read = 0
    for bit in range(8 * HEADER_END):
        content = bytearray(GOOD)
        content[bit // 8] ^= 1 << bit % 8
        read += judge(tmp_path / "x.safetensors", bytes(content))
    assert 0 < read < HEADER_END  # names and metadata have no redundancy


def test_every_length(tmp_path: Path) -> None:
    """A sound file cut at any byte is refused."""
    assert [judge(tmp_path / "x.safetensors", GOOD[:length]) for length in range(len(GOOD) + 1)] == [
        *[False] * len(GOOD),
        True,
    ]


def test_stricter_than_the_library(tmp_path: Path) -> None:
    """Duplicate keys are refused, while the library takes the last one."""
    assert by_library(BAD["row05-duplicate-key-escaped"].content).keys() == {"w"}
    with pytest.raises(SafetensorError):
        by_library(BAD["row06-overlap"].content)
    assert not judge(tmp_path / "x.safetensors", BAD["row05-duplicate-key-escaped"].content)
