"""Limits on documents, shared by those who write and those who read them: what is written can be read back."""

from __future__ import annotations

from dataclasses import dataclass

MOST_TENSORS = 100_000  # in a checkpoint. No known one has a tenth of that; a hostile header could fill the memory
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Limit:
    """The most bytes, braces, brackets and commas of a document, also in strings: they bound the memory and time of parsing."""

    size: int
    objects: int
    lists: int
    commas: int


USUAL = Limit(256 * MEBIBYTE, 110_000, 440_000, 1_100_000)
"""For documents without a limit of their own: enough for 100,000 tensors, too little to fill the memory."""

HEADER = Limit(32 * MEBIBYTE, 110_000, 440_000, 1_100_000)
"""For headers of safetensors files. The format allows 100 MB; 100,000 tensors need about 15."""

INDEX = Limit(32 * MEBIBYTE, 110_000, 440_000, 1_100_000)

MANIFEST = Limit(256 * MEBIBYTE, 500_000, 3_000_000, 6_000_000)
"""Each of 100,000 tensors, with names of 200 characters, is in the result, in two inputs, and in up to seven lists of findings. A
manifest is read member by member, so it is never in memory as a whole."""

FRAGMENT = Limit(192 * MEBIBYTE, 150_000, 1_000_000, 3_000_000)  # for the record of one shard, read in the same way
STATEMENT = Limit(16 * MEBIBYTE, 200_000, 800_000, 1_600_000)  # for what is signed: more files than any checkpoint has
BUNDLE = Limit(16 * MEBIBYTE, 1_000, 4_000, 10_000)  # for a signature

HANDOFF = Limit(384 * MEBIBYTE, 800_000, 800_000, 6_000_000)
"""For what a part leaves in staging about 100,000 tensors. It is our own file, and says more about each than a manifest does."""

JOURNAL = Limit(64 * MEBIBYTE, 110_000, 440_000, 1_100_000)  # of a publication: the files of two folders
MOST_SUMS = 64 * MEBIBYTE  # bytes of SHA256SUMS

MOST_VALUE = 128 * 1024
"""Characters of a manifest's record of one tensor: enough for a name of 4,096 characters, however it is escaped."""

MOST_STEPS = 1_300_000
"""Members and items of a manifest that are read one by one: more than 100,000 tensors have, whatever was found in them."""

MOST_NAMES = 200 * MEBIBYTE  # memory for all different names in a manifest
