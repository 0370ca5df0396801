"""Zip archives: by Python's zipfile, or written field by field with one thing wrong; and helpers that open them."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.tensors import LazyTensor, WeightsFile
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.checkpoint.zipped_folder.directory import (
    open_archive,
)
from deltaweights.errors import DeltaweightsError
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder


@dataclass(frozen=True)
class Part:
    """One member to write; ``local`` and ``central`` override fields of its two headers, ``crc`` the true checksum."""

    name: str
    data: bytes
    crc: int | None = None
    flags: int = 0x0808
    method: int = 0
    before: bytes = b""
    raw_name: bytes | None = None
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    descriptor: bytes | None = None


LOCAL = ("needed", "flags", "method", "time", "date", "crc", "packed", "size", "name_length", "extra_length")


CENTRAL = ("made", *LOCAL, "comment_length", "disk", "internal", "external", "offset")


END = ("disk", "start_disk", "count_here", "count", "size", "offset")


def join(parts: list[Part], *, end: dict[str, int] | None = None, before_directory: bytes = b"") -> bytes:
    """Write an archive as torch does: descriptors, a zip64 end record, no comment."""
    out, directory = io.BytesIO(), io.BytesIO()
    for part in parts:
        out.write(part.before)
        raw = part.name.encode() if part.raw_name is None else part.raw_name
        crc = zlib.crc32(part.data) if part.crc is None else part.crc
        size = len(part.data)
        common = {"flags": part.flags, "method": part.method, "name_length": len(raw)}
        late = bool(part.flags & 8)
        now = {} if late else {"crc": crc, "packed": size, "size": size}
        true = {"crc": crc, "packed": size, "size": size, "offset": out.tell()}
        local, central = common | now | part.local, common | true | part.central
        local_name, central_name = local.pop("name", raw), central.pop("name", raw)
        directory.write(b"PK\1\2" + struct.pack("<6H3L5H2L", *(central.get(key, 0) for key in CENTRAL)) + central_name)
        out.write(b"PK\3\4" + struct.pack("<5H3L2H", *(local.get(key, 0) for key in LOCAL)) + local_name + part.data)
        if late:
            out.write(
                part.descriptor if part.descriptor is not None else struct.pack("<4s3L", b"PK\7\x08", crc, size, size)
            )
    out.write(before_directory)
    begin, length = out.tell(), directory.tell()
    out.write(directory.getvalue())
    wide = {"count_here": len(parts), "count": len(parts), "size": length, "offset": begin} | (end or {})
    values = [wide.get(key, 0) for key in END]
    at = out.tell()
    out.write(b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 0, 45, *values))
    out.write(b"PK\6\7" + struct.pack("<LQL", 0, at, 1))
    out.write(b"PK\5\6" + struct.pack("<4H2LH", *values, 0))
    return out.getvalue()


def saved(state: object) -> bytes:
    """Return what ``torch.save`` writes; its root folder is ``archive``."""
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def parts_of(archive: bytes) -> list[Part]:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        return [Part(info.filename, source.read(info)) for info in source.infolist()]


ROOT = "llava_delta"


MODEL, CONFIG = f"{ROOT}/pytorch_model.bin", f"{ROOT}/config.json"


class Pipe(io.RawIOBase):
    """Takes bytes and cannot go back, as a pipe."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.written += data
        return len(data)


def zipped(files: Mapping[str, bytes], *, level: int | None = None, zip64: bool = False, comment: bytes = b"") -> bytes:
    """Return an archive by Python's zipfile; ``level`` None stores. A name that ends in a slash is a folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", zipfile.ZIP_STORED if level is None else zipfile.ZIP_DEFLATED, True, level
    ) as target:
        for name, content in files.items():
            if name.endswith("/"):
                target.mkdir(name.removesuffix("/")) if hasattr(target, "mkdir") else target.writestr(name, b"")
                continue
            info = zipfile.ZipInfo(name)
            info.compress_type = target.compression
            info._compresslevel = level  # type: ignore[attr-defined]
            with target.open(info, "w", force_zip64=zip64) as member:
                member.write(content)
        target.comment = comment
    return out.getvalue()


def streamed(files: Mapping[str, bytes], *, zip64: bool = False, level: int | None = 6) -> bytes:
    """Return an archive that was written to a pipe: sizes and checksums follow the content in data descriptors."""
    out = Pipe()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if level is None else zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            with target.open(name, "w", force_zip64=zip64) as member:
                member.write(content)
    assert b"PK\7\x08" in out.written
    return bytes(out.written)


def files_of(folder: Path, root: str = f"{ROOT}/") -> dict[str, bytes]:
    return {f"{root}{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def mac(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files with what Finder adds: folders, a store of window places, and a shadow of each file."""
    shadows = {f"__MACOSX/{name.replace('/', '/._')}": b"\0\5\26\7" + bytes(50) for name in files}
    return {f"{ROOT}/": b"", f"{ROOT}/.DS_Store": b"\0\0\0\1Bud1", **files, "__MACOSX/": b"", **shadows}


