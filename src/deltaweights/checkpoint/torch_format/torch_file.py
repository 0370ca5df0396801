"""Open a file that ``torch.save`` wrote: check its records, and list its tensors."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from blake3 import blake3

from deltaweights.checkpoint.checksums import Crc32, with_whole_file_checksum
from deltaweights.checkpoint.file_type import LEGACY_TORCH
from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.tensors import ContiguousSource, LazyTensor, WeightsFile, stored_bytes
from deltaweights.checkpoint.torch_format.legacy import read_legacy
from deltaweights.checkpoint.torch_format.pickled_types import TensorView
from deltaweights.checkpoint.torch_format.state_dict import MAX_PICKLE, read_state_dict
from deltaweights.checkpoint.torch_format.strided import view_tensor
from deltaweights.checkpoint.torch_format.unpickler import DOWNLOAD_AGAIN
from deltaweights.checkpoint.zip_format.archive import Archive, Member, read_archive

NO_CHECKSUMS = "records no checksums, so damage to its weights cannot be noticed"
"""The note on a legacy file, and on an archive written under ``torch.serialization.set_crc32_options(False)``."""

_PICKLE = "data.pkl"
_SMALL = ("byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
"""Members that describe the file; older versions of torch write fewer of them."""

_STORAGE = "data/"


def open_torch_file(file: InputFile) -> WeightsFile:
    """Read the records of ``file``, and close it if that fails. Raises ``MalformedInput``, ``InputOutputError``."""
    try:
        is_legacy = file.read(0, min(file.size, len(LEGACY_TORCH))) == LEGACY_TORCH
        weights = read_legacy(file) if is_legacy else _ZipReader(file, read_archive(file)).weights()
        weights = with_whole_file_checksum(weights)
    except BaseException:
        file.close()
        raise
    return weights if "crc32" in weights.checks else replace(weights, notes=(NO_CHECKSUMS,))


class _ZipReader:
    """Matches the archive's members with the pickle's tensors; every member must be accounted for."""

    def __init__(self, file: InputFile, archive: Archive) -> None:
        self.file, self.refuse = file, MalformedAt(file.path, DOWNLOAD_AGAIN)
        self.directory = archive.directory
        # An empty member's CRC is zero; a pickle is never empty, and its CRC is zero only by design.
        self.has_checksums = any(member.crc32 for member in archive.members)
        self.members = self.below_root(archive)

    def weights(self) -> WeightsFile:
        self.check_roles()
        pickle = self.read_small(_PICKLE, MAX_PICKLE)
        views = read_state_dict(pickle, self.file.path)
        storages = {name: self.storage_of(name, view) for name, view in views.items()}
        self.check_all_used(storages.values())
        tensors = {name: self.tensor(name, view, storages[name]) for name, view in views.items()}
        hasher = blake3(self.directory)
        hasher.update(pickle)
        weights = WeightsFile(self.file, "torch", f"blake3:{hasher.hexdigest()}", tensors)
        if not self.has_checksums:
            return weights
        extra = tuple(self.extra_checksums(tensors, storages))
        return replace(weights, checks=("header", "crc32"), extra_checksums=extra)

    # Members.

    def below_root(self, archive: Archive) -> dict[str, Member]:
        """Return the members by their names below the archive's one folder, which torch names after the file."""
        members: dict[str, Member] = {}
        roots = {member.name.partition("/")[0] for member in archive.members}
        if len(roots) > 1:
            raise self.refuse("more than one root folder in the archive", ", ".join(sorted(roots)[:4]), "one")
        for member in archive.members:
            root, _, name = member.name.partition("/")
            if name.endswith(f"/{_PICKLE}"):
                raise self.refuse("nested root folders in the archive", member.name, f"{root}/{_PICKLE}")
            members[name] = member
        return members

    def check_roles(self) -> None:
        """Refuse what cannot be a dict of tensors by its members alone, and check the small members."""
        for name in self.members:
            if name not in {_PICKLE, *_SMALL} and not name.startswith(_STORAGE):
                raise self.refuse("a member that torch.save does not write", self.members[name].name)
        if _PICKLE not in self.members:
            raise self.refuse(f"no {_PICKLE} in the archive", f"{len(self.members)} members", None, "check what it is")
        small = {name: self.read_small(name, 1024) for name in _SMALL if name in self.members}
        order = small.get("byteorder", b"little")
        if order != b"little":
            raise self.refuse("not little-endian", order[:20], "b'little'", "save it again on a little-endian machine")

    def read_small(self, name: str, most: int) -> bytes:
        member = self.members[name]
        if member.size > most:
            raise self.refuse(f"member {member.name} is too long", f"{member.size} bytes", f"at most {most}")
        data = self.file.read(member.offset, member.size)
        actual = zlib.crc32(data)
        if self.has_checksums and actual != member.crc32:
            raise self.refuse(f"member {member.name} is damaged", f"CRC {actual:#010x}", f"{member.crc32:#010x}")
        return data

    # Tensors.

    def storage_of(self, name: str, view: TensorView) -> Member:
        if not view.storage or "/" in view.storage or ".." in view.storage:
            raise self.refuse("unsafe storage key", repr(view.storage[:80]), "a plain name", tensor=name)
        member = self.members.get(_STORAGE + view.storage)
        if member is None:
            raise self.refuse(f"storage {view.storage} is missing from the archive", tensor=name)
        if member.size != view.storage_nbytes:
            problem = f"storage {view.storage} does not have the size in its record"
            raise self.refuse(problem, f"{member.size} bytes", view.storage_nbytes, tensor=name)
        return member

    def check_all_used(self, used: Iterable[Member]) -> None:
        unused = {member for name, member in self.members.items() if name.startswith(_STORAGE)} - set(used)
        if unused:
            names = sorted(member.name for member in unused)
            raise self.refuse("storages that no tensor uses", ", ".join(names[:4]) + (", ..." if names[4:] else ""))

    def tensor(self, name: str, view: TensorView, member: Member) -> LazyTensor:
        tensor = view_tensor(self.file, name, view, member.offset)
        is_whole_storage = isinstance(tensor.source, ContiguousSource) and tensor.spec.nbytes == member.size
        return replace(tensor, checksum=Crc32(member.crc32)) if is_whole_storage and self.has_checksums else tensor

    def extra_checksums(self, tensors: dict[str, LazyTensor], storages: dict[str, Member]) -> Iterator[LazyTensor]:
        """Return the storages, in the order of the file, whose checksum is not that of a tensor."""
        covered = {storages[name] for name, tensor in tensors.items() if tensor.checksum is not None}
        for member in sorted(set(storages.values()) - covered, key=lambda member: member.offset):
            yield stored_bytes(self.file, member.name, member.offset, member.size, Crc32(member.crc32))
