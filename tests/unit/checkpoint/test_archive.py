"""Checkpoints inside zip archives: read where they stand or unpacked, and refused for anything that is not a plain zipped folder.

Good archives are made by Python's zipfile and by Info-ZIP; bad ones are written field by field with one thing wrong. Ids begin with
the row of the project's table of bad inputs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
import struct
import subprocess
import threading
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.checksums import verify_checksum
from deltaweights.checkpoint.companions import COPIED, read_companions
from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.files import FileSlice, InputFile, LocalFile
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout import MAIN_FILES, find_main_file
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.tensors import LazyTensor, WeightsFile
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.checkpoint.zip_format.archive import Member, read_archive
from deltaweights.checkpoint.zip_format.member_content import PIECE, read_member
from deltaweights.checkpoint.zip_format.rules import FOLDER_ZIP
from deltaweights.checkpoint.zipped_folder import unpack as unpack_module
from deltaweights.checkpoint.zipped_folder.directory import (
    ArchivedDirectory,
    contains_checkpoint,
    is_checkpoint_archive,
    open_archive,
)
from deltaweights.checkpoint.zipped_folder.find_checkpoint import folded
from deltaweights.errors import DeltaweightsError, InputOutputError, MalformedInput
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder
from tests.support.limits import MOMENT, PATIENCE
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save
from tests.unit.checkpoint.test_torch_file import GOOD, GOOD_FILES, Part, join

ROOT = "llava_delta"
MODEL, CONFIG = f"{ROOT}/pytorch_model.bin", f"{ROOT}/config.json"
UNUSUAL = "; the archive is damaged or unusual: download it again, or unpack it and give the folder"
AGAIN = "; fetch the archive again"
TRUSTED = "; if you trust the archive, unpack it and give the folder"


# Making archives.


class _Stream(io.RawIOBase):
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
    out = _Stream()
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


# Reading archives.


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Make the empty folder that archives are unpacked into."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder


@contextmanager
def opened(path: Path, unpack_into: Path | None = None, report: Report | None = None) -> Iterator[Directory]:
    directory = open_archive(
        path, None if unpack_into is None else lambda: OpenFolder.at(unpack_into), report or Report()
    )
    try:
        yield directory
    finally:
        directory.close()


def tensors_of(directory: Directory) -> dict[str, bytes]:
    """Return the bytes of all tensors, read through the directory, by name, dtype and shape."""
    start = find_main_file(directory, "delta").name
    found = {}
    for name in read_index(directory, start).shards if start.endswith(".index.json") else [start]:
        weights = open_weights(directory, name)
        found.update({str(tensor.spec) + tensor.spec.name: bytes_of(tensor) for tensor in weights.tensors.values()})
        weights.file.check_unchanged()
        weights.file.close()
    return found


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


CHECKPOINTS = [(container, shards) for container in ("torch", "safetensors") for shards in (1, 2)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Save a tiny LLaVA-Med-like delta in both containers, in one file and in two."""
    tensors, top = delta_tensors(base_tensors(layers=1)), tmp_path_factory.mktemp("checkpoints")
    return {(c, shards): save(tensors, top / f"{c}-{shards}", c, shards) for c, shards in CHECKPOINTS}


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("which", CHECKPOINTS)
def test_stored_checkpoint_is_read_in_place(
    tmp_path: Path, checkpoints: dict[tuple[str, int], Path], which: tuple[str, int], how: str
) -> None:
    """Every tensor and every companion of a stored checkpoint is that of the folder, and nothing is written anywhere."""
    folder = checkpoints[which]
    path = written(tmp_path, STORED[how](folder))
    with opened(path) as directory:
        assert isinstance(directory, ArchivedDirectory)
        assert tensors_of(directory) == tensors_of(LocalDirectory(folder))
        assert set(files_of(folder, "")) == set(directory.names())
        ours, theirs = (
            read_companions(d, frozenset(), "float16", "delta", "") for d in (directory, LocalDirectory(folder))
        )
        assert ours == theirs
        assert directory.path == path / {"stored-at-the-top": "", "stored-deep": "data/checkpoints/7b"}.get(how, ROOT)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", DEFLATED)
@pytest.mark.parametrize("which", [("torch", 2), ("safetensors", 2)])
def test_deflated_checkpoint_is_unpacked(
    tmp_path: Path, target: Path, checkpoints: dict[tuple[str, int], Path], which: tuple[str, int], how: str
) -> None:
    """A checkpoint with deflated weights is unpacked into the given folder, flat, byte for byte, and nothing else is."""
    folder = checkpoints[which]
    with opened(written(tmp_path, DEFLATED[how](folder)), target) as directory:
        assert isinstance(directory, LocalDirectory)
        assert directory.path == target
        assert tensors_of(directory) == tensors_of(LocalDirectory(folder))
    assert files_of(target, "") == files_of(folder, "")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["unpacked", "x.zip"]


