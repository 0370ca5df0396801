"""An open staging directory that is known to be ours.

Staging is used only when this user made it for this target, and nobody else can write in it: anybody who could would choose what is
published and what is removed. Once open, its contents and the target's parent are reached by descriptors.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy, wrap_os_errors
from deltaweights.staging.location import FRAGMENTS, JOURNAL, REPLACED, UNPACKED, TargetLocation
from deltaweights.staging.ownership import MAX_OWNERSHIP, OWNERSHIP, is_ownership_record, new_ownership_record
from deltaweights.staging.target_contents import Contents, contents_of, refuse_content
from deltaweights.util.disk import make_folder
from deltaweights.util.open_folder import OpenFolder

PRIVATE = 0o700  # the permissions of a staging directory
NOT_OURS = "staging is not ours"


class OpenStaging:
    """The staging directory ``root``, and the folder ``parent`` that it is in: the target itself, or the target's parent."""

    def __init__(self, location: TargetLocation) -> None:
        """Open or create it. Raises ``MalformedInput`` for a link, another user's, or one open to others, ``InputOutputError``."""
        self.location = location
        self._kept: list[OpenFolder] = []
        if not location.inside:
            make_folder(location.target.parent)
        self.parent = OpenFolder.at(location.root.parent, follow=False)
        try:
            self.root = self._open_root()
        except BaseException:
            self.parent.close()
            raise

    def _open_root(self) -> OpenFolder:
        name = self.location.root.name
        new = self.parent.look(name) is None
        try:
            root = self.parent.make(name, PRIVATE)
        except MalformedInput as error:
            raise _not_ours(self.location, "a link or no folder") from error
        try:
            if new and root.status().st_uid == os.geteuid() and not root.names():
                os.fchmod(root.fd, PRIVATE)  # a umask may take away more than others' bits
            _refuse_foreign_owner(root, self.parent)
        except BaseException as error:
            root.close()
            if new and isinstance(error, MalformedInput):
                with suppress(OSError):
                    os.rmdir(name, dir_fd=self.parent.fd)
            raise
        return root

    def close(self) -> None:
        """Close all folders."""
        for folder in self._kept:
            folder.close()
        self.root.close()
        self.parent.close()

    def verify_ownership(self) -> None:
        """Check staging's record, or write a new one, under the lock. Raises ``MalformedInput``, ``InputOutputError``."""
        names = set(self.root.names()) - {"lock", "owner"}
        inode = self.root.status().st_ino
        if all(name.startswith(OWNERSHIP) for name in names):
            self.root.write_once(OWNERSHIP, new_ownership_record(self.location, inode))
        try:
            ours = is_ownership_record(self.root.read(OWNERSHIP, MAX_OWNERSHIP), self.location, inode)
        except (InputOutputError, MalformedInput):
            ours = False
        if not ours:
            found = "one that somebody else made, or that was made elsewhere or for another target"
            remedy = "remove it; or, if your own run made it under another HOME or XDG_STATE_HOME, set that again"
            raise MalformedInput(
                NOT_OURS, where=self.root.path, found=found, remedy=remedy, code=ErrorCode.FOREIGN_STAGING
            )
        for name in sorted(names):
            status = self.root.look(name)
            if status is not None and stat.S_ISLNK(status.st_mode):
                raise _not_ours(self.location, f"the link {name}")

    def is_current(self) -> bool:
        """Return whether the directory still has its name: a run that ended removes it."""
        return self.parent.is_named(self.root)

    def refuse_moved(self) -> None:
        """Raise ``TargetBusy`` when something else has the directory's name."""
        if not self.is_current():
            remedy = "choose an output folder whose parent nobody else may change"
            raise TargetBusy("staging was moved away during the run", where=self.root.path, remedy=remedy)

    # What is in staging.

    def has(self, name: str) -> bool:
        """Return whether ``name`` exists in staging."""
        return self.root.look(name) is not None

    @contextmanager
    def folder(self, *names: str) -> Iterator[OpenFolder]:
        """Open a folder in staging, or one in another, created if necessary."""
        with ExitStack() as stack:
            folder = self.root
            for name in names:
                folder = stack.enter_context(folder.make(name))
            yield folder

    def keep_open(self, name: str) -> OpenFolder:
        """Open the folder ``name``, created if necessary, until staging is closed."""
        folder = self.root.make(name)
        self._kept.append(folder)
        return folder

    def worth_keeping(self) -> bool:
        """Return whether there is a finished shard, an unpacked input, a publication that was started, or a user's file."""
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
        """Open the target; None when it does not exist, or is a file. Raises ``MalformedInput`` when it became a link."""
        if self.location.inside:
            yield self.parent
            return
        found = self.parent.look(self.location.target.name)
        if found is None or stat.S_ISREG(found.st_mode):
            yield None
            return
        with self.parent.folder(self.location.target.name) as folder:
            yield folder

    def contents(self) -> Contents:
        """Return what is in the target, nothing when it does not exist; a file is its own content."""
        with self.target() as folder:
            if folder is not None:
                return contents_of(folder, self.location)
        found = self.parent.look(self.location.target.name)
        return {} if found is None else {self.location.target.name: found}

    def has_target_files(self) -> bool:
        """Return whether the target is a folder in which there is anything at all, litter included."""
        with self.target() as folder:
            return folder is not None and bool(folder.names())

    def refuse_content(self, *, overwrite: bool) -> Contents:
        """Return what is in the target. Raises ``TargetBusy`` when it may not be replaced."""
        contents = self.contents()
        with self.target() as folder:
            refuse_content(contents, folder, self.location.target, overwrite=overwrite)
        return contents


