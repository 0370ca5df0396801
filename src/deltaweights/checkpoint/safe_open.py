"""Open files relative to an open folder, so that no path can be swapped between a check and its use."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Without O_NONBLOCK, opening a FIFO without a writer would block for ever."""

SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""For a folder in which names are looked up. On Linux it need not be readable."""

MAX_LINKS, MAX_LEVELS = 16, 64
"""Links from a name to its file, and folders between it and the folder that it must be in."""

MAX_LINKS_OUTSIDE = 40
"""The same limit as Linux."""

PATH_ONLY: int | None = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_PATH") else None
"""To hold a link or a device without opening it. On Linux only."""


class LeadsOutside(Exception):
    """A link leads out of the folder, and not into the blobs of the Hub's cache."""


class ForeignLink(Exception):
    """A link on the way to a file belongs neither to this user, nor to root, nor to the file's owner."""


class NotRegularFile(Exception):
    """A link leads to something other than a regular file; ``args[0]`` says what."""


def open_inside(folder: int, name: str) -> int:
    """Open the file ``name`` of the open ``folder`` for reading; links may lead to files in it, or to blobs of the Hub's cache.

    The text of each link is read once, the folder that it names is opened, and the open folder is compared with the allowed
    ones; the file is then opened in it without following another link. Raises ``LeadsOutside`` and ``OSError``.
    """
    return _open_by_links(folder, name, lambda link, place: _is_in(folder, place) or _is_of_cache(folder, link, place))


def open_blob(blobs: int, name: str) -> int:
    """Open a file of the Hub cache's ``blobs``; a link may lead to blobs shared by all models. Raises as ``open_inside``."""
    return _open_by_links(blobs, name, lambda _, place: os.path.sameopenfile(place, blobs) or _is_shared(blobs, place))


def _open_by_links(folder: int, name: str, allows: Callable[[int, int], bool]) -> int:
    """Open a file, following links for which ``allows(folder of the link, folder that it names)`` is true."""
    with ExitStack() as stack:
        place = folder
        for _ in range(MAX_LINKS):
            try:
                return os.open(name, READ | os.O_NOFOLLOW, dir_fd=place)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
            try:
                head, tail = os.path.split(os.readlink(name, dir_fd=place))
            except OSError as error:
                if error.errno == errno.EINVAL:  # no longer a link
                    continue
                raise
            before, place = place, os.open(head or ".", SEARCH, dir_fd=place)
            stack.callback(os.close, place)
            if not allows(before, place):
                raise LeadsOutside
            name = tail or "."
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def open_outside(folder: int, name: str) -> tuple[int, bool]:
    """Open the regular file that ``name`` in the open ``folder`` leads to, wherever it is.

    Returns the descriptor, and whether a link on the way belongs to another user than this one and root. Such a link is
    accepted only if it leads to a file of its own owner: otherwise its owner could make us read a file for them that they
    may not read. The file's mode does not settle that, since a folder above it may be closed. Nothing is opened for reading
    before this is known. Raises ``ForeignLink``, ``NotRegularFile`` and ``OSError``.
    """
    owners: list[int] = []
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
            with _hold(part, place) as (held, about):
                if not stat.S_ISLNK(about.st_mode):
                    if parts:
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                    others = set(owners) - {0, os.geteuid()}
                    if others - {about.st_uid}:
                        raise ForeignLink
                    return _open_held(held, about, part, place), bool(others)
                owners.append(about.st_uid)
                if len(owners) > MAX_LINKS_OUTSIDE:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                parts += reversed(_path_parts(_link_text(held, about, part, place)))
    raise NotRegularFile(file_kind(stat.S_IFDIR))


def _path_parts(path: str) -> list[str]:
    """Return the names in a path: "/" first if it is absolute, "." last if it ends in a slash (it must be a folder)."""
    first, last = ["/"] if path.startswith("/") else [], ["."] if path.endswith("/") else []
    return first + [part for part in path.split("/") if part] + last


@contextmanager
def _hold(name: str, place: int) -> Iterator[tuple[int | None, os.stat_result]]:
    """Hold something that is not a folder without opening it: yield its O_PATH descriptor (None without O_PATH) and its status."""
    if PATH_ONLY is None:
        yield None, os.stat(name, dir_fd=place, follow_symlinks=False)
        return
    held = os.open(name, PATH_ONLY, dir_fd=place)
    try:
        yield held, os.fstat(held)
    finally:
        os.close(held)


