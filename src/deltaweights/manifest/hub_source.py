"""A repository of the Hub as files to verify: fetched into the cache, read once and not kept, or only listed."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack, closing
from pathlib import Path

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.small_files import refuse_long
from deltaweights.errors import MalformedInput
from deltaweights.hub.directory import HubDirectory
from deltaweights.hub.ids import HubId
from deltaweights.hub.locate import Hub, HubOptions, needed_files
from deltaweights.hub.repo_cache import not_in_cache
from deltaweights.hub.repo_listing import HubFile
from deltaweights.manifest.digests import Digests
from deltaweights.manifest.folder_entries import FolderEntries, is_permitted
from deltaweights.manifest.open_checkpoint import refuse_views
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.records import MANIFEST, SUMS, FileRecord
from deltaweights.manifest.verify_source import StatedFile, StatedHashes, VerifySource
from deltaweights.report import Report
from deltaweights.util import limits
from deltaweights.util.text import counted

SIGNATURE = "model.sig"


class HubSource(VerifySource):
    """The files of a repository at one commit. A file that arrived damaged is fetched again before anybody reads it."""

    def __init__(
        self,
        wanted: HubId,
        options: HubOptions | None,
        report: Report | None,
        manifest: Path | None = None,
        *,
        weights: bool = True,
    ) -> None:
        """Fetch what is to be read, unless ``options.stream``; without ``weights``, take the Hub's word for LFS files.

        What is to be read is what ``manifest`` lists, else the repository's own, else what belongs to a checkpoint. Raises
        ``InputOutputError``, and ``MalformedInput`` where there is neither a manifest nor a checkpoint.
        """
        options, report = options or HubOptions(), report or Report()
        self._hub, self._report = Hub(options, report), report
        self.most_workers = 1 if options.stream else None
        try:
            self.directory: HubDirectory = self._hub.open(wanted, once=True)
            self.title = str(self.directory.id)
            self._open(options, manifest, weights=weights)
        except BaseException:
            self._hub.close()
            raise

    def _open(self, options: HubOptions, manifest: Path | None, *, weights: bool) -> None:
        listing, names = self.directory.listing, set(self.directory.listing.files)
        has_manifest = manifest is not None or MANIFEST in names
        if has_manifest:
            listed = self._listed(manifest)
            used = listed | {MANIFEST, SUMS, SIGNATURE}
            if options.offline and (absent := sorted(listed - names)):
                raise not_in_cache(f"{self.title}/{absent[0]}")
        else:
            used = set(needed_files(self.directory, "checkpoint", keep=True))
            if others := names - used:
                self._report.note(f"{self.title}: {counted(len(others), 'other file')} not looked at")
            if weights:
                files = {name: _stated(listing.files[name]) for name in used if not is_permitted(name)}
                self.stated = StatedHashes("the hashes that the Hub states", files)
        # Without a manifest, files of another format and folders are nobody's extras.
        folders = {path.partition("/")[0] for path in listing.below}
        self.entries = FolderEntries.of_names(*((names, folders) if has_manifest else (used, ())))
        self.not_looked_at = frozenset() if has_manifest else frozenset((names - used) | folders)
        used &= set(self.directory.names())
        here = sorted(name for name in used if weights or listing.files[name].sha256 is None)
        self._hub.announce(self.directory, here)
        if not options.stream:
            self._hub.fetch([(self.directory, here)])
        if not weights:
            self.digests, self.unread = self._digests_without_weights(used), frozenset(used - set(here))

    def _listed(self, manifest: Path | None) -> set[str]:
        """Return the names of the files that the manifest lists; none if it is not one, which is told later."""
        with closing(self.open(MANIFEST) if manifest is None else LocalFile(manifest)) as file:
            try:
                refuse_long(file, limits.MANIFEST.size)
                return set(parse_manifest(file.chunks()).files)
            except (ValueError, MalformedInput):
                return set()

    def _digests_without_weights(self, names: Collection[str]) -> Digests:
        """Return what the Hub states of LFS files, and what is read of the others."""
        found = {}
        for name in names:
            file = self.directory.file(name)
            if file.sha256 is not None:
                found[name] = FileRecord(file.size, file.sha256)
            else:
                with closing(self.open(name)) as content:
                    found[name] = FileRecord(file.size, content.sha256())
        return Digests(found)

    def open(self, name: str) -> InputFile:
        return self.directory.open(name)

    def size(self, name: str) -> int | None:
        return self.directory.file(name).size

    def checkpoint(self) -> Checkpoint:
        checkpoint = open_checkpoint(self.directory, "checkpoint")
        with ExitStack() as stack:
            stack.enter_context(checkpoint)
            refuse_views(checkpoint)
            stack.pop_all()  # the caller closes the checkpoint
        return checkpoint

    def close(self) -> None:
        self._hub.close()


def _stated(file: HubFile) -> StatedFile:
    return StatedFile(file.sha256, file.git_sha1 or None, file.size)