def _refuse_foreign_owner(root: OpenFolder, parent: OpenFolder) -> None:
    """Raise ``MalformedInput`` unless ``root``, a folder in ``parent``, is this user's and nobody else can enter it."""
    found, mode = root.status(), stat.S_IMODE(root.status().st_mode) & 0o777
    if found.st_uid == os.geteuid() and (mode == PRIVATE or not _keeps_permissions(root, mode)):
        return
    # Some file systems report other owners (NFS, for root). There, every new folder looks like this one, so one is made to compare.
    # But anybody who can rename in ``parent`` could put a folder of their own in its place.
    above = parent.status()
    protected = not above.st_mode & 0o022 or above.st_mode & stat.S_ISVTX
    probe = _status_of_new_folder(parent, root.path.name) if protected else None
    if probe is None or (found.st_uid, mode) != (probe.st_uid, stat.S_IMODE(probe.st_mode) & 0o777):
        what = f"a folder of user {found.st_uid} with permissions {mode:03o}"
        expected = f"one of user {os.geteuid()} with permissions {PRIVATE:o}"
        remedy = "choose another output folder, or see what it is and remove it"
        raise MalformedInput(
            NOT_OURS, where=root.path, found=what, expected=expected, remedy=remedy, code=ErrorCode.FOREIGN_STAGING
        )


def _keeps_permissions(root: OpenFolder, mode: int) -> bool:
    """Return whether the file system stores permissions, unlike FAT; ``root`` is this user's and has ``mode``."""
    with suppress(OSError):
        os.fchmod(root.fd, PRIVATE)
    if stat.S_IMODE(root.status().st_mode) & 0o777 != PRIVATE:
        return False
    os.fchmod(root.fd, mode)
    return True


def _status_of_new_folder(parent: OpenFolder, name: str) -> os.stat_result:
    probe = f"{name}.{secrets.token_hex(8)}"
    with wrap_os_errors(parent.path, "make a folder"):
        os.mkdir(probe, PRIVATE, dir_fd=parent.fd)
        try:
            return os.stat(probe, dir_fd=parent.fd, follow_symlinks=False)
        finally:
            with suppress(OSError):
                os.rmdir(probe, dir_fd=parent.fd)


def _not_ours(location: TargetLocation, found: str) -> MalformedInput:
    remedy = "see what it is, and remove it"
    return MalformedInput(NOT_OURS, where=location.root, found=found, remedy=remedy, code=ErrorCode.FOREIGN_STAGING)
