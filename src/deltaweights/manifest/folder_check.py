"""One folder being checked: names, sizes and bytes against a manifest, and the problems so far.

Enters: a folder. Leaves: everything that is not as it should be. Never: torch, or a file that no name in the folder stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.layout import META_PART
from deltaweights.checkpoint.small_files import read_small, refuse_long
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.manifest.digest import content_digest, digested
from deltaweights.manifest.entries import Entries, names_in, scan, unsigned_in
from deltaweights.manifest.manifest import MANIFEST, SUMS, FileRecord, sums_bytes
from deltaweights.manifest.parsed import LISTING, Manifest, original_digest, parse_manifest
from deltaweights.manifest.problems import CONTENT, FILE, TENSOR, Problem, VerifyReport
from deltaweights.manifest.reading import Found, Job, TensorRow, read
from deltaweights.manifest.signed import Signed, hold_signed
from deltaweights.manifest.weights import SPREAD, job_of, open_listed, open_written
from deltaweights.report import Report
from deltaweights.util import limits

LOADABLE = frozenset({".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf", ".h5", ".msgpack", ".py"})
"""Suffixes of files that loaders take weights or code from."""


class FolderCheck:
    """One verification: the folder ``root``, what should be in it, and the problems so far.

    ``kept`` is the manifest that was given; ``own`` says that the folder's own is what counts, and that deltaweights wrote both.
    """

    def __init__(self, root: Path, kept: Path | None) -> None:
        self.root, self.kept = root, kept
        self.entries: Entries = scan(root, "verify")
        self.manifest: Manifest | None = None
        self.record: FileRecord | None = None
        self._problems: list[Problem] = []

    def fail(
        self, name: str, problem: str, found: str | None = None, expected: str | None = None, *, about: str = FILE
    ) -> None:
        """Add a problem."""
        self._problems.append(Problem(name, problem, found, expected, about))

    @property
    def own(self) -> bool:
        """Whether the rules of what we write hold, also when the manifest is not readable: no link, and SHA256SUMS."""
        return self.kept is None and not self.listing

    @property
    def listing(self) -> bool:
        """Whether the manifest tells of somebody's folder, not of one that we wrote."""
        return self.manifest is not None and self.manifest.kind == LISTING

    @property
    def records(self) -> dict[str, FileRecord]:
        """The files that the manifest lists."""
        return self.manifest.files if self.manifest else {}

    @property
    def there(self) -> set[str]:
        """The names that count as files."""
        return self.entries.files if self.own else self.entries.readable

    def original(self, rows: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str | None:
        """Return the content digest of the original layout, where the folder is in another one."""
        if self.manifest is None or not self.manifest.original_content_digest:
            return None
        return original_digest(self.manifest, rows)

    @property
    def _links(self) -> set[str]:
        """The names that may be links, which are followed; what became one since it was looked at is none of them."""
        return set() if self.own else self.entries.links

    @property
    def title(self) -> str:
        """What the manifest is called in messages."""
        return MANIFEST if self.kept is None else str(self.kept)

    @property
    def overlooked(self) -> set[str]:
        """The names of manifests and sums that are there but do not count."""
        of_ours = set() if self.own else {SUMS} if self.kept is None else {MANIFEST, SUMS}
        return self.entries.readable & (of_ours | names_in(self.root, self.kept))

    # The manifest.

    def read_manifest(self, pin: str | None) -> None:
        """Read it, and hold it against its sha256 ``pin`` and its own content digest."""
        fault = None
        if self.kept is not None:
            fault = self._parse(self.kept)
            if fault is not None:
                remedy = "give one that deltaweights wrote"
                raise MalformedInput("not a manifest", where=self.kept, found=fault, remedy=remedy)
        elif self._is_there(MANIFEST):
            try:
                fault = self._parse(self.root / MANIFEST)
            except (InputOutputError, MalformedInput) as error:
                self.fail(MANIFEST, f"cannot be read: {error}")
        if self.record is not None and pin is not None and self.record.sha256 != pin.lower():
            self.fail(self.title, "is not the pinned one", self.record.sha256, pin.lower())
        if fault is not None:
            self.fail(MANIFEST, "is not a manifest", fault)
        if self.manifest is None:
            return
        stated = content_digest((name, *row) for name, row in self.manifest.tensors.items())
        if stated != self.manifest.content_digest:
            self.fail(self.title, "content_digest does not follow from the tensors that it lists")
        original = self.manifest.original_content_digest
        if original and original != original_digest(self.manifest, self.manifest.tensors):
            self.fail(self.title, "original_content_digest does not follow from the tensors that it lists")

    def _parse(self, path: Path) -> str | None:
        """Read and parse the manifest in one pass; return what is wrong with it. Raises ``InputOutputError``."""
        file, sha256 = LocalFile(path, follow=self.kept is not None), hashlib.sha256()
        manifest, fault = None, None
        try:
            refuse_long(file, limits.MANIFEST.size)
            chunks = digested(file.chunks(), sha256)
            try:
                manifest = parse_manifest(chunks)
            except ValueError as error:
                fault = str(error)
            for _ in chunks:  # the rest, for its sha256
                pass
        finally:
            file.close()
        self.manifest, self.record = manifest, FileRecord(file.size, sha256.hexdigest())
        return fault

    def _is_there(self, name: str) -> bool:
        """Tell whether a document is there; when it is missing that is a problem, and what is odd is told with the names."""
        if name in self.entries.files:
            return True
        if name not in self.entries.odd(self.root):
            self.fail(name, "is missing", None, "the manifest that deltaweights writes" if name == MANIFEST else None)
        return False

    def _read(self, name: str) -> bytes | None:
        if not self._is_there(name):
            return None
        try:
            return read_small(self.root / name, limits.MOST_SUMS, follow=False)
        except (InputOutputError, MalformedInput) as error:
            self.fail(name, f"cannot be read: {error}")
            return None

    # Names.

    def hold_names(self) -> None:
        """Hold the names in the folder against the manifest, and what could be loaded against its tensors."""
        folders = set(self.manifest.folders) if self.manifest and self.listing else set()
        for name, kind in self.entries.odd(self.root).items():
            if name not in self.there | self.overlooked and not (name in self.entries.folders and name in folders):
                self.fail(name, "is not a regular file", kind)
        odd = {problem.file for problem in self._problems}
        for name in sorted(set(self.records) - self.there - odd):
            self.fail(name, "is missing")
        if self.manifest is None or self.record is None:
            return
        if self.own:
            sums = self._read(SUMS)
            if sums is not None and sums != sums_bytes(self.records, self.record.sha256):
                self.fail(SUMS, "does not say what manifest.json says")
        for name in sorted(self.there - set(self.records) - {MANIFEST, SUMS} - self.overlooked):
            self.fail(name, "is not in the manifest", "an extra file")
        self._places(self.manifest)

    def _places(self, manifest: Manifest) -> None:
        """Hold the files that a loader could take weights from against those that the tensors are said to be in.

        A listing may tell of more: of torch files beside safetensors, or code. Of its tensors some may be spread over all parts.
        """
        stated = set(manifest.places.values())
        if SPREAD in stated and any(map(META_PART.fullmatch, manifest.files)):
            stated.remove(SPREAD)
        loadable = set() if self.listing else {name for name in manifest.files if Path(name).suffix in LOADABLE}
        for name in sorted(stated | loadable):
            if name not in stated:
                self.fail(name, "could be loaded, but holds no tensor of the manifest")
            elif name not in manifest.files:
                self.fail(name, "holds tensors of the manifest, but is not among its files")

    # Bytes.

    def read_bytes(self, workers: int, report: Report, *, with_tensors: bool) -> Found:
        """Read every file that is there and has its size; return what was found, also of the tensors if asked for."""
        names = [name for name in sorted(self.records) if name in self.there and self.has_size(name)]
        faults: dict[str, str] = {}
        with ExitStack() as stack:
            job = (
                self._job(names, stack) if with_tensors and self.manifest else Job(self.root, names, links=self._links)
            )
            found = read(job, lambda name, error: faults.update({name: str(error)}), workers, report)
        for name in sorted(faults):
            self.fail(name, f"cannot be verified: {faults[name]}", about=FILE if name in self.records else TENSOR)
        for name in names:
            if name in found.files and found.files[name].sha256 != self.records[name].sha256:
                self.fail(name, "has another sha256", found.files[name].sha256, self.records[name].sha256)
        return found

    def has_size(self, name: str) -> bool:
        """Tell whether a file has its size; else that is a problem."""
        try:
            size = (self.root / name).stat().st_size
        except OSError:
            return True  # whoever reads it will say what is wrong
        if size != self.records[name].size:
            self.fail(name, "has another size", f"{size} bytes", f"{self.records[name].size} bytes")
        return size == self.records[name].size

    def _job(self, names: list[str], stack: ExitStack) -> Job:
        """Open the weights, and return the reading of all files and tensors; weights that are unsound are left out."""
        if not self.listing:
            job = open_written(self.root, names, self.fail, stack, self._links)
        else:
            try:
                job = job_of(stack.enter_context(open_listed(self.root)), names, compare=False, links=self._links)
            except (InputOutputError, MalformedInput) as error:
                self.fail(str(self.root), f"weights cannot be verified: {error}", about=CONTENT)
                return Job(self.root, names, links=self._links)
        self._compare_places(job.tensors)
        return job

    def _compare_places(self, tensors: Iterable[LazyTensor]) -> None:
        places = self.manifest.places if self.manifest else {}
        for tensor in tensors:
            name, file = tensor.spec.name, tensor.file
            if places.get(name, file) != file:
                problem = "is in another file than the manifest says"
                self.fail(name, problem, file, places[name], about=TENSOR)

    def hold_tensors(self, rows: Mapping[str, TensorRow]) -> None:
        """Hold the tensors that the files gave against those of the manifest."""
        stated = self.manifest.tensors if self.manifest else {}
        for name in sorted(set(rows) | set(stated)):
            if name not in rows:
                self.fail(name, "tensor is in the manifest, in no weights file", about=TENSOR)
            elif name not in stated:
                self.fail(name, "tensor is in a weights file, not in the manifest", about=TENSOR)
            elif rows[name] != stated[name]:
                found, expected = str(rows[name]), str(stated[name])
                self.fail(name, "tensor is not what the manifest says", found, expected, about=TENSOR)

    def digests(self, files: Mapping[str, str]) -> dict[str, str]:
        """Return ``files``, sha256 by name, and with them those of the manifest and of the sums, as they are in the folder."""
        digests = dict(files)
        if self.record is not None and self.kept is None:
            digests[MANIFEST] = self.record.sha256
        sums = self._read(SUMS) if self.own else None
        if sums is not None:
            digests[SUMS] = hashlib.sha256(sums).hexdigest()
        return digests

    def hold_signed(self, signed: Signed, found: Found) -> None:
        """Hold the files that were read against a signature."""
        files = self.digests({name: record.sha256 for name, record in found.files.items()})
        unread = dict.fromkeys(self.there - set(files), "of a file that was not read")
        if self.listing:
            self.fail(self.title, "a signature vouches for results, not for listings of other folders")
        for name, kind in unsigned_in(self.root).items():
            self.fail(name, "is not signed", kind)
        known = {problem.file for problem in self._problems}
        self._problems += [each for each in hold_signed(signed, unread | files) if each.file not in known]

    def report(self, digest: str | None, *, recomputed: bool) -> VerifyReport:
        """Return all that was found."""
        overlooked = sorted(self.overlooked - names_in(self.root, self.kept))
        listed = {self.title, *self.records} | ({SUMS} if self.own and self.manifest else set())
        return VerifyReport(
            str(self.root),
            digest,
            recomputed,
            self.record.sha256 if self.record else None,
            len(self.records),
            sum(record.size for record in self.records.values()),
            tuple(self._problems),
            tuple(sorted(listed)),
            tuple(f"{self.root / name} was not looked at: another manifest counts" for name in overlooked),
        )
