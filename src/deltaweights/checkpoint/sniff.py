"""What a file is when it is not what its name says.

Enters: the first bytes of a file that a reader could not read. Leaves: what it is and what to do, in words, or None when the bytes
say nothing. Never: a decision whether a file is sound; that is the readers' part.
"""

from __future__ import annotations

import tarfile

HEAD_BYTES = 512
"""As many bytes as ``what_is_it`` looks at."""

LEGACY_TORCH = b"\x80\x02\x8a\x0a"
"""How files of torch before 1.6 begin: a pickle of protocol 2, and in it a number of ten bytes, the magic number."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""How a file begins that a clone without git-LFS leaves in place of a large one."""

_MAX_SAFETENSORS_HEADER = 100_000_000

_BY_PREFIX: tuple[tuple[bytes, str, str], ...] = (
    (LFS_POINTER, "a git-LFS pointer", "run git lfs pull in its folder, or download the file itself"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes", "if it holds tensors, name it .bin or .pth"),
    (LEGACY_TORCH, "a file in torch's legacy format", "if it holds tensors, name it .bin or .pth"),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
)

_NO_PAGE = "download the file itself, not a page; a private file needs a login"
_NO_TEXT = "it may hold a server's error: see what it says, and download again"
_BY_TEXT: tuple[tuple[bytes, str, str], ...] = (
    (b"<!doctype html", "an HTML page", _NO_PAGE),
    (b"<html", "an HTML page", _NO_PAGE),
    (b"<?xml", "a text document", _NO_TEXT),
    (b"{", "a text document", _NO_TEXT),
)


def looks_like_safetensors(head: bytes) -> bool:
    """Tell whether ``head`` is a length and the beginning of a JSON object, as in every safetensors file."""
    return int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER and head[8:9] == b"{"


def is_tar(head: bytes) -> bool:
    """Tell whether ``head`` is the beginning of a tar archive, as ``tarfile`` sees it: by the first block's checksum."""
    try:
        tarfile.TarInfo.frombuf(head[:HEAD_BYTES], "ascii", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def what_is_it(head: bytes) -> tuple[str, str] | None:
    """Return what the file that begins with ``head`` is, and what to do about it; None when unknown, or for safetensors."""
    if not head:
        return "an empty file", "download it again"
    if looks_like_safetensors(head):  # first, since a length may spell anything: 35,615 is the magic number of gzip
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


def what_stands_for(name: str, head: bytes) -> tuple[str, str] | None:
    """Return what stands in place of the small file ``name`` that begins with ``head``, as ``what_is_it`` does; None when unknown.

    A git-LFS pointer may stand in place of any; of a tokenizer.model whatever is known may, and of a .json what cannot be JSON.
    Other text may begin as it likes: a README as a page does, a chat template with a brace.
    """
    cannot_be = name.endswith(".model") or (name.endswith(".json") and b"{" not in head[:8])
    return what_is_it(head) if cannot_be or head.startswith(LFS_POINTER) else None
