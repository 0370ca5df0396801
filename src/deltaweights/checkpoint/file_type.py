"""Tell from its first bytes what a file is that is not what its name says."""

from __future__ import annotations

import tarfile

from deltaweights.error_codes import ErrorCode

HEAD_BYTES = 512
"""How many bytes ``detect_file_type`` looks at."""

LEGACY_TORCH = b"\x80\x02\x8a\x0a"
"""The start of files of torch before 1.6: a pickle of protocol 2, and in it a number of ten bytes, the magic number."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""The start of the file that a clone without git-LFS leaves in place of a large one."""

A_POINTER, AN_EMPTY_FILE = "a git-LFS pointer", "an empty file"

GGUF = b"GGUF"
GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")
"""The start of llama.cpp's files: of today's, and of those before (ggml, ggmf, ggjt, ggla as a little-endian number)."""

CONVERTED_FROM = "give the checkpoint that it was made from, in safetensors, torch's or Meta's format"

_MAX_SAFETENSORS_HEADER = 100_000_000

_BY_PREFIX: tuple[tuple[bytes, str, str], ...] = (
    (LFS_POINTER, A_POINTER, "run git lfs pull in its folder, or download the file itself"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes", "if it holds tensors, name it .bin or .pth"),
    (LEGACY_TORCH, "a file in torch's legacy format", "if it holds tensors, name it .bin or .pth"),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
    (b"BZh", "a bzip2 file", "unpack it first"),
    (b"\xfd7zXZ\0", "an xz file", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it first"),
    (GGUF, "a GGUF file of llama.cpp", CONVERTED_FROM),
    *((magic, "a GGML file of llama.cpp", CONVERTED_FROM) for magic in GGML),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", CONVERTED_FROM),
    (
        b"\0" * 64,
        "zeros where the content should begin",
        "the download was not finished, or the disk full: fetch it again",
    ),
)

_NOT_A_PAGE = "download the file itself, not a page; a private file needs a login"
_MAYBE_AN_ERROR = "it may be a server's error message: read it, and download again"
A_TEXT = ("a text document", _MAYBE_AN_ERROR)
_BY_TEXT: tuple[tuple[bytes, str, str], ...] = (
    (b"<!doctype html", "an HTML page", _NOT_A_PAGE),
    (b"<html", "an HTML page", _NOT_A_PAGE),
    (b"<?xml", "a text document", _MAYBE_AN_ERROR),
    (b"{", "a text document", _MAYBE_AN_ERROR),
)


def looks_like_safetensors(head: bytes) -> bool:
    """Return whether ``head`` starts with a length and the beginning of a JSON object."""
    return int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER and head[8:9] == b"{"


def looks_like_easylm(head: bytes) -> bool:
    """Return whether ``head`` starts with a msgpack pair whose first member is a list of strings, as EasyLM's streams do."""
    return len(head) > 2 and head[0] == 0x92 and head[1] in range(0x91, 0xA0) and head[2] in range(0xA1, 0xC0)


def is_tar(head: bytes) -> bool:
    """Return whether ``head`` is the start of a tar archive, as ``tarfile`` decides it: by the first block's checksum."""
    try:
        tarfile.TarInfo.frombuf(head[:HEAD_BYTES], "ascii", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def detect_file_type(head: bytes) -> tuple[str, str] | None:
    """Return what a file starting with ``head`` is, and a remedy; None if unknown, or safetensors."""
    if not head:
        return AN_EMPTY_FILE, "download it again"
    if looks_like_safetensors(head):  # first, since a length can spell anything: 35,615 is gzip's magic number
        return None
    for prefix, what, remedy in _BY_PREFIX:
        if head.startswith(prefix):
            return what, remedy
    if is_tar(head):
        return "a tar archive", "unpack it first"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for prefix, what, remedy in _BY_TEXT:
        if text.startswith(prefix) and b"\0" not in text:
            return what, remedy
    return None


def code_of_type(what: str) -> ErrorCode:
    """Return the code for a file that is ``what`` instead of weights, as ``detect_file_type`` says it."""
    if what == A_POINTER:
        return ErrorCode.LFS_POINTER
    return ErrorCode.INCOMPLETE if what == AN_EMPTY_FILE else ErrorCode.UNSUPPORTED_FORMAT


def detect_wrong_content(name: str, head: bytes) -> tuple[str, str] | None:
    """Return what a file ``name`` starting with ``head`` really is, and a remedy; None if nothing is known to be wrong."""
    # A pointer can replace any file, and other text may start in any way: a README like HTML, a chat template with a brace.
    is_suspicious = name.endswith(".model") or (name.endswith(".json") and b"{" not in head[:8])
    return detect_file_type(head) if is_suspicious or head.startswith(LFS_POINTER) else None
