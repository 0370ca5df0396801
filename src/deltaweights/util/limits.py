"""How much a document may hold, for those who write it and those who read it: what is written can so be read.

Enters: nothing. Leaves: numbers. Never: a second place that says how long a manifest may be.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_TENSORS = 100_000
"""Of a checkpoint. None that is known has a tenth of it; a hostile header could fill the memory."""

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Limit:
    """The most that a document may hold: its bytes, and the braces, brackets and commas among them, also those in names.

    The signs bound the memory and the time that parsing takes, whatever the bytes are.
    """

    size: int
    objects: int
    lists: int
    commas: int


USUAL = Limit(256 * MEBIBYTE, 110_000, 440_000, 1_100_000)
"""Of any document but those below: enough for what is said of 100,000 tensors, too little to fill the memory of a machine. Whoever
reads a file says how long it may be."""

HEADER = Limit(32 * MEBIBYTE, 110_000, 440_000, 1_100_000)
"""Of a safetensors file. The format allows 100 MB; 100,000 tensors need about 15."""

INDEX = Limit(32 * MEBIBYTE, 110_000, 440_000, 1_100_000)

MANIFEST = Limit(256 * MEBIBYTE, 500_000, 3_000_000, 6_000_000)
"""Each tensor stands in the result, in two inputs, and in up to seven lists of what was found in it: 100,000 may have names of 200
characters. It is read member by member, so that it is never in memory as a whole."""

FRAGMENT = Limit(192 * MEBIBYTE, 150_000, 1_000_000, 3_000_000)
"""Of the record of one shard, which is read in the same way."""

STATEMENT = Limit(16 * MEBIBYTE, 200_000, 800_000, 1_600_000)
"""Of what a signature vouches for: more files than any checkpoint has."""

BUNDLE = Limit(16 * MEBIBYTE, 1_000, 4_000, 10_000)
"""Of a signature."""

ENDING = Limit(384 * MEBIBYTE, 800_000, 800_000, 6_000_000)
"""Of what a part leaves in staging about 100,000 tensors; it is our own, and holds more of each than a manifest does."""

JOURNAL = Limit(64 * MEBIBYTE, 110_000, 440_000, 1_100_000)
"""Of a publication in several steps: the files of two folders."""

MOST_SUMS = 64 * MEBIBYTE
"""Bytes of SHA256SUMS."""

MOST_VALUE = 128 * 1024
"""Characters of what a manifest says of one tensor: enough for a name of 4,096 characters, however it is escaped."""

MOST_STEPS = 1_300_000
"""Members and items of a manifest that are read one by one: more than 100,000 tensors have, whatever was found in them."""

MOST_NAMES = 200 * MEBIBYTE
"""Of memory, for all different names in a manifest."""
