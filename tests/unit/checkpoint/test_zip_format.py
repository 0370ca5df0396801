"""Zip records and members: archives with one fault each are refused, and what usual tools write is read.

Ids begin with the row of docs/bad-inputs.md.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
import unicodedata
import zlib
from pathlib import Path

import pytest

from deltaweights.checkpoint.companions import COPIED
from deltaweights.checkpoint.layout_names import MAIN_FILES
from deltaweights.checkpoint.zipped_folder.directory import (
    open_archive,
)
from deltaweights.errors import DeltaweightsError, MalformedInput
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder
from tests.support.errors import facts
from tests.support.limits import MOMENT
from tests.support.params import few
from tests.support.zips import (
    CONFIG,
    CRC,
    FIFO,
    FOLDER,
    LINK,
    MEGA,
    MODEL,
    NOISE,
    PACKED,
    ROOT,
    SIZE,
    SOUND,
    WEIGHTS,
    Part,
    beside,
    changed,
    deflated,
    everything,
    join,
    opened,
    part,
    refusal,
    second_name,
    streamed,
    with_extra,
    written,
    zipped,
)

UNSAFE = "expected a plain relative path"


PLAIN = "expected a plain relative path of at most 1024 characters"


GIGA = 10**9


def sized(size: int, packed: int, *, name: str = MODEL) -> list[Part]:
    """Return members with false sizes: the archive ends before their bytes."""
    said = {"size": size, "packed": packed}
    return [part(name, WEIGHTS, local=said, central=said)]


def huge(*sizes: int) -> bytes:
    """Return the sound archive followed by members that claim these sizes in zip64 fields."""
    return join([*SOUND, *(wide(f"{ROOT}/model-{n}-of-9.bin", size) for n, size in enumerate(sizes))])


def wide(name: str, size: int) -> Part:
    """Return a member that claims, in zip64 fields, to inflate to ``size`` bytes."""
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


OVERLAPS = "overlaps what follows it, or runs past the end of the members"


DIFFERS = f"local and central header of zip member {MODEL} differ: found"


END = len(join(SOUND))


NOTHINGS = "before the archive or inside it that belong to nothing"


NO_COMMENT = "expected a comment of the length that the record says"


OUTER, INNER = zipped({MODEL: WEIGHTS}), zipped({MODEL: b"other"})


EXPECTED = f"expected CRC {CRC:#010x}, size {SIZE} packed into {PACKED}"


STORED_OR_DEFLATED = "expected stored or deflated"


AT = INNER.index(b"PK\1\2")


PACKED_ZEROS, PACKED_MANY = len(deflated(bytes(65 * MEGA))), 5 * len(deflated(bytes(13 * MEGA))) + PACKED


REFUSED: dict[str, tuple[bytes, str]] = {
    "row44-way-up": (beside(f"{ROOT}/../x"), f"unsafe name of a zip member: found {ROOT}/../x, {UNSAFE}"),
    "row44-way-up-first": (beside("../x"), f"unsafe name of a zip member: found ../x, {UNSAFE}"),
    "row44-here": (beside("./x"), f"unsafe name of a zip member: found ./x, {UNSAFE}"),
    "row44-absolute": (beside("/etc/x"), f"unsafe name of a zip member: found /etc/x, {UNSAFE}"),
    "row44-two-slashes": (beside("a//x"), f"unsafe name of a zip member: found a//x, {UNSAFE}"),
    "row44-only-a-slash": (beside("/"), f"unsafe name of a zip member: found /, {UNSAFE}"),
    "row44-empty": (beside(""), f"unsafe name of a zip member: found , {UNSAFE}"),
    "row44-backslash": (beside("a\\x"), f"unsafe name of a zip member: found a\\x, {UNSAFE}"),
    "row44-drive": (beside("C:/x"), f"unsafe name of a zip member: found C:/x, {PLAIN}"),
    "row44-nul": (beside("a\0.bin"), f"unsafe name of a zip member: found a\\x00.bin, {UNSAFE}"),
    "row44-control": (beside("a\x1b[2J"), f"unsafe name of a zip member: found a\\x1b[2J, {UNSAFE}"),
    "row44-not-utf8": (
        join([*SOUND, Part("", b"", flags=0, raw_name=b"\xb2\xe2")]),
        "the name of a zip member is not UTF-8: found b'\\xb2\\xe2'",
    ),
    "row44-long-path": (
        beside("/".join(["a" * 200] * 6)),
        f"unsafe name of a zip member: found {'a' * 80}, {PLAIN}",
    ),
    "row44-long-name": (
        beside(f"{ROOT}/{'é' * 121}"),
        f"file name is too long: found 242 bytes: {'é' * 80}, expected at most 240",
    ),
    "row45-link": (
        beside(f"{ROOT}/x", b"/etc/passwd", central={"external": LINK}),
        f"zip member {ROOT}/x is of another kind: found a symbolic link, expected a file",
    ),
    "row45-link-by-macos": (
        changed(central={"external": LINK, "made": 19 << 8}),
        f"zip member {MODEL} is of another kind: found a symbolic link, expected a file",
    ),
    "row45-fifo": (
        changed(central={"external": FIFO}),
        f"zip member {MODEL} is of another kind: found a device, expected a file",
    ),
    "row45-folder": (
        changed(central={"external": FOLDER}),
        f"zip member {MODEL} is of another kind: found a folder, expected a file",
    ),
    "row45-file-named-as-folder": (
        beside("x/", b"", method=0),
        "zip member x/ is of another kind: found a file, expected a folder",
    ),
    "row45-folder-with-content": (
        beside("x/", b"abc", method=0, central={"external": FOLDER}),
        "impossible sizes of zip member x/: found 3 bytes stored, expected 3",
    ),
    "row46-twice": (join([*SOUND, SOUND[0]]), f"duplicate member in the zip: found {CONFIG}"),
    "row46-case": (
        beside(f"{ROOT}/Config.json"),
        f"two members of the zip with one name: found {ROOT}/Config.json and {CONFIG}",
    ),
    "row46-folder-case": (
        beside(f"{ROOT.title()}/x"),
        f"two members of the zip with one name: found {MODEL} and {ROOT.title()}/x",
    ),
    "row46-sharp-s": (
        join([*SOUND, part("straße"), part("STRASSE")]),
        "two members of the zip with one name: found STRASSE and straße",
    ),
    "row46-composition": (
        join([*SOUND, part("é"), part(unicodedata.normalize("NFD", "é"))]),
        f"two members of the zip with one name: found {unicodedata.normalize('NFD', 'é')} and é",
    ),
    "row46-file-and-folder": (
        beside(f"{CONFIG}/x"),
        f"two members of the zip with one name: found {CONFIG} and {CONFIG}/x",
    ),
    "row46-file-and-empty-folder": (
        beside(f"{CONFIG}/", b"", central={"external": FOLDER}),
        f"two members of the zip with one name: found {CONFIG} and {CONFIG}/",
    ),
    "row47-ratio-impossible": (
        changed(content=bytes(10**6), packed=deflated(b"x")),
        f"zip member {MODEL} is a bomb: found 3 bytes that unpack to 1000000, expected at most 1032 times as many",
    ),
    "row47-ratio-of-weights": (
        changed(content=bytes(65 * MEGA)),
        f"the archive is a bomb: found {PACKED_ZEROS} bytes that unpack to 68157440, expected at most 100 times as many",
    ),
    "row47-ratio-of-many-weights": (
        zipped({MODEL: WEIGHTS, **{f"{ROOT}/model-{n}-of-9.bin": bytes(13 * MEGA) for n in range(5)}}, level=6),
        f"the archive is a bomb: found {PACKED_MANY} bytes that unpack to 68167680, expected at most 100 times as many",
    ),
    "row47-beside-the-weights": (
        zipped({f"{ROOT}/{n}": bytes(33 * MEGA) for n in sorted(COPIED)[:4]} | {MODEL: WEIGHTS}, level=1),
        "the files beside the weights are too large: found 138 MB, expected at most 134 MB",
    ),
    "row47-member": (
        huge(257 * GIGA),
        f"zip member {ROOT}/model-0-of-9.bin is too large: found 257 GB, expected at most 256 GB",
    ),
    "row47-all": (
        huge(*[250 * GIGA] * 5),
        "the members of the zip are too large: found 1.25 TB, expected at most 1 TB",
    ),
    "row47-nothing-from-much": (
        changed(content=b"", packed=deflated(NOISE)),
        f"impossible sizes of zip member {MODEL}: found 1029 bytes deflated, expected 0",
    ),
    "row47-members": (
        join([*SOUND, *(part(f"{n}") for n in range(9_999))]),
        "too many members in the zip: found 10001, expected at most 10000",
    ),
    "row47-directory": (
        join(SOUND, end={"size": 2**24 + 1}),
        "oversized zip central directory: found 16777217 bytes, expected at most 16777216",
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
        f"bytes after zip member {CONFIG} that belong to nothing: found 4, expected [0]",
    ),
    "row48-before": (
        b"#!" + join(SOUND),
        f"2 bytes {NOTHINGS}: found zip64 end record at byte {END - 96}, expected at byte {END - 98}",
    ),
    "row48-after": (
        join(SOUND) + b"junk",
        f"bytes after the archive: found 4 bytes after the end record, {NO_COMMENT}",
    ),
    "row48-second-archive-as-comment": (
        zipped({MODEL: WEIGHTS}, comment=INNER),
        f"{len(OUTER)} bytes {NOTHINGS}: found central directory at byte {len(OUTER) + AT}, expected at byte {AT}",
    ),
    "row48-second-archive-in-comment": (
        zipped({MODEL: WEIGHTS}, comment=INNER + b"x"),
        f"bytes after the archive: found 1 bytes after the end record, {NO_COMMENT}",
    ),
    "row48-local-name": (
        changed(local={"name": MODEL.encode()[:-1] + b"m"}),
        f"local and central name of a zip member differ: found b'{MODEL[:-1]}m', expected {MODEL}",
    ),
    "row48-local-method": (
        changed(local={"method": 0}),
        f"{DIFFERS} (0, 0)",
    ),
    "row48-local-sizes-exchanged": (
        changed(local={"packed": SIZE, "size": PACKED}),
        f"{DIFFERS} CRC {CRC:#010x}, sizes ({SIZE}, {PACKED}), {EXPECTED}",
    ),
    "row48-second-name": (
        with_extra(0x7075, second_name(b"x")),
        f"zip member {MODEL} has a second name: found x",
    ),
    "row48-second-name-in-local": (
        with_extra(0x7075, second_name(b"x"), local=True),
        f"zip member {MODEL} has a second name: found x",
    ),
    "row48-zip64-field-not-due": (
        with_extra(0x0001, bytes(8)),
        f"invalid zip64 field of zip member {MODEL}: found 8 bytes, expected 0",
    ),
    "row48-flags": (
        changed(flags=0x0020),
        f"zip member {MODEL} has flags that a usual tool does not write: found 0x0020",
    ),
    "row49-nested-zip": (
        zipped({f"{ROOT}/a.zip": b"", f"{ROOT}/b.tar.gz": b"", CONFIG: b"{}"}),
        f"an archive inside the archive, and no weights: found {ROOT}/a.zip, {ROOT}/b.tar.gz, {NO_WEIGHTS}",
    ),
    "row49-no-weights": (
        zipped({f"{n}.txt": b"" for n in range(6)}),
        f"no weights in the archive: found 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 1 more, {NO_WEIGHTS}",
    ),
    "row49-only-macos": (
        zipped({f"__MACOSX/{MODEL}": WEIGHTS}),
        f"no weights in the archive: found no files, {NO_WEIGHTS}",
    ),
    "row49-two-folders": (
        zipped({MODEL: b"", "consolidated.00.pth": b"", "other/model.safetensors": b""}),
        f"more than one folder with weights in the archive: found its top and {ROOT}/ and other/",
    ),
    "row49-encrypted": (changed(flags=0x0001), f"zip member {MODEL} is encrypted"),
    "row49-encrypted-strongly": (changed(flags=0x0041), f"zip member {MODEL} is encrypted"),
    "row49-encrypted-by-winzip": (changed(method=99), f"zip member {MODEL} is encrypted"),
    "row49-encryption-field": (with_extra(0x9901, bytes(7)), f"zip member {MODEL} is encrypted"),
    "row49-encryption-field-strong": (
        with_extra(0x0017, bytes(8), local=True),
        f"zip member {MODEL} is encrypted",
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
        f"truncated: the zip has no end record: found {len(join(SOUND)) - 1} bytes",
    ),
    "row49-page": (
        b"<!DOCTYPE html><html>",
        "not a zip archive: found an HTML page",
    ),
    "row49-empty-archive": (zipped({}), "an archive without members"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_written(tmp_path: Path, content: bytes, message: str) -> None:
    """An archive with one fault in its records is refused at once, before anything is unpacked."""
    path = written(tmp_path, content)
    began = time.process_time()
    with pytest.raises(MalformedInput) as caught:
        open_archive(path, lambda: pytest.fail("nothing may be unpacked"), Report())
    assert facts(caught.value) == message
    assert (caught.value.where, bool(caught.value.remedy)) == (path, True)
    assert time.process_time() - began < MOMENT


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
def test_damaged_contents_leave_nothing(tmp_path: Path, unpacked: Path, content: bytes, message: str) -> None:
    """A member with other content than recorded is refused at once, and nothing of the archive is left."""
    path = written(tmp_path, content)
    began = time.process_time()
    with pytest.raises(MalformedInput) as caught:
        open_archive(path, lambda: OpenFolder.at(unpacked), Report())
    assert facts(caught.value) == message
    assert caught.value.where == path / MODEL
    assert time.process_time() - began < MOMENT
    assert list(unpacked.iterdir()) == []


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
def test_what_usual_tools_write_passes(tmp_path: Path, unpacked: Path, content: bytes) -> None:
    """Fields that tools add without changing the meaning are ignored, and the weights are read unchanged."""
    with opened(written(tmp_path, content), unpacked) as directory:
        assert directory.read("pytorch_model.bin", 2**20) == WEIGHTS


def test_errors_close_the_archive(tmp_path: Path, unpacked: Path) -> None:
    """Neither a refused archive nor one that was read and closed leaves a descriptor open."""
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    for content in (*(content for content, _ in DAMAGED.values()), join(SOUND)[:-1]):
        refusal(written(tmp_path, content), MalformedInput, unpacked)
    with opened(written(tmp_path, zipped({MODEL: WEIGHTS}))) as directory:
        directory.open("pytorch_model.bin").close()
        assert directory.read("pytorch_model.bin", 2**20) == WEIGHTS  # closing one file leaves the archive open
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


FUZZED = {"config.json": b'{"a": [1, 2, 3]}', "pytorch_model.bin": WEIGHTS[:700], "README.md": b"x" * 50}


FUZZED_ARCHIVES = {
    "deflated": zipped({f"{ROOT}/{name}": content for name, content in FUZZED.items()}, level=6, comment=b"hello"),
    "streamed": streamed({f"{ROOT}/{name}": content for name, content in FUZZED.items()}),
    "stored": zipped({f"{ROOT}/": b"", **{f"{ROOT}/{name}": content for name, content in FUZZED.items()}}),
    "zip64": zipped({f"{ROOT}/{name}": content for name, content in FUZZED.items()}, level=6, zip64=True),
    "fields": with_extra(0x000A, bytes(32)),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mask", few([None, 0x01, 0x80, 0xFF], 1))
@pytest.mark.parametrize("which", FUZZED_ARCHIVES)
def test_any_changed_byte_is_noticed_or_harmless(tmp_path: Path, unpacked: Path, which: str, mask: int | None) -> None:
    """After any one byte is changed, by ``mask`` or in one bit, the archive is refused, or its files are the same."""
    data = FUZZED_ARCHIVES[which]
    with opened(written(tmp_path, data), unpacked) as directory:
        expected = everything(directory)
    refused = 0
    unpacked = tmp_path / "each"
    for at in range(len(data)):
        path = written(tmp_path, data[:at] + bytes([data[at] ^ (mask or 1 << at % 8)]) + data[at + 1 :])
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        try:
            with opened(path, unpacked) as directory:
                assert everything(directory) == expected
        except DeltaweightsError as error:
            assert type(error) is MalformedInput  # noqa: PT017
            refused += 1
    assert refused > len(data) // 3  # the rest are times, owners, and who made it