def _link_text(held: int | None, about: os.stat_result, name: str, place: int) -> str:
    if held is not None:
        return os.readlink("", dir_fd=held)
    text = os.readlink(name, dir_fd=place)
    _refuse_replaced(about, os.stat(name, dir_fd=place, follow_symlinks=False))
    return text


def _open_held(held: int | None, about: os.stat_result, name: str, place: int) -> int:
    """Open for reading. Raises ``NotRegularFile``, and ``OSError``, also when the file was replaced since ``about`` was read."""
    if not stat.S_ISREG(about.st_mode):
        raise NotRegularFile(file_kind(about.st_mode))
    if held is not None:
        with suppress(FileNotFoundError):  # no /proc
            return os.open(f"/proc/self/fd/{held}", READ)
    fd = os.open(name, READ | os.O_NOFOLLOW, dir_fd=place)
    try:
        _refuse_replaced(about, os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def _refuse_replaced(before: os.stat_result, now: os.stat_result) -> None:
    """Raise ``OSError`` unless both are the same file, not renamed, chowned or modified in between."""
    if not os.path.samestat(before, now) or (before.st_uid, before.st_ctime_ns) != (now.st_uid, now.st_ctime_ns):
        raise OSError(errno.EAGAIN, "it is being changed")


def link_target(path: Path) -> str:
    """Return where a path leads at the moment, for messages."""
    try:
        return os.path.realpath(path)
    except OSError:  # it is being changed
        return "another place"


def _is_in(folder: int, place: int) -> bool:
    """Return whether the open folder ``place`` is ``folder``, or in it."""
    wanted = os.fstat(folder)
    with ExitStack() as stack, suppress(OSError):
        for _ in range(MAX_LEVELS):
            here = os.fstat(place)
            if os.path.samestat(here, wanted):
                return True
            place = os.open("..", SEARCH, dir_fd=place)
            stack.callback(os.close, place)
            if os.path.samestat(here, os.fstat(place)):  # the root
                break
    return False


def _is_of_cache(folder: int, before: int, place: int) -> bool:
    """Return whether ``place``, named by a link in ``before``, holds the blobs of the cache that ``folder`` is a snapshot of.

    The layout is ``models--ORG--NAME/{snapshots/COMMIT/NAME -> ../../blobs/HASH}``; where blobs are shared by
    all models of the cache, ``HASH`` is itself a link to ``../../blobs/PREFIX/HASH``.
    """
    for blobs in _blobs_beside(folder):
        if os.path.sameopenfile(place, blobs):
            return True
        if os.path.sameopenfile(before, blobs):
            return _is_shared(blobs, place)
    return False


def _is_shared(blobs: int, place: int) -> bool:
    """Return whether ``place`` is a folder of the blobs shared by all models of the cache."""
    with suppress(OSError):
        shared = os.stat("../../blobs", dir_fd=blobs, follow_symlinks=False)
        return os.path.samestat(os.stat("..", dir_fd=place), shared)
    return False


def _blobs_beside(folder: int) -> Iterator[int]:
    """Yield the open blobs folder of the cache in which ``folder`` is a snapshot, or a folder in one."""
    for up in ("..", "../..", "../../.."):
        with suppress(OSError):
            snapshots = os.stat(f"{up}/../snapshots", dir_fd=folder, follow_symlinks=False)
            if os.path.samestat(os.stat(up, dir_fd=folder), snapshots):
                with opened_folder(f"{up}/../blobs", folder) as blobs:
                    yield blobs


@contextmanager
def opened_folder(path: str | Path, inside: int | None = None) -> Iterator[int]:
    """Open a folder, which must not be a symbolic link, for the time of the context. Raises ``OSError``."""
    fd = os.open(path, SEARCH | os.O_NOFOLLOW, dir_fd=inside)
    try:
        yield fd
    finally:
        os.close(fd)


_FILE_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def file_kind(mode: int) -> str:
    """Return in words what something other than a regular file is."""
    return _FILE_KINDS.get(stat.S_IFMT(mode), "a special file")
