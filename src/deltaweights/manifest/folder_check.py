"""A verification in progress: compares the names, sizes and bytes in a folder with a manifest, and collects the problems."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.layout_names import META_PART
from deltaweights.checkpoint.small_files import read_small, refuse_long
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest import content_digest, digested
from deltaweights.manifest.digest_files import DigestRequest, Digests, digest_all
from deltaweights.manifest.folder_entries import LINK, name_inside, scan_folder, unsigned_entries
from deltaweights.manifest.git_files import signed_git_files
from deltaweights.manifest.open_weights import SPREAD, open_for_listing, open_result_weights, request_for
from deltaweights.manifest.parse import LISTING, Manifest, TensorRow, original_digest, parse_manifest
from deltaweights.manifest.records import MANIFEST, SUMS, FileRecord, sums_bytes
from deltaweights.manifest.signer import Signer
from deltaweights.manifest.verify_report import CONTENT, FILE, TENSOR, Problem, VerifyReport
from deltaweights.report import Report
from deltaweights.util import limits
from deltaweights.util.litter import is_litter
from deltaweights.util.text import SAVE_UNMARKED

LOADABLE = frozenset({".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf", ".h5", ".msgpack", ".py"})
"""Suffixes of files that loaders take weights or code from."""


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
    """The verification of ``root`` by its own manifest, or by the one at ``external``; ``record`` is the manifest's."""

    def __init__(self, root: Path, external: Path | None) -> None:
        self.root, self._external = root, external
        self._entries = scan_folder(root, "verify")
        self.manifest: Manifest | None = None
        self.record: FileRecord | None = None
        self._problems: list[Problem] = []

    def add_problem(
        self, name: str, problem: str, found: str | None = None, expected: str | None = None, *, about: str = FILE
    ) -> None:
        """Add a problem."""
        self._problems.append(Problem(name, problem, found, expected, about))

    @property
    def is_listing(self) -> bool:
        """Whether the manifest lists any folder, not a result of ours."""
        return self.manifest is not None and self.manifest.kind == LISTING

    @property
    def _is_result(self) -> bool:
        """Whether the rules for our results apply, even if the manifest cannot be read: no links, and SHA256SUMS."""
        return self._external is None and not self.is_listing

    @property
    def records(self) -> dict[str, FileRecord]:
        """The files that the manifest lists."""
        return self.manifest.files if self.manifest else {}

    @property
    def files(self) -> set[str]:
        """The names in the folder that count as files."""
        names = self._entries.files if self._is_result else self._entries.readable
        return names - self._litter

    @property
    def _litter(self) -> set[str]:
        """Files and folders that systems leave anywhere, unless the manifest lists them; links are never among them."""
        names = {name for name in self._entries.files | self._entries.folders if is_litter(name)} - set(self.records)
        return {name for name in names if not (self.root / name).is_symlink()}

    @property
    def _links(self) -> set[str]:
        """The names of links that may be followed; files that became links after the scan are not among them."""
        return set() if self._is_result else self._entries.links

    @property
    def title(self) -> str:
        """The name of the manifest in messages."""
        return MANIFEST if self._external is None else str(self._external)

    @property
    def _ignored(self) -> set[str]:
        documents = set() if self._is_result else {SUMS} if self._external is None else {MANIFEST, SUMS}
        return self._entries.readable & (documents | name_inside(self.root, self._external))

    def original_digest(self, rows: Mapping[str, TensorRow]) -> str | None:
        """Return the content digest of the original layout, if the folder is in another one."""
        if self.manifest is None or not self.manifest.original_content_digest:
            return None
        return original_digest(self.manifest, rows)

    # The manifest.

    def read_manifest(self, pin: str | None) -> None:
        """Read the manifest, and compare it with its pinned sha256 and its own content digest."""
        fault = None
        if self._external is not None:
            fault = self._parse(self._external)
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
                fault = self._parse(self.root / MANIFEST)
            except (InputOutputError, MalformedInput) as error:
                self.add_problem(MANIFEST, f"cannot be read: {error}")
        if self.record is not None and pin is not None and self.record.sha256 != pin.lower():
            self.add_problem(self.title, "is not the pinned one", self.record.sha256, pin.lower())
        if fault is not None:
            self.add_problem(MANIFEST, "is not a manifest", fault)
        if self.manifest is None:
            return
        tensors, original = self.manifest.tensors, self.manifest.original_content_digest
        if content_digest((name, *row) for name, row in tensors.items()) != self.manifest.content_digest:
            self.add_problem(self.title, "content_digest does not follow from the tensors that it lists")
        if original and original != original_digest(self.manifest, tensors):
            self.add_problem(self.title, "original_content_digest does not follow from the tensors that it lists")

    def _parse(self, path: Path) -> str | None:
        """Read and parse the manifest in one pass; return what is wrong with it. Raises ``InputOutputError``."""
        sha256, fault = hashlib.sha256(), None
        with closing(LocalFile(path, follow=self._external is not None)) as file:
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
        if name not in self._entries.irregular(self.root):
            self.add_problem(name, "is missing", None, expected)
        return False

    def _read_sums(self) -> bytes | None:
        if not self._has_document(SUMS):
            return None
        try:
            return read_small(self.root / SUMS, limits.MOST_SUMS, follow=False)
        except (InputOutputError, MalformedInput) as error:
            self.add_problem(SUMS, f"cannot be read: {error}")
            return None

    # Names.

    def compare_names(self) -> None:
        """Compare the names in the folder with the manifest, and the files that can be loaded with its tensors."""
        subfolders = self._entries.folders & set(self.manifest.folders if self.manifest and self.is_listing else ())
        for name, kind in self._entries.irregular(self.root).items():
            if name not in self.files | self._ignored | subfolders | self._litter:
                self.add_problem(name, "is not a regular file", kind)
        reported = {problem.file for problem in self._problems}
        for name in sorted(set(self.records) - self.files - reported):
            self.add_problem(name, "is missing")
        if self.manifest is None or self.record is None:
            return
        if self._is_result:
            sums = self._read_sums()
            if sums is not None and sums != sums_bytes(self.records, self.record.sha256):
                self.add_problem(SUMS, "does not say what manifest.json says")
        for name in sorted(self.files - set(self.records) - {MANIFEST, SUMS} - self._ignored):
            self.add_problem(name, "is not in the manifest", "an extra file")
        self._compare_loadable(self.manifest)

    def _compare_loadable(self, manifest: Manifest) -> None:
        """Compare the files that a loader could take weights from with those of the manifest; a listing may have others."""
        stated = set(manifest.places.values())
        if SPREAD in stated and any(map(META_PART.fullmatch, manifest.files)):
            stated.remove(SPREAD)
        loadable = set() if self.is_listing else {name for name in manifest.files if Path(name).suffix in LOADABLE}
        for name in sorted(stated | loadable):
            if name not in stated:
                self.add_problem(name, "could be loaded, but holds no tensor of the manifest")
            elif name not in manifest.files:
                self.add_problem(name, "holds tensors of the manifest, but is not among its files")

    # Bytes.

    def digest_files(self, workers: int, report: Report, *, with_tensors: bool) -> Digests:
        """Read every file that has the stated size, and compare its sha256; return the digests, also of tensors if asked for."""
        names = [name for name in sorted(self.records) if name in self.files and self.compare_size(name)]
        errors: dict[str, Exception] = {}
        with ExitStack() as stack:
            opened = self._open_weights(self.manifest, names, stack) if with_tensors and self.manifest else None
            request = opened or DigestRequest(self.root, names, links=self._links)
            digests = digest_all(request, errors.__setitem__, workers, report)
        for name in sorted(errors):
            about = FILE if name in self.records else TENSOR
            self.add_problem(name, f"cannot be verified: {errors[name]}", about=about)
        for name in names:
            if name in digests.files and digests.files[name].sha256 != self.records[name].sha256:
                self.add_problem(name, "has another sha256", digests.files[name].sha256, self.records[name].sha256)
        return digests

    def compare_size(self, name: str) -> bool:
        """Return whether a file has the stated size; if not, add a problem."""
        try:
            size = (self.root / name).stat().st_size
        except OSError:
            return True  # reading it will give a better error
        if size != self.records[name].size:
            self.add_problem(name, "has another size", f"{size} bytes", f"{self.records[name].size} bytes")
        return size == self.records[name].size

    def _open_weights(self, manifest: Manifest, names: list[str], stack: ExitStack) -> DigestRequest | None:
        if not self.is_listing:
            request = open_result_weights(self.root, names, self.add_problem, stack, self._links)
        else:
            try:
                checkpoint = stack.enter_context(open_for_listing(self.root))
            except (InputOutputError, MalformedInput) as error:
                self.add_problem(str(self.root), f"weights cannot be verified: {error}", about=CONTENT)
                return None
            request = request_for(checkpoint, names, verify_checksums=False, links=self._links)
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
        """Return ``files``, sha256 by name, with the folder's own manifest and sums."""
        digests = dict(files)
        if self.record is not None and self._external is None:
            digests[MANIFEST] = self.record.sha256
        sums = self._read_sums() if self._is_result else None
        if sums is not None:
            digests[SUMS] = hashlib.sha256(sums).hexdigest()
        return digests

    def compare_signed(self, signed: SignedFiles, digests: Digests) -> None:
        """Compare the files that were read with those that a signature covers."""
        found = dict.fromkeys(self.files, "a file that was not read")
        found |= self.with_documents({name: record.sha256 for name, record in digests.files.items()})
        if self.is_listing:
            self.add_problem(self.title, "signatures cover results, not listings of other folders")
        for name, kind in unsigned_entries(self.root).items():
            if kind == LINK or not signed.leaves_out(name):
                self.add_problem(name, "is not signed", kind)
        found |= signed_git_files(self.root, signed.digests)
        reported = {problem.file for problem in self._problems}
        for name in sorted((set(signed.digests) | set(found)) - reported):
            if name not in found:
                self.add_problem(name, "is signed, and missing")
            elif name not in signed.digests:
                if not signed.leaves_out(name):
                    self.add_problem(name, "is not signed", "an extra file")
            elif found[name] != signed.digests[name]:
                self.add_problem(name, "is not what was signed", found[name], signed.digests[name])

    def report(self, digest: str | None, *, recomputed: bool) -> VerifyReport:
        """Return all that was found."""
        ignored = sorted(self._ignored - name_inside(self.root, self._external))
        sums = {SUMS} if self._is_result and self.manifest else set()
        notes = [f"{self.root / name} was not looked at: another manifest counts" for name in ignored]
        notes += [f"{self.root / name} is no part of the checkpoint, and does no harm" for name in sorted(self._litter)]
        return VerifyReport(
            target=str(self.root),
            content_digest=digest,
            recomputed=recomputed,
            manifest_sha256=self.record.sha256 if self.record else None,
            files=len(self.records),
            bytes=sum(record.size for record in self.records.values()),
            problems=tuple(self._problems),
            listed=tuple(sorted({self.title, *self.records} | sums)),
            notes=tuple(notes),
        )
