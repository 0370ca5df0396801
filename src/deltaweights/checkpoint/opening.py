"""Files opened relative to an open folder, so that what was looked at is what is read.

Enters: an open folder, and a name in it. Leaves: a descriptor. Never: a path that is resolved first and opened afterwards: whoever
owns the folder could change it in between.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever."""

SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""For a folder in which names are looked up. On Linux it need not be readable."""

MOST_LINKS, MOST_LEVELS = 16, 64
"""Links from a name to its file, and folders between it and the one that it must be in."""


class Outside(Exception):
    """A link leads out of the folder, and not into the blobs of the Hub's cache."""


def open_inside(folder: int, name: str) -> int:
    """Open the file ``name`` of the open ``folder`` for reading; links may lead to files in it, or to blobs of the Hub's cache.

    Each link's text is read once, the folder that it names is opened and, as an open folder, compared with those that are allowed;
    the file is then opened in there, and never by another link. Raises ``Outside`` and ``OSError``.
    """
    with ExitStack() as stack:
        place = folder
        for _ in range(MOST_LINKS):
            try:
                return os.open(name, READ | os.O_NOFOLLOW, dir_fd=place)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
            try:
                head, tail = os.path.split(os.readlink(name, dir_fd=place))
            except OSError as error:
                if error.errno == errno.EINVAL:  # no link any more
                    continue
                raise
            before, place = place, os.open(head or ".", SEARCH, dir_fd=place)
            stack.callback(os.close, place)
            if not (_is_in(folder, place) or _is_of_cache(folder, before, place)):
                raise Outside
            name = tail or "."
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def where_led(path: Path) -> str:
    """Return where a path leads just now, for messages."""
    try:
        return os.path.realpath(path)
    except OSError:  # it is being changed
        return "another place"


def _is_in(folder: int, place: int) -> bool:
    """Tell whether the open folder ``place`` is ``folder``, or in it."""
    wanted = os.fstat(folder)
    with ExitStack() as stack, suppress(OSError):
        for _ in range(MOST_LEVELS):
            here = os.fstat(place)
            if os.path.samestat(here, wanted):
                return True
            place = os.open("..", SEARCH, dir_fd=place)
            stack.callback(os.close, place)
            if os.path.samestat(here, os.fstat(place)):  # the root
                break
    return False


def _is_of_cache(folder: int, before: int, place: int) -> bool:
    """Tell whether ``place``, named by a link in ``before``, is where the cache that ``folder`` is a snapshot of has its blobs.

    That is ``models--ORG--NAME/{snapshots/COMMIT/NAME -> ../../blobs/HASH}``; where blobs are shared, ``HASH`` is itself a link to
    ``../../blobs/PREFIX/HASH``, for all models of the cache.
    """
    for blobs in _blobs_beside(folder):
        here = os.fstat(place)
        if os.path.samestat(here, os.fstat(blobs)):
            return True
        if os.path.samestat(os.fstat(before), os.fstat(blobs)):
            with suppress(OSError):
                shared = os.stat("../../blobs", dir_fd=blobs, follow_symlinks=False)
                return os.path.samestat(os.stat("..", dir_fd=place), shared)
    return False


def _blobs_beside(folder: int) -> Iterator[int]:
    """Yield the open blobs of the cache that ``folder``, a snapshot or a folder in one, belongs to, if it does."""
    for up in ("..", "../..", "../../.."):
        with suppress(OSError):
            snapshots = os.stat(f"{up}/../snapshots", dir_fd=folder, follow_symlinks=False)
            if os.path.samestat(os.stat(up, dir_fd=folder), snapshots):
                with opened_folder(f"{up}/../blobs", folder) as blobs:
                    yield blobs


@contextmanager
def opened_folder(path: str | Path, inside: int | None = None) -> Iterator[int]:
    """Open a folder that is no link, for the time of the context. Raises ``OSError``."""
    fd = os.open(path, SEARCH | os.O_NOFOLLOW, dir_fd=inside)
    try:
        yield fd
    finally:
        os.close(fd)


def kind_of(mode: int) -> str:
    """Return what is no regular file, in words."""
    for is_kind, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if is_kind(mode):
            return name
    return "a special file"
