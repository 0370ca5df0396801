"""One file that ``torch.save`` wrote: its records, read and checked.

Enters: an open file. Leaves: a ``WeightsFile`` whose tensors lie inside storages that are there in full, each used by a tensor,
with the CRC-32 that the archive records for them; for a file in the legacy format, ``torch_legacy`` does the work. Never: torch,
a byte of weights, or a member whose use is not known.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from blake3 import blake3

from deltaweights.checkpoint.checksums import Crc32, cover_whole
from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.pickled.reader import MAX_PICKLE, read_state_dict
from deltaweights.checkpoint.pickled.tables import TensorView
from deltaweights.checkpoint.pickled.torch_legacy import read_legacy
from deltaweights.checkpoint.pickled.views import source_of
from deltaweights.checkpoint.sniff import LEGACY_TORCH
from deltaweights.checkpoint.tensors import ITEM_SIZES, LazyTensor, Storage, TensorSpec
from deltaweights.checkpoint.weights_file import ContiguousSource, WeightsFile
from deltaweights.checkpoint.zipped.archive import Archive, Member, read_archive
from deltaweights.errors import MalformedInput

NO_CHECKSUMS = "records no checksums, so damage to its weights cannot be noticed"
"""The note on a legacy file, and on an archive written under ``torch.serialization.set_crc32_options(False)``."""

MAX_SMALL = 1024

_PICKLE = "data.pkl"
_SMALL = ("byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
"""Members that say something about the file; older versions of torch write fewer of them."""

_STORAGE = "data/"

_AGAIN = "the file is damaged or was tampered with: download it again"


def open_torch_file(file: InputFile) -> WeightsFile:
    """Read the records of ``file``, which is closed when that fails.

    Raises ``MalformedInput`` when the file breaks a rule of the format or needs more than a dict of tensors, ``InputOutputError``
    when it cannot be read.
    """
    try:
        is_legacy = file.read(0, min(file.size, len(LEGACY_TORCH))) == LEGACY_TORCH
        weights = cover_whole(read_legacy(file) if is_legacy else _Reader(file, read_archive(file)).weights())
    except BaseException:
        file.close()
        raise
    return weights if "crc32" in weights.checks else replace(weights, notes=(NO_CHECKSUMS,))


class _Reader:
    """Puts the archive's members and the pickle's tensors together."""

    def __init__(self, file: InputFile, archive: Archive) -> None:
        self.file = file
        self.directory = archive.directory
        # An empty member's true CRC is zero; a pickle is never empty, and its CRC is not zero but by design.
        self.has_checksums = any(member.crc32 for member in archive.members)
        self.members = self.below_root(archive)

    def weights(self) -> WeightsFile:
        self.check_roles()
        pickle = self.read_small(_PICKLE, MAX_PICKLE)
        views = read_state_dict(pickle, self.file.path)
        storages = {name: self.storage_of(name, view) for name, view in views.items()}
        self.check_all_used(storages.values())
        tensors = {name: self.tensor(name, view, storages[name]) for name, view in views.items()}
        digest = blake3(self.directory)
        digest.update(pickle)
        return WeightsFile(
            self.file,
            "torch",
            f"blake3:{digest.hexdigest()}",
            tensors,
            ("header", "crc32") if self.has_checksums else ("header",),
            tuple(self.loose(tensors, storages)) if self.has_checksums else (),
        )

    def refuse(
        self,
        problem: str,
        found: object = None,
        expected: object = None,
        remedy: str = _AGAIN,
        tensor: str | None = None,
    ) -> MalformedInput:
        return MalformedInput(
            problem, where=self.file.path, tensor=tensor, found=found, expected=expected, remedy=remedy
        )

    # Members.

    def below_root(self, archive: Archive) -> dict[str, Member]:
        """Return the members by their names without the archive's one folder, which torch names after the file."""
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
        """Refuse what is no dict of tensors by its members alone, and check those that are small."""
        for name in self.members:
            if name == "constants.pkl" or name.startswith("code/"):
                raise self.refuse(
                    "a TorchScript program", name, "a dict of tensors", "save the model's state_dict with torch.save"
                )
            if name not in {_PICKLE, *_SMALL} and not name.startswith(_STORAGE):
                raise self.refuse("a member that torch.save does not write", self.members[name].name)
        if _PICKLE not in self.members:
            raise self.refuse(f"no {_PICKLE} in the archive", f"{len(self.members)} members", remedy="see what it is")
        small = {name: self.read_small(name, MAX_SMALL) for name in _SMALL if name in self.members}
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
            raise self.refuse(
                f"storage {view.storage} has not the size that its record says",
                f"{member.size} bytes",
                view.storage_nbytes,
                tensor=name,
            )
        return member

    def check_all_used(self, used: Iterable[Member]) -> None:
        idle = {member for name, member in self.members.items() if name.startswith(_STORAGE)} - set(used)
        if idle:
            names = sorted(member.name for member in idle)
            raise self.refuse("storages that no tensor uses", ", ".join(names[:4]) + (", ..." if names[4:] else ""))

    def tensor(self, name: str, view: TensorView, member: Member) -> LazyTensor:
        spec = TensorSpec(name, view.dtype, view.shape)
        item_size = ITEM_SIZES[view.dtype]
        source = source_of(self.file, member.offset + view.offset * item_size, item_size, view.shape, view.strides)
        whole = isinstance(source, ContiguousSource) and spec.nbytes == member.size
        return LazyTensor(
            spec,
            source,
            self.file.path,
            Storage(self.file.path.name, view.storage, view.offset, view.strides),
            Crc32(member.crc32) if whole and self.has_checksums else None,
        )

    def loose(self, tensors: dict[str, LazyTensor], storages: dict[str, Member]) -> Iterator[LazyTensor]:
        """Return the storages, in the order of the file, whose checksum no tensor's bytes can prove."""
        proven = {storages[name] for name, tensor in tensors.items() if tensor.checksum is not None}
        for member in sorted(set(storages.values()) - proven, key=lambda member: member.offset):
            spec, source = TensorSpec(member.name, "U8", (member.size,)), ContiguousSource(self.file, member.offset)
            storage = Storage(self.file.path.name, member.name, 0, (1,))
            yield LazyTensor(spec, source, self.file.path, storage, Crc32(member.crc32))
