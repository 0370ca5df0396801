"""Which members of a zip archive are a checkpoint.

Enters: the parsed archive of a zipped folder. Leaves: the files of the one folder in it that holds weights, by their plain names,
all known to be harmless. Never: a path that leads out of the archive, two names for one file, a bomb, or a byte of a member.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from deltaweights.checkpoint.layout import PART, STARTS
from deltaweights.checkpoint.zipped.archive import Member
from deltaweights.checkpoint.zipped.rules import CHECKPOINT
from deltaweights.errors import MalformedInput
from deltaweights.util.sizes import human_bytes

MOST_NAME, MOST_PATH = 240, 1024
"""Bytes of a file's name (file systems take 255, and something is added while it is written), and characters of a path."""

MOST_BYTES, MOST_BYTES_OF_ALL = 256 * 10**9, 10**12
"""Content of one member and of all members; the largest LLaMA has 130 GB in float16."""

MOST_RATIO = 1032
"""Deflate cannot make more of one byte (258 bytes of two bits)."""

LIKELY_RATIO, LIKELY_BELOW = 100, 64 * 2**20
"""Bytes of content per packed byte that all weights together stay below, unless they are few: trained ones have less than 2, a
delta in float32 of which one weight in a hundred is not zero less than 75; a file of zeros may stand among others."""

MOST_BESIDE = 128 * 2**20
"""Content of all files beside the weights, which may come to be in memory together: a tokenizer has some 20 MB."""

_TRUSTED = "if you trust the archive, unpack it and give the folder"

_NESTED = re.compile(r".*\.(zip|tar|tgz|gz|bz2|xz|zst|7z|rar)", re.IGNORECASE)


def begins_weights(path: str) -> bool:
    """Tell whether ``path`` in an archive is a file by which a checkpoint's weights begin."""
    _, name = _split(path)
    return name in STARTS or PART.fullmatch(name) is not None


def find_checkpoint(where: Path, members: Iterable[Member]) -> tuple[str, dict[str, Member]]:
    """Return the folder that holds weights ("" for the top of the archive), and the files right in it by name.

    Raises ``MalformedInput``, about the archive at ``where``, when there is no such folder or more than one, and when a member of
    the archive, wherever it is, has a hostile name or size.
    """
    members = tuple(members)
    _refuse_names(where, members)
    _refuse_bombs(where, members)
    files = [member for member in members if not member.name.endswith("/") and not _is_passed_over(member.name)]
    folders = sorted({_split(member.name)[0] for member in files if begins_weights(member.name)})
    if not folders:
        raise _no_weights(where, [member.name for member in files])
    if len(folders) > 1:
        problem, remedy = "more than one folder with weights in the archive", "unpack it and give the one you mean"
        found = " and ".join(f"{folder}/" if folder else "its top" for folder in folders[:4])
        raise MalformedInput(problem, where=where, found=found, remedy=remedy)
    inside = {_split(member.name)[1]: member for member in files if _split(member.name)[0] == folders[0]}
    for name in inside:
        if len(name.encode()) > MOST_NAME:
            found, expected = f"{len(name.encode())} bytes: {name[:80]}", f"at most {MOST_NAME}"
            raise MalformedInput("a file name too long", where=where, found=found, expected=expected, remedy=_TRUSTED)
    return folders[0], inside


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _is_passed_over(path: str) -> bool:
    """Tell whether macOS added ``path`` for itself."""
    return path.startswith("__MACOSX/") or _split(path)[1] == ".DS_Store"


def _no_weights(where: Path, names: list[str]) -> MalformedInput:
    nested = [name for name in names if _NESTED.fullmatch(name)]
    shown = nested or sorted(names)
    found = ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
    expected = " or ".join((*STARTS, "consolidated.00.pth"))
    if nested:
        problem, remedy = "an archive inside the archive, and no weights", "unpack it first"
    else:
        problem, remedy = "no weights in the archive", "give the archive of a folder with weights"
    return MalformedInput(problem, where=where, found=found or "no files", expected=expected, remedy=remedy)


def _refuse_names(where: Path, members: Iterable[Member]) -> None:
    """Refuse paths that mean something else to other systems, and two that are one where case and composition do not count."""
    for member in members:
        if re.match("[A-Za-z]:", member.name) or len(member.name) > MOST_PATH:
            found, expected = member.name[:80], f"a plain relative path of at most {MOST_PATH} characters"
            problem, remedy = "unsafe name of a zip member", CHECKPOINT.remedy
            raise MalformedInput(problem, where=where, found=found, expected=expected, remedy=remedy)
    # In this order, all paths below one folder follow each other, and right after a file of the folder's name.
    names = sorted(
        (member.name for member in members), key=lambda name: (folded(name.rstrip("/")).replace("/", "\0"), name)
    )
    for one, other in pairwise(names):
        for here, there in zip(one.split("/"), other.split("/"), strict=False):  # a folder's name ends in an empty part
            if folded(here) != folded(there):
                break
            if here != there:
                raise _one_name(where, one, other)
        else:
            raise _one_name(where, one, other)


def _one_name(where: Path, one: str, other: str) -> MalformedInput:
    problem = "two members of the zip with one name"
    return MalformedInput(problem, where=where, found=f"{one} and {other}", remedy=CHECKPOINT.remedy)


def folded(path: str) -> str:
    """Return ``path`` as file systems compare it that ignore case and composition (as macOS's do)."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _refuse_bombs(where: Path, members: Sequence[Member]) -> None:
    for member in members:
        if member.size > MOST_BYTES:
            problem, expected = f"zip member {member.name} is too large", f"at most {human_bytes(MOST_BYTES)}"
            raise MalformedInput(
                problem, where=where, found=human_bytes(member.size), expected=expected, remedy=_TRUSTED
            )
    total = sum(member.size for member in members)
    if total > MOST_BYTES_OF_ALL:
        problem, expected = "the members of the zip are too large", f"at most {human_bytes(MOST_BYTES_OF_ALL)}"
        raise MalformedInput(problem, where=where, found=human_bytes(total), expected=expected, remedy=_TRUSTED)
    for member in members:
        if member.size > MOST_RATIO * member.packed:
            raise _bomb(where, f"zip member {member.name} is a bomb", member.packed, member.size, MOST_RATIO)


def refuse_bomb(where: Path, weights: Collection[Member], beside: Collection[Member]) -> None:
    """Raise ``MalformedInput`` when the files that a checkpoint uses, its weights and those beside them, would fill the disk.

    One member says little: one may be all zeros. Together they are held against what the archive itself takes, which the user saw.
    """
    size, packed = sum(member.size for member in weights), sum(member.packed for member in weights)
    if size > max(LIKELY_BELOW, LIKELY_RATIO * packed):
        raise _bomb(where, "the archive is a bomb", packed, size, LIKELY_RATIO)
    size = sum(member.size for member in beside)
    if size > MOST_BESIDE:
        problem, expected = "the files beside the weights are too large", f"at most {human_bytes(MOST_BESIDE)}"
        raise MalformedInput(problem, where=where, found=human_bytes(size), expected=expected, remedy=_TRUSTED)


def _bomb(where: Path, problem: str, packed: int, size: int, most: int) -> MalformedInput:
    found, expected = f"{packed} bytes that stand for {size}", f"at most {most} times as many"
    return MalformedInput(problem, where=where, found=found, expected=expected, remedy=_TRUSTED)
