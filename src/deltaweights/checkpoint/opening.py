"""Files opened relative to an open folder, so that what was looked at is what is read.

Enters: an open folder, and a name in it. Leaves: a descriptor. Never: a path that is resolved first and opened afterwards: whoever
owns the folder could change it in between.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever."""

SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""For a folder in which names are looked up. On Linux it need not be readable."""

MOST_LINKS, MOST_LEVELS = 16, 64
"""Links from a name to its file, and folders between it and the one that it must be in."""


MOST_LINKS_OUTSIDE = 40
"""As the system has it."""

LOOK: int | None = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_PATH") else None
"""To hold what has a name, a link itself or a device, without opening it. On Linux only."""


class Outside(Exception):
    """A link leads out of the folder, and not into the blobs of the Hub's cache."""


class LinkOfOthers(Exception):
    """A link on the way to a file was made by somebody else than this user, root and the file's owner."""


class NotRegular(Exception):
    """A link leads to no regular file, but to what ``args[0]`` says."""


def open_inside(folder: int, name: str) -> int:
    """Open the file ``name`` of the open ``folder`` for reading; links may lead to files in it, or to blobs of the Hub's cache.

    Each link's text is read once, the folder that it names is opened and, as an open folder, compared with those that are allowed;
    the file is then opened in there, and never by another link. Raises ``Outside`` and ``OSError``.
    """
    return _open_by_links(
        folder, name, lambda before, place: _is_in(folder, place) or _is_of_cache(folder, before, place)
    )


def open_blob(blobs: int, name: str) -> int:
    """Open the file ``name`` of the Hub cache's ``blobs``; a link may lead to what models share. Raises as ``open_inside`` does."""
    here = os.fstat(blobs)
    return _open_by_links(
        blobs, name, lambda _, place: os.path.samestat(os.fstat(place), here) or _is_shared(blobs, place)
    )


def _open_by_links(folder: int, name: str, allows: Callable[[int, int], bool]) -> int:
    """Open a file through links that ``allows`` the step from the folder of a link to the one that it names."""
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
            if not allows(before, place):
                raise Outside
            name = tail or "."
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def open_outside(folder: int, name: str) -> tuple[int, bool]:
    """Open the regular file that ``name`` of the open ``folder`` leads to, wherever it is.

    Returns the descriptor, and whether somebody else made a link on the way: neither this user nor root. Such a link counts only
    when it leads to a file of whoever made it: else it would have us read for him what he may not. The file's mode does not tell,
    as a folder above it may be closed. Nothing is opened for reading before that is known.

    Raises ``LinkOfOthers``, ``NotRegular`` and ``OSError``.
    """
    makers: list[int] = []
    parts, place = [name], folder  # the next part is the last of the list
    with ExitStack() as stack:
        while parts:
            part = parts.pop()
            try:
                entered = os.open(part, SEARCH | os.O_NOFOLLOW, dir_fd=place)
            except OSError as error:
                if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                    raise
            else:
                stack.close()
                stack.callback(os.close, entered)
                place = entered
                continue
            with _held(part, place) as (held, about):
                if not stat.S_ISLNK(about.st_mode):
                    if parts:
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                    by_others = set(makers) - {0, os.geteuid()}
                    if by_others - {about.st_uid}:
                        raise LinkOfOthers
                    return _opened_as_held(held, about, part, place), bool(by_others)
                makers.append(about.st_uid)
                if len(makers) > MOST_LINKS_OUTSIDE:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                parts += reversed(_parts(_text_of(held, about, part, place)))
    raise NotRegular(kind_of(stat.S_IFDIR))


def _parts(path: str) -> list[str]:
    """Return the names of a path one by one: the root first, if it begins there, and "." last where a folder is asked for."""
    root, end = ["/"] * path.startswith("/"), ["."] * path.endswith("/")
    return root + [part for part in path.split("/") if part] + end


@contextmanager
def _held(name: str, place: int) -> Iterator[tuple[int | None, os.stat_result]]:
    """Hold what is no folder, without opening it: yield its descriptor, None where the system has no such, and its status."""
    if LOOK is None:
        yield None, os.stat(name, dir_fd=place, follow_symlinks=False)
        return
    held = os.open(name, LOOK, dir_fd=place)
    try:
        yield held, os.fstat(held)
    finally:
        os.close(held)


def _text_of(held: int | None, about: os.stat_result, name: str, place: int) -> str:
    """Return the text of a link. Raises ``OSError``, also when it may be another link than the one that was looked at."""
    if held is not None:
        return os.readlink("", dir_fd=held)
    text = os.readlink(name, dir_fd=place)
    _refuse_another(about, os.stat(name, dir_fd=place, follow_symlinks=False))
    return text


def _opened_as_held(held: int | None, about: os.stat_result, name: str, place: int) -> int:
    """Open for reading what was looked at. Raises ``NotRegular``, and ``OSError``, also when it is another file by now."""
    if not stat.S_ISREG(about.st_mode):
        raise NotRegular(kind_of(about.st_mode))
    if held is not None:
        with suppress(FileNotFoundError):  # no /proc
            return os.open(f"/proc/self/fd/{held}", READ)
    fd = os.open(name, READ | os.O_NOFOLLOW, dir_fd=place)
    try:
        _refuse_another(about, os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def _refuse_another(before: os.stat_result, now: os.stat_result) -> None:
    """Raise ``OSError`` unless both are of one file that nobody gave another name, owner or content in between."""
    if not os.path.samestat(before, now) or (before.st_uid, before.st_ctime_ns) != (now.st_uid, now.st_ctime_ns):
        raise OSError(errno.EAGAIN, "it is being changed")


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
            return _is_shared(blobs, place)
    return False


def _is_shared(blobs: int, place: int) -> bool:
    """Tell whether ``place`` is a folder of the blobs that all models of the cache share."""
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
