"""Tar archives that programs read differently: what is verified would not be what is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaweights.errors import MalformedInput
from deltaweights.manifest.verify import verify
from tests.receiver.forms import SHARD
from tests.support.errors import refused
from tests.support.results import merged, original

__all__ = ["merged", "original"]  # fixtures

pytestmark = pytest.mark.receiver

END = bytes(1024)
WEIGHTS, NOTES = f"merged/{SHARD}".encode(), b"merged/notes.md"


def member(name: bytes, data: bytes = b"", kind: bytes = b"0") -> bytes:
    """Return a header and padded content. The type is set afterwards: ``tarfile`` writes no size for some."""
    info = tarfile.TarInfo(name.decode())
    info.size = len(data)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" %b=%b\n" % (key, value)
    length = next(length for length in range(len(rest), len(rest) + 9) if len(str(length)) + len(rest) == length)
    return b"%d%b" % (length, rest)


def attributes(*pairs: tuple[bytes, bytes]) -> bytes:
    return member(b"pax", b"".join(record(*pair) for pair in pairs), b"x")


def long_name(name: bytes) -> bytes:
    return member(b"././@LongLink", name + b"\0", b"L")


OTHER = member(WEIGHTS, b"other weights")  # hidden where our reader would not look

TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a long name, and one among attributes": (
        lambda: long_name(WEIGHTS) + attributes((b"path", NOTES)) + member(b"x", b"other weights"), "a second name for one member",
    ),
    "a name among attributes, and a long one": (
        lambda: attributes((b"path", WEIGHTS)) + long_name(NOTES) + member(b"x", b"other weights"), "a second name for one member",
    ),
    "two long names": (
        lambda: long_name(WEIGHTS) + long_name(NOTES) + member(b"x", b"other weights"), "a second name for one member",
    ),
    "attributes twice": (
        lambda: attributes((b"path", WEIGHTS)) + attributes((b"path", NOTES)) + member(b"x", b"?"), "a second name for one member",
    ),
    "two names in one attribute list": (
        lambda: attributes((b"path", WEIGHTS), (b"path", NOTES)) + member(b"x", b"?"), "a second name for one member",
    ),
    "two sizes": (lambda: attributes((b"size", b"1024")) + member(NOTES) + OTHER, "a second size for one member"),
    "a folder of the oldest kind with content": (lambda: member(NOTES + b"/", OTHER, b"\0"), "content of what is no file"),
    "a folder with content": (lambda: member(b"merged/.cache", OTHER, b"5"), "content of what is no file"),
    "a hard link with content": (lambda: member(b"merged/.cache/x", OTHER, b"1"), "content of what is no file"),
    "attributes of Solaris": (
        lambda: member(b"merged/.cache/x", record(b"path", WEIGHTS), b"X") + member(NOTES, b"?"), "content of what is no file",
    ),
    "members behind the end": (lambda: END + OTHER, "something behind the end of the archive"),
    "members behind half an end": (lambda: bytes(512) + OTHER, "something behind the end of the archive"),
    "members far behind the end": (lambda: bytes(2 * 2**20) + OTHER, "something behind the end of the archive"),
    "a name without a member": (lambda: long_name(WEIGHTS), "something behind the end of the archive"),
    "a member below a file": (lambda: member(WEIGHTS + b"/x.md", b"?"), "a member inside of what is no folder"),
    "a member below a link": (
        lambda: member(b"merged/.cache/x", kind=b"2") + member(b"merged/.cache/x/y", b"?"), "a member inside of what is no folder",
    ),
    "a folder in place of a file": (lambda: member(WEIGHTS, kind=b"5"), "two members of one name"),
    "folders without end": (lambda: attributes((b"path", b"a/" * 40_000 + b"a")) + member(b"x"), "a member too deep in folders"),
}  # fmt: skip
"""By name: what stands in the archive behind the whole result, and what is said of it."""


@pytest.mark.parametrize(("more", "problem"), TARS.values(), ids=TARS)
def test_what_programs_read_differently_is_refused(
    more: Callable[[], bytes], problem: str, merged: Path, tmp_path: Path
) -> None:
    """The result alone verifies; with a member that GNU tar, Python or another program may see otherwise, nothing does."""
    path = tmp_path / "received.tar"
    whole = b"".join(member(f"merged/{each.name}".encode(), each.read_bytes()) for each in sorted(merged.iterdir()))
    path.write_bytes(whole + END)
    assert verify(path).ok
    path.write_bytes(whole + more() + END)
    with refused(MalformedInput, problem=problem):
        verify(path)


def test_usual_names_and_sizes_are_read(merged: Path, tmp_path: Path) -> None:
    """A member may have one name among its attributes, or one long name, other attributes, and a size."""
    path = tmp_path / "received.tar"
    whole = b"".join(member(f"merged/{each.name}".encode(), each.read_bytes()) for each in sorted(merged.iterdir()))
    long = attributes((b"mtime", b"1.5")) + long_name(b"merged/" + 120 * b"n" + b".md") + member(b"x", b"?")
    also = attributes((b"path", NOTES), (b"size", b"1"), (b"mtime", b"1.5")) + member(b"x", b"?")
    path.write_bytes(whole + long + also + END * 9)
    report = verify(path)
    assert report.ok
    assert len(report.notes) == 2
