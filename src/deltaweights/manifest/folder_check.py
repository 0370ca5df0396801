"""A verification in progress: compares names, sizes and bytes with a manifest or stated hashes, and collects the problems."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePath

from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.layout_names import META_PART
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.file_parts import (
    EXTRAS,
    LOADABLE,
    LOADER_FILES,
    PARTS,
    READ_FOLDERS,
    WEIGHTS,
    part_of,
    plain_name,
)
from deltaweights.manifest.open_weights import SPREAD
from deltaweights.manifest.parse import LISTING, Manifest
from deltaweights.manifest.read_manifest import contradictions, read_manifest
from deltaweights.manifest.records import MANIFEST, SUMS, FileRecord, sums_bytes
from deltaweights.manifest.stated_hashes import is_posing, missing_shards, size_fault
from deltaweights.manifest.verify_report import EXTRA_FILE, FILE, Problem
from deltaweights.manifest.verify_source import StatedFile, VerifySource
from deltaweights.util import limits
from deltaweights.util.litter import is_litter
from deltaweights.util.text import SAVE_UNMARKED


class FolderCheck:
    """The verification of ``source`` by its own manifest, or by the one at ``external``; ``record`` is the manifest's.

    Where there is neither, the files are compared with the hashes that ``source.stated`` has, if it has any.
    """

    def __init__(self, source: VerifySource, external: Path | None = None, *, expects_content: bool = False) -> None:
        """Prepare it; ``expects_content`` says that a content digest will be compared, which says enough of the weights."""
        own = external is not None and source.is_inside(external) and external.name == MANIFEST
        self.source, self.external = source, None if own else external
        self._entries, self._only, self._expects_content = source.entries, source.only, expects_content
        self.manifest: Manifest | None = None
        self.record: FileRecord | None = None
        self.stated: dict[str, StatedFile] = {}
        self.problems: list[Problem] = []
        self.content_matches = False  # whether the tensors that were read have the expected content digest
        self._weights_files: frozenset[str] = frozenset()

    def add_problem(
        self,
        name: str,
        problem: str,
        found: str | None = None,
        expected: str | None = None,
        *,
        about: str = FILE,
        part: str | None = None,
        is_pin: bool = False,
    ) -> None:
        """Add a problem; ``part`` follows from what it is about, and from the file's name."""
        if part is None:
            part = WEIGHTS if about != FILE else self.part(name)
        self.problems.append(Problem(name, problem, found, expected, about, part, is_pin))

    def part(self, name: str) -> str:
        """Return the part that a file belongs to: whatever the manifest has tensors in are weights."""
        return WEIGHTS if name in self._weights_files else part_of(name)

    @property
    def is_listing(self) -> bool:
        """Whether the manifest lists any folder, not a result of ours."""
        return self.manifest is not None and self.manifest.kind == LISTING

    @property
    def is_result(self) -> bool:
        """Whether the rules for our results apply, even if the manifest cannot be read: no links, and SHA256SUMS."""
        others = self.external is not None or self.is_listing or self.by_hashes or self._only is not None
        return not others

    @property
    def by_hashes(self) -> bool:
        """Whether hashes that something other than a manifest states take its place."""
        return self.external is None and self.source.stated is not None and not self._has_own_manifest

    @property
    def _has_own_manifest(self) -> bool:
        entries = self._entries  # asked for every file: no set is made of them
        return any(MANIFEST in names for names in (entries.files, entries.links, entries.folders, entries.others))

    @property
    def compared_with(self) -> str:
        """What states the hashes, for messages; empty where nothing does."""
        if self.by_hashes and self.source.stated is not None:
            return self.source.stated.origin
        return "" if self.manifest is None else "the manifest"

    @property
    def is_intact(self) -> bool:
        """Whether all is as recorded, so far; pins may say something else."""
        return all(problem.is_pin for problem in self.problems)

    @property
    def files(self) -> set[str]:
        """The names that count as files."""
        if self._only is not None:
            return self._entries.readable & {self._only}
        names = self._entries.files if self.is_result else self._entries.readable
        return names - self.litter

    @property
    def litter(self) -> set[str]:
        """Files and folders that systems leave anywhere, unless they are stated."""
        return set() if self._only is not None else self._entries.litter - set(self.stated) - self._posing

    @cached_property
    def _posing(self) -> set[str]:
        """Files that have the name of litter, and are weights or code: some loaders take whatever ends so."""
        return {name for name in self._entries.files if is_litter(name) and is_posing(self.source, name)}

    @property
    def title(self) -> str:
        """The name of the manifest in messages."""
        return MANIFEST if self.external is None else str(self.external)

    @property
    def ignored(self) -> set[str]:
        """The documents that do not count, since another manifest does."""
        if self._only is not None:
            return set()
        documents = set() if self.is_result or self.by_hashes else {SUMS}
        documents |= {MANIFEST} if self.external is not None else set()
        return self._entries.readable & (documents | self.kept_inside)

    @property
    def kept_inside(self) -> set[str]:
        """The name of the given manifest, should it be among the files."""
        return {self.external.name} if self.external is not None and self.source.is_inside(self.external) else set()

    @property
    def harmless(self) -> set[str]:
        """The files that nothing states, and no loader reads."""
        if self._only is not None or not self.compared_with:
            return set()
        unknown = self.files - set(self.stated) - {MANIFEST, SUMS} - self.ignored - self.sums
        taken = set(
            map(plain_name, self.stated)
        )  # on a file system that tells no case apart, it would take their place
        return {name for name in unknown if part_of(name) == EXTRAS and plain_name(name) not in taken}

    @property
    def sums(self) -> frozenset[str]:
        """The documents that state the hashes in the place of a manifest."""
        return self.source.stated.documents if self.by_hashes and self.source.stated is not None else frozenset()

    # The manifest.

    def read_manifest(self, pin: str | None) -> None:
        """Read the manifest, and compare it with its pinned sha256 and its own content digest."""
        if self.by_hashes and self.source.stated is not None:
            self._state(self.source.stated.files)
            if self.source.stated.fault is not None:
                name, reason = self.source.stated.fault
                self.add_problem(name, f"cannot be used: {reason}", part=WEIGHTS)
            if pin is not None:
                self.add_problem(MANIFEST, "is missing", None, pin.lower(), part=WEIGHTS)
            return
        if self.external is not None:
            self.manifest, self.record, fault = read_manifest(LocalFile(self.external))
            if fault is not None:
                found = fault.removesuffix(f": {SAVE_UNMARKED}")
                remedy = SAVE_UNMARKED if SAVE_UNMARKED in fault else "give one that deltaweights wrote"
                raise MalformedInput("not a manifest", where=self.external, found=found, remedy=remedy)
        elif self._has_document(MANIFEST, expected="the manifest that deltaweights writes"):
            try:
                self.manifest, self.record, fault = read_manifest(self.source.open(MANIFEST))
            except (InputOutputError, MalformedInput) as error:
                self.add_problem(MANIFEST, f"cannot be read: {error}", part=WEIGHTS)
            else:
                if fault is not None:
                    self.add_problem(MANIFEST, "is not a manifest", fault, part=WEIGHTS)
        if self.record is not None and pin is not None and self.record.sha256 != pin.lower():
            found, expected = self.record.sha256, pin.lower()
            self.add_problem(self.title, "is not the pinned one", found, expected, part=WEIGHTS, is_pin=True)
        if self.manifest is not None:
            self._weights_files = frozenset(self.manifest.places.values())
            files = self.manifest.files.items()
            self._state({name: StatedFile(record.sha256, size=record.size) for name, record in files})
            for contradiction in contradictions(self.manifest):
                self.add_problem(self.title, contradiction, part=WEIGHTS)

    def _state(self, files: Mapping[str, StatedFile]) -> None:
        """Take what is stated; of one file alone, only that."""
        self.stated = {name: each for name, each in files.items() if self._only in {None, name}}

    def _has_document(self, name: str, expected: str | None = None) -> bool:
        """Return whether a document is a regular file. If it is missing, add a problem; ``compare_names`` adds other kinds."""
        if name in (self._entries.files if self._only is None else self._entries.readable):
            return True
        if self._only is not None or name not in self._entries.irregular:
            # Without a manifest nothing states the weights, unless their content digest is given.
            enough = self._expects_content
            part = EXTRAS if name == SUMS else LOADER_FILES if enough else WEIGHTS
            self.add_problem(name, "is missing", None, expected, part=part)
        return False

    def read_sums(self) -> bytes | None:
        """Return SHA256SUMS; None, and a problem, when it is missing or cannot be read."""
        if not self._has_document(SUMS):
            return None
        try:
            return self.source.read(SUMS, limits.MOST_SUMS)
        except (InputOutputError, MalformedInput) as error:
            self.add_problem(SUMS, f"cannot be read: {error}")
            return None

    # Names.

    def compare_names(self) -> None:
        """Compare the names with what is stated, and the files that can be loaded with the manifest's tensors."""
        files, stated = self.files, set(self.stated)
        if self._only is None:
            self._compare_irregular(files)
        elif self._only not in files:
            kind = self._entries.irregular.get(self._only)
            problem = "is not a regular file" if kind else "is no part of a checkpoint, so that nothing states its hash"
            self.add_problem(self._only, problem, kind)
        reported = {problem.file for problem in self.problems}
        for name in sorted(stated - files - reported):
            self.add_problem(name, "is missing")
        if not self.compared_with:
            return
        if self.is_result and self.manifest and self.record:
            self._compare_sums(sums_bytes(self.manifest.files, self.record.sha256))
        known = {MANIFEST, SUMS} if self._only is None else set()
        for name in sorted(files - known - self.sums - stated - self.ignored - self.harmless):
            self.add_problem(name, f"is not in {self.compared_with}", EXTRA_FILE)
        if self.by_hashes:
            for name, shard in missing_shards(self.source, files):
                self.add_problem(shard, f"is missing, and {name} names it")
        if self.manifest and self._only is None:
            self._compare_loadable(self.manifest)

    def _compare_irregular(self, files: set[str]) -> None:
        """Report what is neither a file nor allowed beside them."""
        subfolders = self._entries.folders & set(self.manifest.folders if self.manifest and self.is_listing else ())
        subfolders |= self.unread_folders
        allowed = files | self.ignored | subfolders | self.litter | self.sums
        for name, kind in self._entries.irregular.items():
            if name not in allowed:
                self.add_problem(name, "is not a regular file", kind, part=WEIGHTS if name == MANIFEST else None)

    @property
    def unread_folders(self) -> set[str]:
        """The folders inside that may be there, since hashes without a manifest say nothing about them."""
        if not self.by_hashes or self._only is not None:
            return set()
        named = {name.split("/")[0] for name in self.stated if "/" in name}
        read = {name for name in self._entries.folders if plain_name(name) in READ_FOLDERS}
        return self._entries.folders - self._entries.linked_folders - (read - named)

    def refuse_extras(self) -> None:
        """Add a problem for each file that nothing states, whether or not a loader reads it."""
        for name in sorted(self.harmless):
            self.add_problem(name, f"is not in {self.compared_with}", EXTRA_FILE)

    def _compare_sums(self, expected: bytes) -> None:
        """Compare SHA256SUMS with the bytes that follow from the manifest; a line about weights makes it a problem of theirs."""
        sums = self.read_sums()
        if sums is None or sums == expected:
            return
        others = set(sums.splitlines()) ^ set(expected.splitlines())
        parts = {part_of(line[66:].decode(errors="replace")) for line in others if line[64:66] == b"  "}
        part = next((part for part in PARTS if part in parts), EXTRAS)
        self.add_problem(SUMS, "does not say what manifest.json says", part=part)

    def _compare_loadable(self, manifest: Manifest) -> None:
        """Compare the files that a loader could take weights from with those of the manifest; a listing may have others."""
        stated = set(manifest.places.values())
        if SPREAD in stated and any(map(META_PART.fullmatch, manifest.files)):
            stated.remove(SPREAD)
        loadable = set() if self.is_listing else {name for name in manifest.files if PurePath(name).suffix in LOADABLE}
        for name in sorted(stated | loadable):
            if name not in stated:
                self.add_problem(name, "could be loaded, but holds no tensor of the manifest")
            elif name not in manifest.files:
                self.add_problem(name, "holds tensors of the manifest, but is not among its files")

    def compare_size(self, name: str) -> bool:
        """Return whether a file has the stated size; if not, add a problem."""
        fault = size_fault(self.source, name, self.stated[name])
        if fault is not None:
            self.add_problem(name, *fault)
        return fault is None
