"""A verification in progress: compares names, sizes and bytes with a manifest or stated hashes, and collects the problems."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePath

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.layout_names import META_PART
from deltaweights.checkpoint.small_files import refuse_long
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest import content_digest, digested
from deltaweights.manifest.digest_files import DigestRequest, Digests, digest_all
from deltaweights.manifest.file_parts import EXTRAS, LOADABLE, PARTS, WEIGHTS, part_of
from deltaweights.manifest.folder_entries import A_LINK
from deltaweights.manifest.git_files import signed_git_files
from deltaweights.manifest.open_weights import SPREAD, open_result_weights, request_for
from deltaweights.manifest.parse import LISTING, Manifest, TensorRow, original_digest, parse_manifest
from deltaweights.manifest.records import MANIFEST, SUMS, FileRecord, sums_bytes
from deltaweights.manifest.signer import Signer
from deltaweights.manifest.stated_hashes import compare_stated, size_fault
from deltaweights.manifest.verify_report import CONTENT, FILE, TENSOR, Problem, VerifyReport, verdict_of
from deltaweights.manifest.verify_source import StatedFile, VerifySource
from deltaweights.report import Report
from deltaweights.util import limits
from deltaweights.util.text import SAVE_UNMARKED


@dataclass(frozen=True)
class SignedFiles:
    """The files that a verified signature covers: sha256 (hex) by name, and the names that it says it leaves out.

    ``key`` is the sha256 of the public key's PEM; where there is none, ``signer`` signed by Sigstore.
    """

    key: str | None
    digests: Mapping[str, str]
    ignored: frozenset[str] = frozenset()
    signer: Signer | None = None

    def __str__(self) -> str:
        return f"key {self.key}" if self.signer is None else str(self.signer)

    def leaves_out(self, name: str) -> bool:
        """Return whether its signer left ``name`` out. Our own documents cannot be left out: they vouch for the rest."""
        return name in self.ignored and name not in {MANIFEST, SUMS}


class FolderCheck:
    """The verification of ``source`` by its own manifest, or by the one at ``external``; ``record`` is the manifest's.

    Where there is neither, the files are compared with the hashes that ``source.stated`` has, if it has any.
    """

    def __init__(self, source: VerifySource, external: Path | None = None) -> None:
        own = external is not None and source.is_inside(external) and external.name == MANIFEST
        self.source, self._external = source, None if own else external
        self._entries = source.entries
        self.manifest: Manifest | None = None
        self.record: FileRecord | None = None
        self._stated: dict[str, StatedFile] = {}
        self._problems: list[Problem] = []

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
            holds_tensors = self.manifest is not None and name in self.manifest.places.values()
            part = WEIGHTS if about != FILE or holds_tensors else part_of(name)
        self._problems.append(Problem(name, problem, found, expected, about, part, is_pin))

    @property
    def is_listing(self) -> bool:
        """Whether the manifest lists any folder, not a result of ours."""
        return self.manifest is not None and self.manifest.kind == LISTING

    @property
    def _is_result(self) -> bool:
        """Whether the rules for our results apply, even if the manifest cannot be read: no links, and SHA256SUMS."""
        return self._external is None and not self.is_listing and not self._by_hashes

    @property
    def _by_hashes(self) -> bool:
        """Whether hashes that something other than a manifest states take its place."""
        return self._external is None and self.source.stated is not None and not self._has_own_manifest

    @property
    def _has_own_manifest(self) -> bool:
        return MANIFEST in self._entries.readable | set(self._entries.irregular)

    @property
    def compared_with(self) -> str:
        """What states the hashes, for messages; empty where nothing does."""
        if self._by_hashes and self.source.stated is not None:
            return self.source.stated.origin
        return "" if self.manifest is None else "the manifest"

    @property
    def is_intact(self) -> bool:
        """Whether all is as recorded, so far; pins may say something else."""
        return all(problem.is_pin for problem in self._problems)

    @property
    def files(self) -> set[str]:
        """The names that count as files."""
        names = self._entries.files if self._is_result else self._entries.readable
        return names - self._litter

    @property
    def _litter(self) -> set[str]:
        """Files and folders that systems leave anywhere, unless they are stated."""
        return self._entries.litter - set(self._stated)

    @property
    def title(self) -> str:
        """The name of the manifest in messages."""
        return MANIFEST if self._external is None else str(self._external)

    @property
    def _ignored(self) -> set[str]:
        """The documents that do not count, since another manifest does."""
        documents = set() if self._is_result or self._by_hashes else {SUMS}
        documents |= {MANIFEST} if self._external is not None else set()
        return self._entries.readable & (documents | self._kept_inside)

    @property
    def _kept_inside(self) -> set[str]:
        """The name of the given manifest, should it be among the files."""
        return {self._external.name} if self._external is not None and self.source.is_inside(self._external) else set()

    @property
    def harmless(self) -> set[str]:
        """The files that nothing states, and no loader reads."""
        unknown = self.files - set(self._stated) - {MANIFEST, SUMS} - self._ignored
        return {name for name in unknown if part_of(name) == EXTRAS} if self.compared_with else set()

    def original_digest(self, rows: Mapping[str, TensorRow]) -> str | None:
        """Return the content digest of the original layout, if the folder is in another one."""
        if self.manifest is None or not self.manifest.original_content_digest:
            return None
        return original_digest(self.manifest, rows)

    # The manifest.

    def read_manifest(self, pin: str | None) -> None:
        """Read the manifest, and compare it with its pinned sha256 and its own content digest."""
        fault = None
        if self._by_hashes and self.source.stated is not None:
            self._stated = dict(self.source.stated.files)
            if pin is not None:
                self.add_problem(MANIFEST, "is missing", None, pin.lower(), part=WEIGHTS)
            return
        if self._external is not None:
            fault = self._parse(LocalFile(self._external))
            if fault is not None:
                remedy = SAVE_UNMARKED if SAVE_UNMARKED in fault else "give one that deltaweights wrote"
                raise MalformedInput(
                    "not a manifest",
                    where=self._external,
                    found=fault.removesuffix(f": {SAVE_UNMARKED}"),
                    remedy=remedy,
                )
        elif self._has_document(MANIFEST, expected="the manifest that deltaweights writes"):
            try:
                fault = self._parse(self.source.open(MANIFEST))
            except (InputOutputError, MalformedInput) as error:
                self.add_problem(MANIFEST, f"cannot be read: {error}", part=WEIGHTS)
        if self.record is not None and pin is not None and self.record.sha256 != pin.lower():
            found, expected = self.record.sha256, pin.lower()
            self.add_problem(self.title, "is not the pinned one", found, expected, part=WEIGHTS, is_pin=True)
        if fault is not None:
            self.add_problem(MANIFEST, "is not a manifest", fault, part=WEIGHTS)
        if self.manifest is None:
            return
        files = self.manifest.files.items()
        self._stated = {name: StatedFile(record.sha256, size=record.size) for name, record in files}
        tensors, original = self.manifest.tensors, self.manifest.original_content_digest
        if content_digest((name, *row) for name, row in tensors.items()) != self.manifest.content_digest:
            fault = "content_digest does not follow from the tensors that it lists"
            self.add_problem(self.title, fault, part=WEIGHTS)
        if original and original != original_digest(self.manifest, tensors):
            fault = "original_content_digest does not follow from the tensors that it lists"
            self.add_problem(self.title, fault, part=WEIGHTS)

    def _parse(self, file: InputFile) -> str | None:
        """Read and parse the manifest in one pass, and close it; return what is wrong with it. Raises ``InputOutputError``."""
        sha256, fault = hashlib.sha256(), None
        with closing(file):
            refuse_long(file, limits.MANIFEST.size)
            chunks = digested(file.chunks(), sha256)
            try:
                self.manifest = parse_manifest(chunks)
            except ValueError as error:
                fault = str(error)
            for _ in chunks:  # the rest, for its sha256
                pass
        self.record = FileRecord(file.size, sha256.hexdigest())
        return fault

    def _has_document(self, name: str, expected: str | None = None) -> bool:
        """Return whether a document is a regular file. If it is missing, add a problem; ``compare_names`` adds other kinds."""
        if name in self._entries.files:
            return True
        if name not in self._entries.irregular:
            self.add_problem(name, "is missing", None, expected, part=EXTRAS if name == SUMS else WEIGHTS)
        return False

    def _read_sums(self) -> bytes | None:
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
        subfolders = self._entries.folders & set(self.manifest.folders if self.manifest and self.is_listing else ())
        if self._by_hashes:
            subfolders |= self._entries.folders - self._entries.linked_folders
        for name, kind in self._entries.irregular.items():
            if name not in self.files | self._ignored | subfolders | self._litter:
                part = WEIGHTS if name == MANIFEST else None
                self.add_problem(name, "is not a regular file", kind, part=part)
        reported = {problem.file for problem in self._problems}
        for name in sorted(set(self._stated) - self.files - reported):
            self.add_problem(name, "is missing")
        if not self.compared_with:
            return
        if self._is_result and self.manifest and self.record:
            self._compare_sums(sums_bytes(self.manifest.files, self.record.sha256))
        known = {MANIFEST, SUMS} | set(self._stated) | self._ignored | self.harmless
        for name in sorted(self.files - known):
            self.add_problem(name, f"is not in {self.compared_with.removeprefix('a ')}", "an extra file")
        if self.manifest:
            self._compare_loadable(self.manifest)

    def refuse_extras(self) -> None:
        """Add a problem for each file that nothing states, whether or not a loader reads it."""
        for name in sorted(self.harmless):
            self.add_problem(name, f"is not in {self.compared_with}", "an extra file")

    def _compare_sums(self, expected: bytes) -> None:
        """Compare SHA256SUMS with the bytes that follow from the manifest; a line about weights makes it a problem of theirs."""
        sums = self._read_sums()
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

    # Bytes.

    def digest_files(self, workers: int, report: Report, *, with_tensors: bool) -> Digests:
        """Read every file that has the stated size, and compare its hash; return the digests, also of tensors if asked for."""
        names = [name for name in sorted(self._stated) if name in self.files and self.compare_size(name)]
        errors: dict[str, Exception] = {}
        if self.source.digests is None:
            with ExitStack() as stack:
                opened = self._open_weights(self.manifest, names, stack) if with_tensors and self.manifest else None
                request = opened or DigestRequest(self.source, names)
                digests = digest_all(request, errors.__setitem__, workers, report)
        else:
            digests = self.source.digests
        for name in sorted(errors):
            about = FILE if name in self._stated else TENSOR
            self.add_problem(name, f"cannot be verified: {errors[name]}", about=about)
        for name in names:
            if name in digests.files:
                for fault in compare_stated(self.source, name, self._stated[name], digests.files[name]):
                    self.add_problem(name, *fault)
        return digests

    def compare_size(self, name: str) -> bool:
        """Return whether a file has the stated size; if not, add a problem."""
        fault = size_fault(self.source, name, self._stated[name])
        if fault is not None:
            self.add_problem(name, *fault)
        return fault is None

    def _open_weights(self, manifest: Manifest, names: list[str], stack: ExitStack) -> DigestRequest | None:
        if not self.is_listing:
            request = open_result_weights(self.source, names, self.add_problem, stack)
        else:
            try:
                checkpoint = stack.enter_context(self.source.checkpoint())
            except (InputOutputError, MalformedInput) as error:
                self.add_problem(self.source.title, f"weights cannot be verified: {error}", about=CONTENT)
                return None
            request = request_for(self.source, checkpoint, names, verify_checksums=False)
        places, problem = manifest.places, "is in another file than the manifest says"
        for tensor in request.tensors:
            name, file = tensor.spec.name, tensor.file
            if places.get(name, file) != file:
                self.add_problem(name, problem, file, places[name], about=TENSOR)
        return request

    def compare_tensors(self, rows: Mapping[str, TensorRow]) -> None:
        """Compare the tensors in the files with those in the manifest."""
        stated = self.manifest.tensors if self.manifest else {}
        for name in sorted(set(rows) | set(stated)):
            if name not in rows:
                self.add_problem(name, "tensor is in the manifest, in no weights file", about=TENSOR)
            elif name not in stated:
                self.add_problem(name, "tensor is in a weights file, not in the manifest", about=TENSOR)
            elif rows[name] != stated[name]:
                found, expected = str(rows[name]), str(stated[name])
                self.add_problem(name, "tensor is not what the manifest says", found, expected, about=TENSOR)

    def with_documents(self, files: Mapping[str, str]) -> dict[str, str]:
        """Return ``files``, sha256 by name, with manifest and sums: the given manifest stands for one that is not there."""
        digests = dict(files)
        if self.record is None or self.manifest is None:
            return digests
        if self._external is None:
            sums = self._read_sums() if self._is_result else None
            digests[MANIFEST] = self.record.sha256
        else:
            own = {
                name: self.source.read(name, limits.MANIFEST.size) for name in (MANIFEST, SUMS) if name in self.files
            }
            digests[MANIFEST] = hashlib.sha256(own[MANIFEST]).hexdigest() if MANIFEST in own else self.record.sha256
            sums = own.get(SUMS, sums_bytes(self.manifest.files, self.record.sha256))
        if sums is not None:
            digests[SUMS] = hashlib.sha256(sums).hexdigest()
        return digests

    def compare_signed(self, signed: SignedFiles, digests: Digests) -> None:
        """Compare the files that were read with those that a signature covers."""
        found = dict.fromkeys(self.files - self._kept_inside, "a file that was not read")
        found |= self.with_documents({name: record.sha256 for name, record in digests.files.items()})
        if self.is_listing:
            self.add_problem(self.title, "signatures cover results, not listings of other folders")
        for name, kind in self._entries.unsigned.items():
            if kind == A_LINK or not signed.leaves_out(name):
                self.add_problem(name, "is not signed", kind)
        found |= signed_git_files(self.source, signed.digests)
        reported = {problem.file for problem in self._problems}
        for name in sorted((set(signed.digests) | set(found)) - reported):
            if name not in found:
                self.add_problem(name, "is signed, and missing")
            elif name not in signed.digests:
                if not signed.leaves_out(name):
                    self.add_problem(name, "is not signed", "an extra file")
            elif found[name] != signed.digests[name]:
                self.add_problem(name, "is not what was signed", found[name], signed.digests[name])

    def report(self, digest: str | None, digests: Digests | None = None, *, recomputed: bool) -> VerifyReport:
        """Return all that was found; ``digests`` have the sizes where nothing states them."""
        read = digests.files if digests is not None else {}
        sizes = {name: stated.size or (read[name].size if name in read else 0) for name, stated in self._stated.items()}
        places = set(self.manifest.places.values()) if self.manifest else set()
        parts = {name: WEIGHTS if name in places else part_of(name) for name in sizes}
        others = self.harmless | self._litter | (set(self._entries.passed_over) - {"model.sig"})
        verdicts = [
            verdict_of(
                part,
                [size for name, size in sizes.items() if parts[name] == part],
                self._problems,
                self.compared_with,
                others if part == EXTRAS else (),
                unread=sum(parts.get(name) == part for name in self.source.unread),
            )
            for part in PARTS
        ]
        where = self.source.where
        documents = {self.title} | ({SUMS} if self._is_result and self.manifest else set())
        notes = [
            f"{where(name)} was not looked at: another manifest counts"
            for name in sorted(self._ignored - self._kept_inside)
        ]
        notes += [f"{where(name)} is not in {self.compared_with}; no loader reads it" for name in sorted(self.harmless)]
        notes += [f"{where(name)} is no part of the checkpoint, and does no harm" for name in sorted(self._litter)]
        return VerifyReport(
            target=self.source.title,
            content_digest=digest,
            recomputed=recomputed,
            manifest_sha256=self.record.sha256 if self.record else None,
            files=len(sizes),
            bytes=sum(sizes.values()),
            weights=verdicts[0],
            loader_files=verdicts[1],
            extras=verdicts[2],
            compared_with=self.compared_with,
            unread=len(self.source.unread & set(sizes)),
            problems=tuple(self._problems),
            listed=tuple(sorted({*sizes} | (set() if self._by_hashes else documents))),
            notes=tuple(notes),
        )
