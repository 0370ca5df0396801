"""An open staging folder that is known to be ours.

Staging is used only when this user made it for this target, and nobody else can write in it: whoever could would choose what is
published and what is removed. Its parts and the target's parent are reached by descriptors from then on.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.staging.location import TargetLocation
from deltaweights.staging.ownership import MOST_OF_A_SEAL, OWNERSHIP, is_ownership_record, new_ownership_record
from deltaweights.staging.target_contents import Contents, contents_of, refuse_content
from deltaweights.util.disk import make_folder
from deltaweights.util.open_folder import OpenFolder

PRIVATE = 0o700
"""The permissions of a staging folder."""

SHARDS, FRAGMENTS, COMPANIONS, UNPACKED, PARTS, REPLACED = (
    "shards",
    "fragments",
    "companions",
    "unpacked",
    "parts",
    "replaced",
)
PLAN, ENDING, JOURNAL = "plan.json", "ending.json", "publishing.json"
"""The names in a staging folder; ``Place`` says what they are for."""


class OpenStaging:
    """The staging folder ``root``, and the folder ``holder`` in which it is: the target itself, or the target's parent."""

    def __init__(self, place: TargetLocation) -> None:
        """Open staging, made when it is not there.

        Raises ``MalformedInput`` when it is not ours: a link, another user's, or open to others; ``InputOutputError``.
        """
        self.place = place
        self._kept: list[OpenFolder] = []
        if not place.inside:
            make_folder(place.target.parent)
        self.holder = OpenFolder.at(place.root.parent, follow=False)
        try:
            self.root = self._opened()
        except BaseException:
            self.holder.close()
            raise

    def _opened(self) -> OpenFolder:
        name = self.place.root.name
        new, root = self.holder.look(name) is None, None
        try:
            root = self.holder.make(name, PRIVATE)
            if new and root.status().st_uid == os.geteuid() and not root.names():
                os.fchmod(root.fd, PRIVATE)  # a umask may take away more than others' bits
            refuse_others(root, self.holder)
        except MalformedInput as error:
            if root is None:
                raise _not_ours(self.place, "a link or no folder") from error
            root.close()
            if new:
                with suppress(OSError):
                    os.rmdir(name, dir_fd=self.holder.fd)
            raise
        except BaseException:
            if root is not None:
                root.close()
            raise
        return root

    def close(self) -> None:
        """Let go of the folders."""
        for folder in self._kept:
            folder.close()
        self.root.close()
        self.holder.close()

    def seal(self) -> None:
        """Check that this user made staging for this target, or seal it when it is new. The lock must be held.

        Raises ``MalformedInput``, ``InputOutputError``.
        """
        names = set(self.root.names()) - {"lock", "owner"}
        inode = self.root.status().st_ino
        if not names - {name for name in names if name.startswith(OWNERSHIP)}:
            self.root.write_once(OWNERSHIP, new_ownership_record(self.place, inode))
        try:
            sealed = is_ownership_record(self.root.read(OWNERSHIP, MOST_OF_A_SEAL), self.place, inode)
        except (InputOutputError, MalformedInput):
            sealed = False
        if not sealed:
            found = "one that somebody else made, or that was made elsewhere or for another target"
            remedy = "remove it; or, if your own run made it under another HOME or XDG_STATE_HOME, set that again"
            raise MalformedInput("staging is not ours", where=self.root.path, found=found, remedy=remedy)
        for name in sorted(names):
            found_there = self.root.look(name)
            if found_there is not None and stat.S_ISLNK(found_there.st_mode):
                raise _not_ours(self.place, f"the link {name}")

    def is_current(self) -> bool:
        """Tell whether the folder still has its name: a run that ended removes it."""
        return self.holder.is_named(self.root)

    def refuse_moved(self) -> None:
        """Raise ``TargetBusy`` when something else has the folder's name."""
        if not self.is_current():
            remedy = "choose an output folder whose parent nobody else may change"
            raise TargetBusy("staging was moved away during the run", where=self.root.path, remedy=remedy)

    # What is in it.

    def has(self, name: str) -> bool:
        """Tell whether ``name`` is there."""
        return self.root.look(name) is not None

    @contextmanager
    def folder(self, *names: str) -> Iterator[OpenFolder]:
        """Open a folder in staging, made when it is not there; a second name is that of a folder in the first."""
        folder = self.root.make(names[0])
        try:
            for name in names[1:]:
                inner = folder.make(name)
                folder.close()
                folder = inner
            yield folder
        finally:
            folder.close()

    def keep_open(self, name: str) -> OpenFolder:
        """Open the folder ``name``, made when it is not there, until staging is closed."""
        folder = self.root.make(name)
        self._kept.append(folder)
        return folder

    def worth_keeping(self) -> bool:
        """Tell whether there is a finished shard, an unpacked input, a publication that was begun, or somebody's file."""
        if self.has(UNPACKED) or self.has(JOURNAL):
            return True
        for name in (FRAGMENTS, REPLACED):
            if self.has(name):
                with self.folder(name) as folder:
                    if folder.names():
                        return True
        return False

    # The target.

    @contextmanager
    def target(self) -> Iterator[OpenFolder | None]:
        """Open the target; None when it is not there, or is a file. Raises ``MalformedInput`` when it became a link."""
        if self.place.inside:
            yield self.holder
            return
        found = self.holder.look(self.place.target.name)
        if found is None or stat.S_ISREG(found.st_mode):
            yield None
            return
        with self.holder.folder(self.place.target.name) as folder:
            yield folder

    def contents(self) -> Contents:
        """Return what stands in the target, nothing when it is not there; a file is its own content."""
        with self.target() as folder:
            if folder is not None:
                return contents_of(folder, self.place)
        found = self.holder.look(self.place.target.name)
        return {} if found is None else {self.place.target.name: found}

    def refuse_content(self, *, overwrite: bool) -> Contents:
        """Return what stands in the target. Raises ``TargetBusy`` when it may not be replaced."""
        contents = self.contents()
        with self.target() as folder:
            refuse_content(contents, folder, self.place.target, overwrite=overwrite)
        return contents


