"""The bytes around the tensors of a torch file: a zip of stored members, one for each tensor.

Of these bytes only the CRC-32s depend on the tensors' bytes; nothing depends on the machine, the path or the time.

Sources: PKWARE's APPNOTE.TXT 6.3.10, 4.3 to 4.5 (records); PyTorch's caffe2/serialize/inline_container.cc (members, alignment), and
what ``torch.save`` of torch 2.13 writes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.checkpoint.zip_format.rules import (
    DESCRIPTOR_FOLLOWS,
    MARK16,
    MARK32,
    STORED,
    TORCH_ALIGNMENT,
    UTF8,
    ZIP64,
)
from deltaweights.merge.torch_pickle import state_dict_pickle

ALIGNMENT = 64  # every member's bytes begin at a multiple of this, as torch needs for storages in a mapped file
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_DESCRIPTOR, _WIDE_DESCRIPTOR = struct.Struct("<4s3L"), struct.Struct("<4sL2Q")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_FLAGS = DESCRIPTOR_FOLLOWS | UTF8
_NO_TIME = (0, 0)  # time and date of all members, as torch writes them
_PLAIN, _WIDE = 10, 45  # the zip versions, 1.0 and 4.5, that a reader must support: the second has 8-byte sizes


class TorchFrame:
    """The ``Frame`` of a file that ``torch.load`` reads as a dict; ``name``, the archive's folder, is the file's stem in torch."""

    needs_crcs = True

    def __init__(self, specs: Sequence[TensorSpec], name: str) -> None:
        # The members that today's and 2023's loaders need. .format_version would let readers assume offsets, so it is left out.
        contents = {"data.pkl": state_dict_pickle(specs), "byteorder": b"little", "version": b"3\n"}
        sizes = {member: len(content) for member, content in contents.items()}
        sizes |= {f"data/{key}": spec.nbytes for key, spec in enumerate(specs)}
        members = list(_placed(name, sizes))
        self._small, self._storages = members[: len(contents)], members[len(contents) :]
        self._contents = list(contents.values())
        self._end = members[-1].end
        self.offsets = tuple(storage.begin for storage in self._storages)
        self.size = self._end + len(self._directory([0] * len(specs)))

    def bytes_before(self, index: int, crcs: Sequence[int]) -> bytes:
        if index:
            frame = self._storages[index - 1].descriptor(crcs[index - 1])
        else:
            small = zip(self._small, self._contents, strict=True)
            frame = b"".join(m.header + content + m.descriptor(zlib.crc32(content)) for m, content in small)
        if index < len(self._storages):
            return frame + self._storages[index].header
        return frame + self._directory(crcs)

    def _directory(self, crcs: Sequence[int]) -> bytes:
        """Return the central directory and its end records; like torch, always with the zip64 ones."""
        members = [*self._small, *self._storages]
        known = [zlib.crc32(content) for content in self._contents]
        entries = b"".join(member.entry(crc) for member, crc in zip(members, [*known, *crcs], strict=True))
        count, size, offset = len(members), len(entries), self._end
        length = _END64.size - 12  # counts neither signature nor itself
        end64 = _END64.pack(b"PK\6\6", length, _WIDE, _WIDE, 0, 0, count, count, size, offset)
        locator = _LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
        few = min(count, MARK16)
        end = _END.pack(b"PK\5\6", 0, 0, few, few, min(size, MARK32), min(offset, MARK32), 0)
        return entries + end64 + locator + end


@dataclass(frozen=True)
class _Member:
    """One stored member of ``size`` bytes; its local header is at byte ``offset``, CRC and size follow its bytes."""

    name: bytes
    offset: int
    size: int

    @property
    def needed(self) -> int:
        """The zip version that a reader must support."""
        return _WIDE if max(self.size, self.offset) >= MARK32 else _PLAIN

    @property
    def header(self) -> bytes:
        """The local header, padded up to the member's bytes; what the descriptor holds is zero here (APPNOTE 4.4.4)."""
        is_wide = self.size >= MARK32
        size = MARK32 if is_wide else 0
        extra = _wide_field(0, 0) if is_wide else b""
        begin = self.offset + _LOCAL.size + len(self.name) + len(extra) + 4
        padding = -begin % ALIGNMENT
        extra += struct.pack("<2H", TORCH_ALIGNMENT, padding) + b"Z" * padding
        fields = (self.needed, _FLAGS, STORED, *_NO_TIME, 0, size, size, len(self.name), len(extra))
        return _LOCAL.pack(b"PK\3\4", *fields) + self.name + extra

    @property
    def begin(self) -> int:
        """Where the member's bytes begin."""
        return self.offset + len(self.header)

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.begin + self.size + len(self.descriptor(0))

    def descriptor(self, crc: int) -> bytes:
        """Return what follows the member's bytes."""
        form = _WIDE_DESCRIPTOR if self.size >= MARK32 else _DESCRIPTOR
        return form.pack(b"PK\7\x08", crc, self.size, self.size)

    def entry(self, crc: int) -> bytes:
        """Return the member's record in the central directory."""
        extra = _wide_field(*(value for value in (self.size, self.size, self.offset) if value >= MARK32))
        size, offset = min(self.size, MARK32), min(self.offset, MARK32)
        fields = (self.needed, self.needed, _FLAGS, STORED, *_NO_TIME, crc, size, size, len(self.name), len(extra))
        return _CENTRAL.pack(b"PK\1\2", *fields, 0, 0, 0, 0, offset) + self.name + extra


def _placed(root: str, sizes: dict[str, int]) -> Iterator[_Member]:
    offset = 0
    for name, size in sizes.items():
        member = _Member(f"{root}/{name}".encode(), offset, size)
        yield member
        offset = member.end


def _wide_field(*values: int) -> bytes:
    """Return the zip64 extra field of ``values``, or nothing when there are none."""
    return struct.pack(f"<2H{len(values)}Q", ZIP64, 8 * len(values), *values) if values else b""