STORED: dict[str, Callable[[Path], bytes]] = {
    "stored": lambda folder: zipped(files_of(folder)),
    "stored-zip64": lambda folder: zipped(files_of(folder), zip64=True),
    "stored-streamed": lambda folder: streamed(files_of(folder), level=None),
    "stored-with-folders": lambda folder: zipped({f"{ROOT}/": b"", f"{ROOT}/logs/": b"", **files_of(folder)}),
    "stored-at-the-top": lambda folder: zipped(files_of(folder, "")),
    "stored-deep": lambda folder: zipped({"README.md": b"# x", **files_of(folder, "data/checkpoints/7b/")}),
    "stored-mac": lambda folder: zipped(mac(files_of(folder))),
    "stored-commented": lambda folder: zipped(files_of(folder), comment=b"made on a Tuesday"),
    "stored-but-small-files": lambda folder: mixed(folder, lambda name: name.endswith(".json")),
}


DEFLATED: dict[str, Callable[[Path], bytes]] = {
    "level-1": lambda folder: zipped(files_of(folder), level=1),
    "level-9": lambda folder: zipped(files_of(folder), level=9),
    "level-0": lambda folder: zipped(files_of(folder), level=0),
    "zip64": lambda folder: zipped(files_of(folder), level=6, zip64=True),
    "streamed": lambda folder: streamed(files_of(folder)),
    "streamed-zip64": lambda folder: streamed(files_of(folder), zip64=True),
    "mac": lambda folder: zipped(mac(files_of(folder)), level=6),
    "commented": lambda folder: zipped(files_of(folder), level=6, comment=b"x" * 65535),
    "one-of-two-shards": lambda folder: mixed(folder, lambda name: "00002-of" in name),
}


def mixed(folder: Path, deflate: Callable[[str], bool]) -> bytes:
    """Return an archive in which only the files are deflated for which ``deflate`` says so."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for name, content in files_of(folder).items():
            target.writestr(name, content, zipfile.ZIP_DEFLATED if deflate(name) else zipfile.ZIP_STORED)
    return out.getvalue()


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def part(name: str, content: bytes = b"{}", *, packed: bytes | None = None, method: int = 8, **fields: Any) -> Part:
    """Return a member to write whose two headers say the same; ``fields`` override either or, as in ``Part``, one of them."""
    if packed is None:
        packed = deflated(content) if method == 8 else content
    said = {"size": len(content), "made": 3 << 8, "external": (stat.S_IFREG | 0o644) << 16}
    local, central = said | fields.pop("local", {}), said | fields.pop("central", {})
    return Part(
        name, packed, fields.pop("crc", zlib.crc32(content)), fields.pop("flags", 0), method, local=local, central=central, **fields
    )  # fmt: skip


WEIGHTS = bytes(range(256)) * 40


NOISE = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(32))


SOUND = [part(CONFIG), part(MODEL, WEIGHTS)]


def changed(**fields: Any) -> bytes:
    """Return a sound archive but for ``fields`` of the weights."""
    return join([part(CONFIG), part(MODEL, **{"content": WEIGHTS, **fields})])


def beside(name: str, content: bytes = b"{}", **fields: Any) -> bytes:
    """Return a sound archive with one more member."""
    return join([*SOUND, part(name, content, **fields)])


def with_extra(kind: int, data: bytes, *, local: bool = False) -> bytes:
    """Return a sound archive whose weights have one more extra field, in the central directory or in the local header."""
    blob = struct.pack("<2H", kind, len(data)) + data
    name = {"name": MODEL.encode() + blob, "extra_length": len(blob)}  # the extra fields follow the name
    name["name_length"] = len(MODEL)
    return changed(**{"local" if local else "central": name})


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    return path


@contextmanager
def opened(path: Path, unpack_into: Path | None = None, report: Report | None = None) -> Iterator[Directory]:
    directory = open_archive(
        path, None if unpack_into is None else lambda: OpenFolder.at(unpack_into), report or Report()
    )
    try:
        yield directory
    finally:
        directory.close()


def open_weights(directory: Directory, name: str) -> WeightsFile:
    return (open_safetensors if name.endswith(".safetensors") else open_torch_file)(directory.open(name))


def bytes_of(tensor: LazyTensor) -> bytes:
    out = bytearray(tensor.spec.nbytes)
    tensor.source.read_into(memoryview(out), 0)
    return bytes(out)


def everything(directory: Directory) -> dict[str, bytes]:
    return {name: directory.read(name, 2**30) for name in directory.names()}


def refusal(path: Path, kind: type[DeltaweightsError], target: Path | None = None) -> str:
    with pytest.raises(DeltaweightsError) as caught:
        open_archive(path, None if target is None else lambda: OpenFolder.at(target), Report())
    assert type(caught.value) is kind, caught.value
    message = str(caught.value)
    assert message.isprintable()
    return message.removeprefix(f"{path}")


LINK, FIFO, FOLDER = (kind << 16 for kind in (stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFDIR | 0o755))


def second_name(name: bytes, of: str = MODEL) -> bytes:
    return struct.pack("<BL", 1, zlib.crc32(of.encode())) + name


CRC, SIZE, PACKED, MEGA = zlib.crc32(WEIGHTS), len(WEIGHTS), len(deflated(WEIGHTS)), 2**20