def refuse_others(root: OpenFolder, holder: OpenFolder) -> None:
    """Raise ``MalformedInput`` unless ``root``, a folder in ``holder``, is this user's and nobody else can enter it."""
    found, mode = root.status(), stat.S_IMODE(root.status().st_mode) & 0o777
    if found.st_uid == os.geteuid() and (mode == PRIVATE or not _keeps_permissions(root, mode)):
        return
    # Some file systems know other owners (NFS, for root). There every new folder looks like this one; but who can rename in
    # ``holder`` could put a folder of his own in the place of the one that is made to see it.
    above = holder.status()
    closed = not above.st_mode & 0o022 or above.st_mode & stat.S_ISVTX
    probe = _new_folder_in(holder, root.path.name) if closed else None
    if probe is None or (found.st_uid, mode) != (probe.st_uid, stat.S_IMODE(probe.st_mode) & 0o777):
        raise MalformedInput(
            "staging is not ours",
            where=root.path,
            found=f"a folder of user {found.st_uid} with permissions {mode:03o}",
            expected=f"one of user {os.geteuid()} with permissions {PRIVATE:o}",
            remedy="choose another output folder, or see what it is and remove it",
        )


def _keeps_permissions(root: OpenFolder, mode: int) -> bool:
    """Tell whether the file system keeps permissions, which FAT does not; ``root`` is this user's and has ``mode``."""
    with suppress(OSError):
        os.fchmod(root.fd, PRIVATE)
    if stat.S_IMODE(root.status().st_mode) & 0o777 != PRIVATE:
        return False
    os.fchmod(root.fd, mode)
    return True


def _new_folder_in(holder: OpenFolder, name: str) -> os.stat_result:
    """Return what a private folder looks like that is made in ``holder``, and removed. Raises ``InputOutputError``."""
    probe = f"{name}.{secrets.token_hex(8)}"
    try:
        os.mkdir(probe, PRIVATE, dir_fd=holder.fd)
        try:
            return os.stat(probe, dir_fd=holder.fd, follow_symlinks=False)
        finally:
            with suppress(OSError):
                os.rmdir(probe, dir_fd=holder.fd)
    except OSError as error:
        raise InputOutputError.from_os(error, holder.path, "make a folder") from error


def _not_ours(place: TargetLocation, found: str) -> MalformedInput:
    remedy = "see what it is, and remove it"
    return MalformedInput("staging is not ours", where=place.root, found=found, remedy=remedy)
