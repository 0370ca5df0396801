"""What a zip archive may contain, depending on what writes it.

The numbers are from PKWARE's APPNOTE.TXT 6.3.10: 4.4.4 (flags), 4.4.5 (methods), 4.5.2 and 4.6.1 (extra fields).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.malformed import MalformedAt

STORED, DEFLATED = 0, 8
METHODS = {STORED: "stored", DEFLATED: "deflated"}

DESCRIPTOR_FOLLOWS, LEVEL, UTF8 = 0x0008, 0x0006, 0x0800

ZIP64, TIMES, OWNER, TORCH_ALIGNMENT = 0x0001, 0x5455, 0x7875, 0x4246

MARK16, MARK32 = 0xFFFF, 0xFFFFFFFF
"""A field with all bits set refers to the zip64 record or field."""


@dataclass(frozen=True)
class ZipRules:
    """What the records of an archive may say.

    ``what`` names such an archive and ``writer`` what writes it. ``objection`` says why a compressed member is refused,
    ``instead`` what to do about it. ``flags`` and ``extras`` are the allowed flags and extra fields of a member (None: all extra
    fields but those that change what the member is). ``unflagged`` is the encoding of names without the UTF-8 flag. ``script``
    matches the members of a program of TorchScript, which are compressed, and refused as what they are.
    """

    what: str
    writer: str
    remedy: str
    objection: str
    instead: str
    methods: tuple[int, ...]
    flags: int
    extras: frozenset[int] | None
    unflagged: str
    folders: bool
    comment: bool
    most_members: int
    most_directory: int
    script: re.Pattern[str] | None = None


TORCH_ZIP = ZipRules(
    what="a file that torch.save wrote",
    writer="torch.save",
    remedy="the file is damaged or was tampered with: download it again",
    objection=" (torch.load(mmap=True) would take the compressed bytes for weights)",
    instead="load it with torch.load(mmap=False) and write it again with torch.save",
    methods=(STORED,),
    flags=DESCRIPTOR_FOLLOWS | UTF8,
    extras=frozenset({ZIP64, TORCH_ALIGNMENT, TIMES, OWNER}),
    unflagged="ascii",
    folders=False,
    comment=False,
    most_members=200_000,
    most_directory=64 * 2**20,  # torch writes about 60 bytes per tensor
    script=re.compile(r"[^/]+/(constants\.pkl|code/.*)", re.DOTALL),
)

ANY_ZIP = ZipRules(
    what="a zip archive",
    writer="a usual tool",
    remedy="the archive is damaged or unusual: download it again, or unpack it and give the folder",
    objection="",
    instead="unpack it first",
    methods=(STORED, DEFLATED),
    flags=DESCRIPTOR_FOLLOWS | LEVEL | UTF8,
    extras=None,
    unflagged="utf-8",  # as Info-ZIP and macOS write them
    folders=True,
    comment=True,
    most_members=TORCH_ZIP.most_members,
    most_directory=TORCH_ZIP.most_directory,
)
"""For an archive that may be a file of torch or a zipped folder."""

FOLDER_ZIP = replace(ANY_ZIP, most_members=10_000, most_directory=16 * 2**20)
"""For a zipped folder, as Info-ZIP, Python, 7-Zip, macOS and Windows write it."""


@dataclass(frozen=True)
class ZipInput:
    """A file that is read as an archive, and the rules for it."""

    file: InputFile
    rules: ZipRules

    @property
    def refuse(self) -> MalformedAt:
        """Makes the errors about this archive."""
        return MalformedAt(self.file.path, self.rules.remedy)
