"""An open staging folder that is known to be ours.

Staging is used only when this user made it, on this file system, and nobody else can write in it: whoever could would choose what
is published and what is removed. Its parts and the target's parent are reached by descriptors from then on.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deltaweights.errors import InputOutputError, MalformedInput, TargetBusy
from deltaweights.staging.contents import Contents, contents_of, refuse_content
from deltaweights.staging.place import Place
from deltaweights.text import compact_json, strict_json
from deltaweights.util.disk import make_folder
from deltaweights.util.open_folder import OpenFolder

PRIVATE = 0o700
"""The permissions of a staging folder."""

SEAL = "staging.json"
"""The file in which staging says which folder it was made as."""

MOST_OF_A_SEAL = 1000

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

    def __init__(self, place: Place) -> None:
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
        root = None
        try:
            root = self.holder.make(name, PRIVATE)
            refuse_others(root, self.holder)
        except MalformedInput as error:
            if root is None:
                raise _not_ours(self.place, "a link or no folder") from error
            root.close()
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
        """Check that staging was made here, or say that it was when it is new. The lock must be held.

        Owner and permissions travel in archives and copies; the number of the folder's inode does not.
        Raises ``MalformedInput``, ``InputOutputError``.
        """
        names = set(self.root.names()) - {"lock", "owner"}
        inode = self.root.status().st_ino
        if not names - {name for name in names if name.startswith(SEAL)}:
            self.root.write_once(SEAL, compact_json({"version": 1, "inode": inode}).encode())
        try:
            sealed = strict_json(self.root.read(SEAL, MOST_OF_A_SEAL)) == {"version": 1, "inode": inode}
        except (InputOutputError, MalformedInput, ValueError):
            sealed = False
        if not sealed:
            raise _not_ours(self.place, "a copy, or one that was made elsewhere")
        for name in sorted(names):
            found = self.root.look(name)
            if found is not None and stat.S_ISLNK(found.st_mode):
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
        """Tell whether there is a finished shard, an unpacked input, or a publication that was begun."""
        if self.has(UNPACKED) or self.has(JOURNAL):
            return True
        if not self.has(FRAGMENTS):
            return False
        with self.folder(FRAGMENTS) as fragments:
            return bool(fragments.names())

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
    found = root.status()
    owner, mode = found.st_uid, stat.S_IMODE(found.st_mode) & 0o777
    if (owner, mode) == (os.geteuid(), PRIVATE):
        return
    # Some file systems know no owners or permissions (FAT), or other ones (NFS for root): there every folder looks like this.
    name = f"{root.path.name}.{secrets.token_hex(8)}"
    try:
        os.mkdir(name, PRIVATE, dir_fd=holder.fd)
        try:
            probe = os.stat(name, dir_fd=holder.fd, follow_symlinks=False)
        finally:
            with suppress(OSError):
                os.rmdir(name, dir_fd=holder.fd)
    except OSError as error:
        raise InputOutputError.from_os(error, holder.path, "make a folder") from error
    if (owner, mode) != (probe.st_uid, stat.S_IMODE(probe.st_mode) & 0o777):
        raise MalformedInput(
            "staging is not ours",
            where=root.path,
            found=f"a folder of user {owner} with permissions {mode:03o}",
            expected=f"one of user {probe.st_uid} with permissions {PRIVATE:o}",
            remedy="choose another output folder, or see what it is and remove it",
        )


def _not_ours(place: Place, found: str) -> MalformedInput:
    remedy = "see what it is, and remove it"
    return MalformedInput("staging is not ours", where=place.root, found=found, remedy=remedy)