@pytest.mark.skipif(shutil.which("zip") is None, reason="Info-ZIP is not installed")
@pytest.mark.parametrize("options", ["-r", "-0r", "-1rD", "-9rX", "-rfz", "-0rfz", "-r pipe"])
def test_checkpoint_zipped_by_info_zip(
    tmp_path: Path, target: Path, checkpoints: dict[tuple[str, int], Path], options: str
) -> None:
    """Archives of Info-ZIP's zip are read: deflated or stored, with folders or without, forced to zip64, or made in a pipe."""
    folder = tmp_path / ROOT
    shutil.copytree(checkpoints["torch", 2], folder)
    (folder / "sub").mkdir()
    (folder / "说明.txt").write_text("text")
    path, (flags, *pipe) = tmp_path / "x.zip", options.split()
    made = subprocess.run(
        ["zip", "-q", flags, "-" if pipe else path, ROOT],
        cwd=tmp_path,
        check=True,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    if pipe:
        path.write_bytes(made.stdout)
    with opened(path, target) as directory:
        assert isinstance(directory, ArchivedDirectory if "0" in flags else LocalDirectory)
        (folder / "sub").rmdir()
        if "0" not in flags:
            (folder / "说明.txt").unlink()  # which is no part of a checkpoint
        assert everything(directory) == files_of(folder, "")


def test_deflated_without_a_place(tmp_path: Path) -> None:
    """Without a place to unpack to, an archive with deflated weights is refused with what to do."""
    shards = {f"{ROOT}/model-{n}-of-2.safetensors": WEIGHTS for n in "12"}
    path = written(tmp_path, zipped({**shards, CONFIG: b"{}", MODEL: WEIGHTS}, level=6))
    assert refusal(path, MalformedInput) == (
        ": the archive's weights are compressed: found model-1-of-2.safetensors and 2 more, deflated, expected stored; "
        "unpack it first (unzip does) and give the folder"
    )


def test_index_decides_what_weights_are(tmp_path: Path, target: Path) -> None:
    """A shard of an unusual name that an index names counts as weights; a deflated trainer's file of the same ending does not."""
    index = b'{"weight_map": {"a": "part-1.bin"}}'
    files = {f"{ROOT}/pytorch_model.bin.index.json": index, f"{ROOT}/training_args.bin": WEIGHTS}
    out = io.BytesIO(zipped(files, level=6))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(f"{ROOT}/part-1.bin", WEIGHTS)
    with opened(written(tmp_path, out.getvalue())) as directory:
        assert directory.open("training_args.bin").read(256, 3) == WEIGHTS[256:259]
    with opened(written(tmp_path, zipped({f"{ROOT}/part-1.bin": WEIGHTS, **files}, level=6)), target) as directory:
        assert directory.names() == ["part-1.bin", "pytorch_model.bin.index.json"]


def test_what_is_no_part_of_a_checkpoint_stays(tmp_path: Path, target: Path) -> None:
    """Only weights and what is read or copied with them is unpacked, and what stays is said."""
    said: list[str] = []

    class Notes(Report):
        def note(self, text: str) -> None:
            said.append(text)

    kept = [
        "LICENSE",
        "README.md",
        "config.json",
        "manifest.json",
        "mm_projector.bin",
        "params.json",
        "pytorch_model.bin",
    ]
    left = [f"rng_state_{number}.pth" for number in range(9)]
    path = written(tmp_path, zipped({f"{ROOT}/{name}": WEIGHTS for name in (*kept, *left, "optimizer.pt")}, level=6))
    with opened(path, target, Notes()) as directory:
        assert directory.names() == kept
    listed = ", ".join(["optimizer.pt", *left[:7]])
    assert said == [f"not unpacked from {path}, since no part of the checkpoint: {listed} and 2 more"]


@pytest.mark.parametrize("archive", GOOD_FILES.values(), ids=GOOD_FILES)
def test_torch_file_is_no_archive(tmp_path: Path, archive: bytes) -> None:
    """A file that torch wrote is not taken for a zipped checkpoint, whatever its name."""
    assert not is_archive(tmp_path, archive)


def test_what_is_an_archive(tmp_path: Path) -> None:
    """Any other zip is one, also when ``data.pkl`` is among the weights; what is no zip is not; records decide, not contents."""
    assert is_archive(tmp_path, join(SOUND))
    assert is_archive(tmp_path, zipped({"x.txt": b"x"}))
    assert is_archive(tmp_path, join([*SOUND, part(f"{ROOT}/data.pkl")]))
    assert is_archive(tmp_path, changed(packed=b"no deflate stream"))
    assert not is_archive(tmp_path, join([*GOOD, Part("other/x", b"")]))
    assert not is_archive(tmp_path, b"PK")
    assert not is_archive(tmp_path, b"\x80\x02}." + join(SOUND))
    with pytest.raises(MalformedInput, match="truncated: the zip has no end record"):
        is_archive(tmp_path, join(SOUND)[:-1])


def test_which_archives_hold_a_checkpoint(tmp_path: Path) -> None:
    """Only an archive with a file by which weights begin does, as its records have it."""
    assert is_archive(tmp_path, join(SOUND), contains_checkpoint)
    assert not is_archive(tmp_path, zipped({"x.txt": b"x"}), contains_checkpoint)
    assert not is_archive(tmp_path, join(GOOD), contains_checkpoint)
    assert not is_archive(tmp_path, b"PK", contains_checkpoint)


def is_archive(tmp_path: Path, content: bytes, is_one: Callable[[InputFile], bool] = is_checkpoint_archive) -> bool:
    file = LocalFile(written(tmp_path, content))
    try:
        return is_one(file)
    finally:
        file.close()


# What is refused from the records, before anything is written.

LINK, FIFO, FOLDER = (kind << 16 for kind in (stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFDIR | 0o755))
UNSAFE = "expected a plain relative path"
PLAIN = "expected a plain relative path of at most 1024 characters"
GIGA = 10**9


def sized(size: int, packed: int, *, name: str = MODEL) -> list[Part]:
    """Return members of whose sizes the central directory tells lies: the archive ends before their bytes."""
    said = {"size": size, "packed": packed}
    return [part(name, WEIGHTS, local=said, central=said)]


def second_name(name: bytes, of: str = MODEL) -> bytes:
    return struct.pack("<BL", 1, zlib.crc32(of.encode())) + name


def huge(*sizes: int) -> bytes:
    """Return the sound archive followed by sparse members: their sizes are true as far as records tell, by zip64."""
    return join([*SOUND, *(wide(f"{ROOT}/model-{n}-of-9.bin", size) for n, size in enumerate(sizes))])


def wide(name: str, size: int) -> Part:
    """Return a member that says, in zip64 fields, that its few bytes stand for ``size``."""
    packed = deflated(b"")
    field = struct.pack("<2H2Q", 1, 16, size, len(packed))
    said = {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF, "name": name.encode() + field, "name_length": len(name)}
    central = {
        **said,
        "packed": len(packed),
        "name": name.encode() + struct.pack("<2HQ", 1, 8, size),
        "extra_length": 12,
    }
    return part(name, b"", packed=packed, local={**said, "extra_length": 20}, central=central)


NO_WEIGHTS = f"expected {' or '.join(MAIN_FILES)} or consolidated.00.pth"
NO_FOLDER = f"{NO_WEIGHTS}; give the archive of a folder with weights"
OVERLAPS = f"overlaps what follows it, or runs past the end of the members{UNUSUAL}"
DIFFERS = f"local and central header of zip member {MODEL} differ: found"
CRC, SIZE, PACKED, MEGA = zlib.crc32(WEIGHTS), len(WEIGHTS), len(deflated(WEIGHTS)), 2**20
END = len(join(SOUND))
NOTHINGS = "before the archive or inside it that belong to nothing"
NO_COMMENT = f"expected a comment of the length that the record says{UNUSUAL}"
OUTER, INNER = zipped({MODEL: WEIGHTS}), zipped({MODEL: b"other"})
EXPECTED = f"expected CRC {CRC:#010x}, size {SIZE} packed into {PACKED}{UNUSUAL}"
UNPACK_AND_GIVE = "unpack it and give the one you mean"
STORED_OR_DEFLATED = "expected stored or deflated; unpack it first"
AT = INNER.index(b"PK\1\2")
PACKED_ZEROS, PACKED_MANY = len(deflated(bytes(65 * MEGA))), 5 * len(deflated(bytes(13 * MEGA))) + PACKED

REFUSED: dict[str, tuple[bytes, str]] = {
    "row44-way-up": (beside(f"{ROOT}/../x"), f"unsafe name of a zip member: found {ROOT}/../x, {UNSAFE}{UNUSUAL}"),
    "row44-way-up-first": (beside("../x"), f"unsafe name of a zip member: found ../x, {UNSAFE}{UNUSUAL}"),
    "row44-here": (beside("./x"), f"unsafe name of a zip member: found ./x, {UNSAFE}{UNUSUAL}"),
    "row44-absolute": (beside("/etc/x"), f"unsafe name of a zip member: found /etc/x, {UNSAFE}{UNUSUAL}"),
    "row44-two-slashes": (beside("a//x"), f"unsafe name of a zip member: found a//x, {UNSAFE}{UNUSUAL}"),
    "row44-only-a-slash": (beside("/"), f"unsafe name of a zip member: found /, {UNSAFE}{UNUSUAL}"),
    "row44-empty": (beside(""), f"unsafe name of a zip member: found , {UNSAFE}{UNUSUAL}"),
    "row44-backslash": (beside("a\\x"), f"unsafe name of a zip member: found a\\x, {UNSAFE}{UNUSUAL}"),
    "row44-drive": (beside("C:/x"), f"unsafe name of a zip member: found C:/x, {PLAIN}{UNUSUAL}"),
    "row44-nul": (beside("a\0.bin"), f"unsafe name of a zip member: found a\\x00.bin, {UNSAFE}{UNUSUAL}"),
    "row44-control": (beside("a\x1b[2J"), f"unsafe name of a zip member: found a\\x1b[2J, {UNSAFE}{UNUSUAL}"),
    "row44-not-utf8": (
        join([*SOUND, Part("", b"", flags=0, raw_name=b"\xb2\xe2")]),
        f"the name of a zip member is not UTF-8: found b'\\xb2\\xe2'{UNUSUAL}",
    ),
    "row44-long-path": (
        beside("/".join(["a" * 200] * 6)),
        f"unsafe name of a zip member: found {'a' * 80}, {PLAIN}{UNUSUAL}",
    ),
    "row44-long-name": (
        beside(f"{ROOT}/{'é' * 121}"),
        f"file name is too long: found 242 bytes: {'é' * 80}, expected at most 240{TRUSTED}",
    ),
    "row45-link": (
        beside(f"{ROOT}/x", b"/etc/passwd", central={"external": LINK}),
        f"zip member {ROOT}/x is of another kind: found a symbolic link, expected a file{UNUSUAL}",
    ),
    "row45-link-by-macos": (
        changed(central={"external": LINK, "made": 19 << 8}),
        f"zip member {MODEL} is of another kind: found a symbolic link, expected a file{UNUSUAL}",
    ),
    "row45-fifo": (
        changed(central={"external": FIFO}),
        f"zip member {MODEL} is of another kind: found a device, expected a file{UNUSUAL}",
    ),
    "row45-folder": (
        changed(central={"external": FOLDER}),
        f"zip member {MODEL} is of another kind: found a folder, expected a file{UNUSUAL}",
    ),
    "row45-file-named-as-folder": (
        beside("x/", b"", method=0),
        f"zip member x/ is of another kind: found a file, expected a folder{UNUSUAL}",
    ),
    "row45-folder-with-content": (
        beside("x/", b"abc", method=0, central={"external": FOLDER}),
        f"impossible sizes of zip member x/: found 3 bytes stored, expected 3{UNUSUAL}",
    ),
    "row46-twice": (join([*SOUND, SOUND[0]]), f"duplicate member in the zip: found {CONFIG}{UNUSUAL}"),
    "row46-case": (
        beside(f"{ROOT}/Config.json"),
        f"two members of the zip with one name: found {ROOT}/Config.json and {CONFIG}{UNUSUAL}",
    ),
    "row46-folder-case": (
        beside(f"{ROOT.title()}/x"),
        f"two members of the zip with one name: found {MODEL} and {ROOT.title()}/x{UNUSUAL}",
    ),
    "row46-sharp-s": (
        join([*SOUND, part("straße"), part("STRASSE")]),
        f"two members of the zip with one name: found STRASSE and straße{UNUSUAL}",
    ),
    "row46-composition": (
        join([*SOUND, part("é"), part(unicodedata.normalize("NFD", "é"))]),
        f"two members of the zip with one name: found {unicodedata.normalize('NFD', 'é')} and é{UNUSUAL}",
    ),
    "row46-file-and-folder": (
        beside(f"{CONFIG}/x"),
        f"two members of the zip with one name: found {CONFIG} and {CONFIG}/x{UNUSUAL}",
    ),
    "row46-file-and-empty-folder": (
        beside(f"{CONFIG}/", b"", central={"external": FOLDER}),
        f"two members of the zip with one name: found {CONFIG} and {CONFIG}/{UNUSUAL}",
    ),
    "row47-ratio-impossible": (
        changed(content=bytes(10**6), packed=deflated(b"x")),
        f"zip member {MODEL} is a bomb: found 3 bytes that unpack to 1000000, expected at most 1032 times as many{TRUSTED}",
    ),
    "row47-ratio-of-weights": (
        changed(content=bytes(65 * MEGA)),
        f"the archive is a bomb: found {PACKED_ZEROS} bytes that unpack to 68157440, expected at most 100 times as many{TRUSTED}",
    ),
    "row47-ratio-of-many-weights": (
        zipped({MODEL: WEIGHTS, **{f"{ROOT}/model-{n}-of-9.bin": bytes(13 * MEGA) for n in range(5)}}, level=6),
        f"the archive is a bomb: found {PACKED_MANY} bytes that unpack to 68167680, expected at most 100 times as many{TRUSTED}",
    ),
    "row47-beside-the-weights": (
        zipped({f"{ROOT}/{n}": bytes(33 * MEGA) for n in sorted(COPIED)[:4]} | {MODEL: WEIGHTS}, level=1),
        f"the files beside the weights are too large: found 138 MB, expected at most 134 MB{TRUSTED}",
    ),
    "row47-member": (
        huge(257 * GIGA),
        f"zip member {ROOT}/model-0-of-9.bin is too large: found 257 GB, expected at most 256 GB{TRUSTED}",
    ),
    "row47-all": (
        huge(*[250 * GIGA] * 5),
        f"the members of the zip are too large: found 1.25 TB, expected at most 1 TB{TRUSTED}",
    ),
    "row47-nothing-from-much": (
        changed(content=b"", packed=deflated(NOISE)),
        f"impossible sizes of zip member {MODEL}: found 1029 bytes deflated, expected 0{UNUSUAL}",
    ),
    "row47-members": (
        join([*SOUND, *(part(f"{n}") for n in range(9_999))]),
        f"too many members in the zip: found 10001, expected at most 10000{UNUSUAL}",
    ),
    "row47-directory": (
        join(SOUND, end={"size": 2**24 + 1}),
        f"oversized zip central directory: found 16777217 bytes, expected at most 16777216{UNUSUAL}",
    ),
    "row48-overlap": (
        changed(central={"offset": 0}),
        f"zip member {CONFIG} {OVERLAPS}",
    ),
    "row48-into-the-next": (
        join([part(MODEL, WEIGHTS, central={"packed": 4000}), part(CONFIG)]),
        f"zip member {MODEL} {OVERLAPS}",
    ),
    "row48-past-the-end": (
        changed(central={"packed": len(deflated(WEIGHTS)) + 1}),
        f"zip member {MODEL} {OVERLAPS}",
    ),
    "row48-gap": (
        changed(before=b"junk"),
        f"bytes after zip member {CONFIG} that belong to nothing: found 4, expected [0]{UNUSUAL}",
    ),
    "row48-before": (
        b"#!" + join(SOUND),
        f"2 bytes {NOTHINGS}: found zip64 end record at byte {END - 96}, expected at byte {END - 98}{UNUSUAL}",
    ),
    "row48-after": (
        join(SOUND) + b"junk",
        f"bytes after the archive: found 4 bytes after the end record, {NO_COMMENT}",
    ),
    "row48-second-archive-as-comment": (
        zipped({MODEL: WEIGHTS}, comment=INNER),
        f"{len(OUTER)} bytes {NOTHINGS}: found central directory at byte {len(OUTER) + AT}, expected at byte {AT}{UNUSUAL}",
    ),
    "row48-second-archive-in-comment": (
        zipped({MODEL: WEIGHTS}, comment=INNER + b"x"),
        f"bytes after the archive: found 1 bytes after the end record, {NO_COMMENT}",
    ),
    "row48-local-name": (
        changed(local={"name": MODEL.encode()[:-1] + b"m"}),
        f"local and central name of a zip member differ: found b'{MODEL[:-1]}m', expected {MODEL}{UNUSUAL}",
    ),
    "row48-local-method": (
        changed(local={"method": 0}),
        f"{DIFFERS} (0, 0){UNUSUAL}",
    ),
    "row48-local-sizes-exchanged": (
        changed(local={"packed": SIZE, "size": PACKED}),
        f"{DIFFERS} CRC {CRC:#010x}, sizes ({SIZE}, {PACKED}), {EXPECTED}",
    ),
    "row48-second-name": (
        with_extra(0x7075, second_name(b"x")),
        f"zip member {MODEL} has a second name: found x{UNUSUAL}",
    ),
    "row48-second-name-in-local": (
        with_extra(0x7075, second_name(b"x"), local=True),
        f"zip member {MODEL} has a second name: found x{UNUSUAL}",
    ),
    "row48-zip64-field-not-due": (
        with_extra(0x0001, bytes(8)),
        f"invalid zip64 field of zip member {MODEL}: found 8 bytes, expected 0{UNUSUAL}",
    ),
    "row48-flags": (
        changed(flags=0x0020),
        f"zip member {MODEL} has flags that a usual tool does not write: found 0x0020{UNUSUAL}",
    ),
    "row49-nested-zip": (
        zipped({f"{ROOT}/a.zip": b"", f"{ROOT}/b.tar.gz": b"", CONFIG: b"{}"}),
        f"an archive inside the archive, and no weights: found {ROOT}/a.zip, {ROOT}/b.tar.gz, {NO_WEIGHTS}; unpack it first",
    ),
    "row49-no-weights": (
        zipped({f"{n}.txt": b"" for n in range(6)}),
        f"no weights in the archive: found 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 1 more, {NO_FOLDER}",
    ),
    "row49-only-macos": (
        zipped({f"__MACOSX/{MODEL}": WEIGHTS}),
        f"no weights in the archive: found no files, {NO_FOLDER}",
    ),
    "row49-two-folders": (
        zipped({MODEL: b"", "consolidated.00.pth": b"", "other/model.safetensors": b""}),
        f"more than one folder with weights in the archive: found its top and {ROOT}/ and other/; {UNPACK_AND_GIVE}",
    ),
    "row49-encrypted": (changed(flags=0x0001), f"zip member {MODEL} is encrypted; decrypt it first"),
    "row49-encrypted-strongly": (changed(flags=0x0041), f"zip member {MODEL} is encrypted; decrypt it first"),
    "row49-encrypted-by-winzip": (changed(method=99), f"zip member {MODEL} is encrypted; decrypt it first"),
    "row49-encryption-field": (with_extra(0x9901, bytes(7)), f"zip member {MODEL} is encrypted; decrypt it first"),
    "row49-encryption-field-strong": (
        with_extra(0x0017, bytes(8), local=True),
        f"zip member {MODEL} is encrypted; decrypt it first",
    ),
    **{
        f"row49-method-{name}": (
            changed(method=method),
            f"zip member {MODEL} is compressed with {name}: found method {method}, {STORED_OR_DEFLATED}",
        )
        for method, name in {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 98: "PPMd"}.items()
    },
    "row49-method-unknown": (
        changed(method=42),
        f"zip member {MODEL} is compressed: found method 42, {STORED_OR_DEFLATED}",
    ),
    "row49-truncated": (
        join(SOUND)[:-1],
        f"truncated: the zip has no end record: found {len(join(SOUND)) - 1} bytes; download it again, in full",
    ),
    "row49-page": (
        b"<!DOCTYPE html><html>",
        "not a zip archive: found an HTML page; download the file itself, not a page; a private file needs a login",
    ),
    "row49-empty-archive": (zipped({}), f"an archive without members{UNUSUAL}"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_written(tmp_path: Path, content: bytes, message: str) -> None:
    """An archive with one thing wrong in its records is refused with its name and fault at once; no place is asked for."""
    path = written(tmp_path, content)
    began = time.process_time()
    with pytest.raises(MalformedInput) as caught:
        open_archive(path, lambda: pytest.fail("nothing may be unpacked"), Report())
    assert str(caught.value) == f"{path}: {message}"
    assert time.process_time() - began < MOMENT


# What only the contents tell.

DAMAGED: dict[str, tuple[bytes, str]] = {
    "row49-crc": (
        changed(crc=1),
        f"stored bytes are damaged: found CRC-32 {zlib.crc32(WEIGHTS):08x}, expected 00000001, as the file records",
    ),
    "row49-no-stream": (
        changed(packed=b"\x07" + bytes(100)),
        "not a deflate stream: found Error -3 while decompressing data: invalid block type",
    ),
    "row49-cut-stream": (
        changed(packed=deflated(WEIGHTS)[:-1]),
        f"the deflate stream is cut short: found {len(WEIGHTS)} bytes, expected {len(WEIGHTS)}",
    ),
    "row49-after-the-stream": (
        changed(packed=deflated(WEIGHTS) + b"xy"),
        "bytes after the end of the deflate stream: found 2, expected 0",
    ),
    "row49-far-after-the-stream": (
        changed(content=bytes(10**6), packed=deflated(b"12345") + bytes(10**6)),
        "deflate stream holds less than is recorded: found 5 bytes, expected 1000000",
    ),
    "row47-less-than-recorded": (
        changed(packed=deflated(WEIGHTS[:-1])),
        f"deflate stream holds less than is recorded: found {len(WEIGHTS) - 1} bytes, expected {len(WEIGHTS)}",
    ),
    "row47-more-than-recorded": (
        changed(packed=deflated(WEIGHTS + b"x")),
        f"deflate stream holds more than is recorded: found more than {len(WEIGHTS)} bytes, expected {len(WEIGHTS)}",
    ),
    "row47-far-more-than-recorded": (
        changed(content=bytes(10**6), packed=deflated(bytes(2**28))),
        "deflate stream holds more than is recorded: found more than 1000000 bytes, expected 1000000",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_contents_leave_nothing(tmp_path: Path, target: Path, content: bytes, message: str) -> None:
    """A member that does not hold what is recorded is refused at once, and of the whole archive nothing is left."""
    path = written(tmp_path, content)
    began = time.process_time()
    assert refusal(path, MalformedInput, target) == f"/{MODEL}: {message}{AGAIN}"
    assert time.process_time() - began < MOMENT
    assert list(target.iterdir()) == []


def test_row49_stored_files_are_checked_when_read_whole(tmp_path: Path) -> None:
    """A stored file that is read whole is compared with its CRC-32, as a configuration or as weights."""
    content = join([part(CONFIG, method=0, crc=5), part(MODEL, WEIGHTS, method=0, crc=6)])
    with opened(written(tmp_path, content)) as directory:
        with pytest.raises(MalformedInput, match=r"config.json: stored bytes are damaged: found CRC-32 a3a6bf43"):
            directory.read_companion("config.json", 100)
        with pytest.raises(MalformedInput, match=r"pytorch_model.bin: stored bytes are damaged"):
            directory.read("pytorch_model.bin", 2**20)


def legacy(tensors: Tensors) -> bytes:
    out = io.BytesIO()
    torch.save(tensors, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def without_checksums(tensors: Tensors) -> bytes:
    out, before = io.BytesIO(), torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, out)
    finally:
        torch.serialization.set_crc32_options(before)
    return out.getvalue()


BARE: dict[str, tuple[str, Callable[[Tensors], bytes]]] = {
    "row49-safetensors": ("model.safetensors", safetensors.torch.save),
    "row49-legacy": ("pytorch_model.bin", legacy),
    "row49-torch-without-checksums": ("pytorch_model.bin", without_checksums),
}


@pytest.mark.parametrize(("name", "saved"), BARE.values(), ids=BARE)
def test_stored_weights_without_checksums_of_their_own(
    tmp_path: Path, name: str, saved: Callable[[Tensors], bytes]
) -> None:
    """The archive's CRC-32 covers every byte of such a file: the sound one is proved, and one flipped bit anywhere is refused."""
    content = saved({"w": torch.arange(50.0), "v": torch.ones(3)})
    archive = zipped({f"{ROOT}/{name}": content})
    with opened(written(tmp_path, archive)) as directory:
        weights = open_weights(directory, name)
        assert (weights.checks, weights.notes) == (("header", "crc32"), ())
        (whole,) = weights.extra_checksums
        assert bytes_of(whole) == content
        verify_checksum(whole)
    at = archive.index(torch.arange(50.0).numpy().tobytes()) + 77
    path = written(tmp_path, archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :])
    with opened(path) as directory, pytest.raises(MalformedInput) as caught:
        verify_checksum(*open_weights(directory, name).extra_checksums)
    start = archive.index(content)
    damaged = bytearray(content)
    damaged[at - start] ^= 1
    assert str(caught.value) == (
        f"{path}/{ROOT}/{name}: stored bytes are damaged: found CRC-32 {zlib.crc32(damaged):08x}, "
        f"expected {zlib.crc32(content):08x}, as the file records; fetch the file again"
    )


def test_stored_torch_files_are_not_read_twice(tmp_path: Path, checkpoints: dict[tuple[str, int], Path]) -> None:
    """A torch file with checksums of its own needs no pass of its own for the archive's."""
    folder = checkpoints["torch", 1]
    with opened(written(tmp_path, zipped(files_of(folder)))) as directory:
        weights = open_weights(directory, "pytorch_model.bin")
        assert (weights.checks, weights.extra_checksums) == (("header", "crc32"), ())
        weights.file.close()


def test_row47_small_files_stay_small(tmp_path: Path) -> None:
    """A configuration that is longer than it may be is refused before it is inflated, as one in a folder is."""
    content = zipped({f"{ROOT}/model.safetensors": WEIGHTS, CONFIG: b" " * 1000})
    with opened(written(tmp_path, content)) as directory, pytest.raises(MalformedInput) as caught:
        directory.read("config.json", 999)
    assert str(caught.value) == (
        f"{directory.path}/config.json: file is too long: found 1000 bytes, expected at most 999; "
        "the archive is damaged or unusual: download it again"
    )


def test_index_that_is_broken_is_named(tmp_path: Path, target: Path) -> None:
    """An index inside an archive that is not JSON is refused with its place in the archive, before anything is unpacked."""
    content = zipped({MODEL: WEIGHTS, f"{MODEL}.index.json": b"{"}, level=6)
    assert refusal(written(tmp_path, content), MalformedInput, target).startswith(
        f"/{MODEL}.index.json: not strict JSON"
    )
    assert list(target.iterdir()) == []


# What must pass.

PASSED: dict[str, bytes] = {
    "times-and-owner": with_extra(0x5455, bytes(5)),
    "ntfs-times": with_extra(0x000A, bytes(32)),
    "old-unix": with_extra(0x5855, bytes(12), local=True),
    "unknown": with_extra(0xABCD, bytes(3)),
    "same-second-name": with_extra(0x7075, second_name(MODEL.encode())),
    "deflate-levels": changed(flags=0x0006),
    "name-flagged-as-utf8": changed(flags=0x0800),
    "made-by-windows": changed(central={"made": 0, "external": LINK}),  # where these bits mean nothing
    "mode-without-kind": changed(central={"external": 0o600 << 16}),
    "folder-entry": beside("x/", b"", method=0, central={"external": FOLDER | 0x10}),
    "deflated-folder-entry": beside("x/", b"", central={"external": FOLDER}),
    "empty-file": beside(f"{ROOT}/empty", b""),
    "many-zeros": beside(f"{ROOT}/config.json.old", bytes(10**6)),
    "huge-and-no-part-of-it": beside(f"{ROOT}/trainer.log", bytes(65 * MEGA)),
    "zeros-among-weights": join(
        [*SOUND, part(f"{ROOT}/model-1-of-2.bin", os.urandom(MEGA)), part(f"{ROOT}/model-2-of-2.bin", bytes(70 * MEGA))]
    ),
    "other-zip-inside": beside(f"{ROOT}/notes.zip", zipped({"a": b""}), method=0),
}


@pytest.mark.parametrize("content", PASSED.values(), ids=PASSED)
def test_what_usual_tools_write_passes(tmp_path: Path, target: Path, content: bytes) -> None:
    """What tools add to a zip without changing what it means is read over: the weights come out as they are."""
    with opened(written(tmp_path, content), target) as directory:
        assert directory.read("pytorch_model.bin", 2**20) == WEIGHTS


def test_files_are_ours_to_read(tmp_path: Path, target: Path) -> None:
    """Unpacked files have the umask's permissions, whatever the archive says."""
    before = os.umask(0o027)
    try:
        with opened(written(tmp_path, changed(central={"external": (stat.S_IFREG | 0o4777) << 16})), target):
            assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o640}
    finally:
        os.umask(before)


# Unpacking that ends early, and goes on.


class Killed(Exception):
    """Stands for a signal."""


def test_killed_unpacking_goes_on(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run leaves finished files and no unfinished one; the next run finishes, and does not write those again."""
    files = {f"model-{n}-of-4.safetensors": os.urandom(3 * PIECE + n) for n in range(1, 5)} | {
        "model.safetensors": b"x" * 4 * PIECE
    }
    path = written(tmp_path, zipped({f"{ROOT}/{name}": content for name, content in files.items()}, level=1))
    halted, killed = [], threading.Event()

    def halting(file: InputFile, member: Member) -> Iterator[memoryview]:
        """Give the two smallest members, which are the last, in part, until the run is killed."""
        for number, piece in enumerate(read_member(file, member)):
            if number == 2 and member.name.endswith(("1-of-4.safetensors", "2-of-4.safetensors")):
                halted.append(member.name)
                killed.wait(PATIENCE)
                time.sleep(0.1)  # until the workers are told
            yield piece

    class Killing(Report):
        def progress(self, done: int) -> None:
            if len(halted) == 2:
                killed.set()
                raise Killed

    monkeypatch.setattr(unpack_module, "read_member", halting)
    with pytest.raises(Killed):
        open_archive(path, lambda: OpenFolder.at(target), Killing())
    left = {name: (target / name).stat() for name in os.listdir(target)}  # noqa: PTH208
    assert left.keys() == {"model.safetensors", "model-3-of-4.safetensors", "model-4-of-4.safetensors"}
    monkeypatch.undo()
    with opened(path, target) as directory:
        assert everything(directory) == files
    for name, before in left.items():
        after = (target / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_not_ours_is_replaced(tmp_path: Path, target: Path) -> None:
    """A damaged file, a file cut short, a link and what no member is called are replaced or removed; no link is followed."""
    outside = tmp_path / "outside"
    outside.write_bytes(WEIGHTS)
    files = {f"model-{n}-of-3.safetensors": WEIGHTS for n in (1, 2, 3)} | {
        "model.safetensors": b"yes",
        "config.json": b"{}",
    }
    path = written(tmp_path, zipped({f"{ROOT}/{name}": content for name, content in files.items()}, level=6))
    (target / "model-1-of-3.safetensors").write_bytes(WEIGHTS[::-1])
    (target / "model-2-of-3.safetensors").write_bytes(WEIGHTS[:-1])
    (target / "model-3-of-3.safetensors").symlink_to(outside)
    (target / "model.safetensors.part").symlink_to(outside)
    (target / "pytorch_model.bin").write_bytes(b"of another archive")
    with opened(path, target) as directory:
        assert everything(directory) == files
    assert not any(entry.is_symlink() for entry in target.iterdir())
    assert outside.read_bytes() == WEIGHTS


def test_folder_in_the_way(tmp_path: Path, target: Path) -> None:
    """A folder where files are to be unpacked is nothing that this program made: it is named, and nothing is touched."""
    (target / "old.bin").write_bytes(b"x")
    (target / "sub").mkdir()
    with pytest.raises(InputOutputError) as caught:
        open_archive(written(tmp_path, join(SOUND)), lambda: OpenFolder.at(target), Report())
    expected = f"{target}/sub: a folder where only unpacked files should be; check what it is, and remove it"
    assert str(caught.value) == expected
    assert sorted(entry.name for entry in target.iterdir()) == ["old.bin", "sub"]


@pytest.mark.parametrize(("copies", "expected"), [(1, "10.2 kB"), (2, "20.5 kB")])
def test_row62_too_little_room(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, copies: int, expected: str
) -> None:
    """Too little room for the files, and for as many copies of the weights as are wanted, is an error before the first byte.

    What is there already needs none.
    """
    path = written(tmp_path, zipped({MODEL: WEIGHTS, CONFIG: b"{}"}, level=6))
    usage = type(shutil.disk_usage(target))
    free = 100
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - free, free))
    with pytest.raises(unpack_module.NotEnoughDisk) as caught:
        open_archive(path, lambda: OpenFolder.at(target), Report(), copies=copies)
    assert str(caught.value) == (
        f"{target}: not enough free disk to unpack the archive: found 100 bytes free, expected {expected}; "
        "make room, or choose a place on another disk"
    )
    assert list(target.iterdir()) == []
    (target / "pytorch_model.bin").write_bytes(WEIGHTS)
    with opened(path, target) as directory:
        assert directory.names() == ["config.json", "pytorch_model.bin"]
    (target / "pytorch_model.bin").unlink()
    free = copies * len(WEIGHTS)
    open_archive(path, lambda: OpenFolder.at(target), Report(), copies=copies).close()


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
def test_row62_disk_that_refuses(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A disk that refuses at any step is an input/output error that names the file; no unfinished file is left."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = written(tmp_path, zipped({MODEL: WEIGHTS}, level=6))
    file = LocalFile(path)  # opened before opening fails
    (member,) = read_archive(file, FOLDER_ZIP).members
    folder = OpenFolder.at(target)
    monkeypatch.setattr(os, call, refuse)
    with folder, pytest.raises(InputOutputError) as caught:
        unpack_module.unpack(file, {"pytorch_model.bin": member}, folder, Report(), {})
    monkeypatch.undo()
    file.close()
    expected = f"{target}/pytorch_model.bin: cannot unpack: No space left on device; {unpack_module.KEPT}"
    assert str(caught.value) == expected
    assert list(target.iterdir()) == []


def test_row61_archive_that_changes(tmp_path: Path, target: Path) -> None:
    """An archive that is written to while it is unpacked is an input/output error (5)."""
    path = written(tmp_path, join(SOUND))

    class Touching(Report):
        def begin(self, doing: str, total: int) -> None:
            os.utime(path, ns=(1, 1))

    with pytest.raises(InputOutputError, match="changed while being read"):
        open_archive(path, lambda: OpenFolder.at(target), Touching())


def test_progress_is_that_of_all_bytes(tmp_path: Path, target: Path) -> None:
    """Progress begins with all bytes to come, never runs back, ends at the total, also for files that were there; and is ended."""
    said: list[object] = []

    class Saying(Report):
        def begin(self, doing: str, total: int) -> None:
            said.append((doing, total))

        def progress(self, done: int) -> None:
            said.append(done)

        def end(self) -> None:
            said.append("end")

    path = written(tmp_path, join(SOUND))
    for _ in range(2):
        said.clear()
        with opened(path, target, Saying()):
            assert said[0] == ("unpacking", len(WEIGHTS) + 2)
            assert said[-2:] == [len(WEIGHTS) + 2, "end"]


def test_errors_close_the_archive(tmp_path: Path, target: Path) -> None:
    """A refused archive leaves no descriptor open, and neither does one that was read and closed."""
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    for content in (*(content for content, _ in DAMAGED.values()), join(SOUND)[:-1]):
        refusal(written(tmp_path, content), MalformedInput, target)
    with opened(written(tmp_path, zipped({MODEL: WEIGHTS}))) as directory:
        directory.open("pytorch_model.bin").close()
        assert directory.read("pytorch_model.bin", 2**20) == WEIGHTS  # a window that is closed closes nothing else
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


# Parts of files.


def test_window_is_a_file_of_its_own(tmp_path: Path) -> None:
    """A window reads just its part, whole or scattered, and refuses what is outside of it, though the file goes on."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    file = LocalFile(path)
    window = FileSlice(file, path / "part", 10, 20)
    assert window.read(0, 20) == bytes(range(10, 30))
    assert window.read(20, 0) == b""
    assert b"".join(map(bytes, window.chunks())) == bytes(range(10, 30))
    pieces = [memoryview(bytearray(size)) for size in (1, 0, 4)]
    window.scatter_into(pieces, 15)
    assert b"".join(pieces) == bytes(range(25, 30))
    for offset, length in ((-1, 1), (20, 1), (0, 21), (19, 2), (1000, 1)):
        with pytest.raises(InputOutputError) as caught:
            window.read(offset, length)
        assert str(caught.value).startswith(f"{path}/part: cut short while being read: found end of file at byte 20")
        with pytest.raises(InputOutputError, match="cut short"):
            window.scatter_into([memoryview(bytearray(length))], offset)
    inner = FileSlice(window, path / "part" / "inner", 5, 5)
    assert inner.read(0, 5) == bytes(range(15, 20))
    inner.check_unchanged()
    os.truncate(path, 12)
    with pytest.raises(InputOutputError, match="changed while being read"):
        inner.check_unchanged()
    with pytest.raises(InputOutputError, match="end of file at byte 12"):
        window.read(0, 20)
    file.close()


def test_small_deflated_file_is_opened_in_memory(tmp_path: Path) -> None:
    """A small deflated file beside stored weights can be opened and read by position, and ends where it ends."""
    out = io.BytesIO(zipped({CONFIG: b'{"a": 1}'}, level=6))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(MODEL, WEIGHTS)
    with opened(written(tmp_path, out.getvalue())) as directory:
        file = directory.open("config.json")
        assert (file.path, file.size) == (tmp_path / "x.zip" / CONFIG, 8)
        assert file.read(1, 3) == b'"a"'
        file.check_unchanged()
        with pytest.raises(InputOutputError, match=r"config.json: read past the end: expected 8 bytes"):
            file.read(5, 4)
        file.close()
        with pytest.raises(InputOutputError, match=r"x.zip/llava_delta/none.txt: not in the archive"):
            directory.open("none.txt")


# Laws.

NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\"), min_size=1, max_size=40
).filter(lambda name: name not in {".", "..", ".DS_Store"})  # what macOS adds is passed over


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(NAMES, st.tuples(st.binary(max_size=300), st.booleans()), max_size=5),
    companions=st.dictionaries(st.sampled_from(sorted(COPIED)), st.tuples(st.binary(max_size=300), st.booleans())),
    weights=st.tuples(st.binary(max_size=3000), st.booleans()),
    pipe=st.booleans(),
)
def test_any_files_come_out_as_they_went_in(
    tmp_path: Path,
    files: dict[str, tuple[bytes, bool]],
    companions: dict[str, tuple[bytes, bool]],
    weights: tuple[bytes, bool],
    pipe: bool,
) -> None:
    """Any files of plain names, stored or deflated, beside stored weights are read as they are; with deflated ones, those used."""
    used = companions | {"pytorch_model.bin": weights}
    files = dict({folded(name): (name, value) for name, value in (files | used).items()}.values())
    out = _Stream() if pipe else io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, (content, deflate) in files.items():
            archive.writestr(f"{ROOT}/{name}", content, zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED)
    data = bytes(out.written) if isinstance(out, _Stream) else out.getvalue()
    target = tmp_path / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with opened(written(tmp_path, data), target) as directory:
        expected = {name: content for name, (content, _) in (used if weights[1] else files).items()}
        assert everything(directory) == expected
        assert isinstance(directory, LocalDirectory) == weights[1] == any(target.iterdir())


FUZZED = {"config.json": b'{"a": [1, 2, 3]}', "pytorch_model.bin": WEIGHTS[:700], "README.md": b"x" * 50}
FUZZED_ARCHIVES = {
    "deflated": zipped({f"{ROOT}/{name}": content for name, content in FUZZED.items()}, level=6, comment=b"hello"),
    "streamed": streamed({f"{ROOT}/{name}": content for name, content in FUZZED.items()}),
    "stored": zipped({f"{ROOT}/": b"", **{f"{ROOT}/{name}": content for name, content in FUZZED.items()}}),
    "zip64": zipped({f"{ROOT}/{name}": content for name, content in FUZZED.items()}, level=6, zip64=True),
    "fields": with_extra(0x000A, bytes(32)),
}


@pytest.mark.parametrize("which", FUZZED_ARCHIVES)
def test_any_changed_byte_is_noticed_or_means_nothing(tmp_path: Path, target: Path, which: str) -> None:
    """After any one byte is changed, in several ways, the archive is refused, or its files are the very same."""
    data = FUZZED_ARCHIVES[which]
    with opened(written(tmp_path, data), target) as directory:
        expected = everything(directory)
    refused = 0
    target = tmp_path / "each"
    for at in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            path = written(tmp_path, data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            try:
                with opened(path, target) as directory:
                    assert everything(directory) == expected
            except DeltaweightsError as error:
                assert type(error) is MalformedInput  # noqa: PT017
                refused += 1
    assert refused > len(data)  # the rest are times, owners, and who made it
