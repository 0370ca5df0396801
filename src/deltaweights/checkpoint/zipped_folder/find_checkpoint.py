"""Find the checkpoint's folder in a zip archive, and refuse hostile names and sizes anywhere in the archive."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from deltaweights.checkpoint.foreign.listing import FolderListing, Subject, some
from deltaweights.checkpoint.foreign.recognise import recognise
from deltaweights.checkpoint.layout_names import EXPECTED, MAIN_FILES, META_PART
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.zip_format.archive import Member
from deltaweights.checkpoint.zip_format.rules import FOLDER_ZIP
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput
from deltaweights.util.litter import is_litter
from deltaweights.util.sizes import human_bytes

MAX_NAME, MAX_PATH = 240, 1024
"""Bytes of a file name (file systems allow 255, and unpacking appends a suffix), and characters of a path."""

MAX_BYTES, MAX_TOTAL = 256 * 10**9, 10**12
"""Content of one member and of all members; the largest LLaMA has 130 GB in float16."""

MAX_RATIO = 1032
"""Deflate cannot make more bytes of one (258 bytes of two bits)."""

LIKELY_RATIO, LIKELY_BELOW = 100, 64 * 2**20
"""The ratio that all weights together must stay below, unless they are this small. Trained weights have less than 2, a
delta in float32 of which one weight in a hundred is not zero less than 75; one file may be all zeros."""

MAX_BESIDE = 128 * 2**20
"""Content of all files beside the weights, which may be in memory together: a tokenizer has some 20 MB."""

_TRUSTED = "if you trust the archive, unpack it and give the folder"

_NESTED = re.compile(r".*\.(zip|tar|tgz|gz|bz2|xz|zst|7z|rar)", re.IGNORECASE)


def is_main_weights(path: str) -> bool:
    """Return whether ``path`` in an archive is an index, an only weights file, or a part in Meta's format."""
    _, name = _split(path)
    return name in MAIN_FILES or META_PART.fullmatch(name) is not None


def find_checkpoint(where: Path, members: Iterable[Member]) -> tuple[str, dict[str, Member]]:
    """Return the only folder with weights ("" for the archive's top), and the files in it by name. Raises ``MalformedInput``."""
    members, malformed = tuple(members), MalformedAt(where, _TRUSTED)
    _refuse_names(where, members)
    _refuse_sizes(where, members)
    files = [member for member in members if not member.name.endswith("/") and not _is_litter(member.name)]
    folders = sorted({_split(member.name)[0] for member in files if is_main_weights(member.name)})
    if not folders:
        raise _no_weights(where, {member.name: member.size for member in files})
    if len(folders) > 1:
        found = " and ".join(f"{folder}/" if folder else "its top" for folder in folders[:4])
        remedy = "unpack it and give the one you mean"
        raise malformed("more than one folder with weights in the archive", found, remedy=remedy)
    inside = {_split(member.name)[1]: member for member in files if _split(member.name)[0] == folders[0]}
    for name in inside:
        length = len(name.encode())
        if length > MAX_NAME:
            raise malformed("file name is too long", f"{length} bytes: {name[:80]}", f"at most {MAX_NAME}")
    return folders[0], inside


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _is_litter(path: str) -> bool:
    return any(map(is_litter, path.split("/")))


def _no_weights(where: Path, sizes: Mapping[str, int]) -> MalformedInput:
    nested = [name for name in sizes if _NESTED.fullmatch(name)]
    if nested:
        return MalformedAt(where, "unpack it first")(
            "an archive inside the archive, and no weights", some(nested, 5), EXPECTED, code=ErrorCode.NO_WEIGHTS
        )
    known = recognise(Subject("", FolderListing.of(sizes)))
    found = known.found if known.remedy else some(sorted(sizes), 5) or "no files"
    malformed = MalformedAt(where, "give the archive of a folder with weights")
    return malformed("no weights in the archive", found, EXPECTED, code=ErrorCode.NO_WEIGHTS)


def _refuse_names(where: Path, members: Iterable[Member]) -> None:
    """Refuse paths that mean something else on other systems, and two that are equal on some file systems."""
    malformed = MalformedAt(where, FOLDER_ZIP.remedy)
    for member in members:
        if re.match("[A-Za-z]:", member.name) or len(member.name) > MAX_PATH:
            expected = f"a plain relative path of at most {MAX_PATH} characters"
            raise malformed("unsafe name of a zip member", member.name[:80], expected)
    # Sorted like this, all paths below one folder follow each other, directly after a file of the folder's name.
    names = sorted(
        (member.name for member in members), key=lambda name: (folded(name.rstrip("/")).replace("/", "\0"), name)
    )
    for one, other in pairwise(names):
        for here, there in zip(one.split("/"), other.split("/"), strict=False):  # a folder's name ends in an empty part
            if here != there:
                break
        if folded(here) == folded(there):  # also if one path is the start of the other
            raise malformed("two members of the zip with one name", f"{one} and {other}")


def folded(path: str) -> str:
    """Return ``path`` as it is compared by file systems that ignore case and Unicode composition (macOS's do)."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _refuse_sizes(where: Path, members: Sequence[Member]) -> None:
    for member in members:
        _refuse_large(where, f"zip member {member.name} is too large", member.size, MAX_BYTES)
    _refuse_large(where, "the members of the zip are too large", sum(member.size for member in members), MAX_TOTAL)
    for member in members:
        if member.size > MAX_RATIO * member.packed:
            raise _bomb(where, f"zip member {member.name} is a bomb", member.packed, member.size, MAX_RATIO)


def _refuse_large(where: Path, problem: str, size: int, most: int) -> None:
    if size > most:
        raise MalformedAt(where, _TRUSTED)(problem, human_bytes(size), f"at most {human_bytes(most)}")


def refuse_bomb(where: Path, weights: Collection[Member], beside: Collection[Member]) -> None:
    """Refuse files that would fill the disk: weights together, since one file may be all zeros. Raises ``MalformedInput``."""
    size, packed = sum(member.size for member in weights), sum(member.packed for member in weights)
    if size > max(LIKELY_BELOW, LIKELY_RATIO * packed):
        raise _bomb(where, "the archive is a bomb", packed, size, LIKELY_RATIO)
    size = sum(member.size for member in beside)
    _refuse_large(where, "the files beside the weights are too large", size, MAX_BESIDE)


def _bomb(where: Path, problem: str, packed: int, size: int, most: int) -> MalformedInput:
    found, expected = f"{packed} bytes that unpack to {size}", f"at most {most} times as many"
    return MalformedAt(where, _TRUSTED)(problem, found, expected)
