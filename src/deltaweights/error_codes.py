"""The short, stable codes of errors, for scripts: docs/errors.md says what each means and what to do.

A raise site names a code only where the situation is worth telling apart; all others have that of their class. A code is never
renamed or given another meaning; a new one may be added.
"""

from __future__ import annotations

import errno
from enum import Enum


class ErrorCode(Enum):
    """A code and, in one line, what it means. The first of each block is the one of the error class."""

    BUG = ("E-BUG", "a bug in deltaweights")

    USAGE = ("E-USAGE", "the command line is wrong")
    NO_INPUT_GIVEN = ("E-NO-INPUT-GIVEN", "an input is not given, and no recipe says where it is")
    UNKNOWN_RECIPE = ("E-UNKNOWN-RECIPE", "no recipe has this name")
    NOT_A_SIZE = ("E-NOT-A-SIZE", "a size has no unit, or is none")
    OTHER_DTYPE = ("E-OTHER-DTYPE", "the dtype contradicts the recipe, or the delta's manifest")
    MISSING_PACKAGE = ("E-MISSING-PACKAGE", "a Python package that this needs is not installed")

    MALFORMED = ("E-MALFORMED", "an input breaks its format, or is hostile")
    LFS_POINTER = ("E-LFS-POINTER", "a file is a git-LFS pointer, not the file itself")
    UNSUPPORTED_FORMAT = (
        "E-UNSUPPORTED-FORMAT",
        "a file is of another format than its name says, or of none that is read",
    )
    NO_WEIGHTS = ("E-NO-WEIGHTS", "a folder, an archive or a repository holds no weights")
    SEVERAL_WEIGHTS = ("E-SEVERAL-WEIGHTS", "a folder holds more than one set of weights")
    INCOMPLETE = ("E-INCOMPLETE", "a file is missing or cut short: the download is not complete")
    DAMAGED = ("E-DAMAGED", "stored bytes do not match the checksum beside them")
    UNSAFE_PICKLE = ("E-UNSAFE-PICKLE", "a torch file holds more than tensors; nothing of it was executed")
    LINK_OUTSIDE = ("E-LINK-OUTSIDE", "a link leaves the folder that it is in")
    FOREIGN_STAGING = ("E-FOREIGN-STAGING", "the staging folder was not made by this user for this target")

    MISMATCH = ("E-MISMATCH", "the inputs do not belong together")
    SWAPPED = ("E-SWAPPED", "--base and --delta are swapped")
    NOT_A_DELTA = ("E-NOT-A-DELTA", "what is given as the delta is the base itself")
    ALREADY_MERGED = ("E-ALREADY-MERGED", "what is given as the delta is already a merged model")
    NOT_A_MODEL = ("E-NOT-A-MODEL", "a delta is given where a model is wanted")
    STORED_WHOLE = ("E-STORED-WHOLE", "a delta holds some tensors whole, not as differences")
    WRONG_BASE = ("E-WRONG-BASE", "the base is not the one that the delta was made from")
    BASE_NOT_PROVED = ("E-BASE-NOT-PROVED", "the weights do not prove the base, and do not refute it")
    OTHER_TENSORS = ("E-OTHER-TENSORS", "names, shapes or dtypes of tensors do not fit each other, or the recipe")

    INPUT_OUTPUT = ("E-INPUT-OUTPUT", "the system or the Hub refused, or failed")
    NOT_FOUND = ("E-NOT-FOUND", "a file or folder is not there")
    NO_PERMISSION = ("E-NO-PERMISSION", "a file or folder may not be read, or written")
    DISK_FULL = ("E-DISK-FULL", "there is not enough space on the disk")
    TOO_MANY_OPEN_FILES = ("E-TOO-MANY-OPEN-FILES", "more files are needed at once than may be open")
    OUT_OF_MEMORY = ("E-OUT-OF-MEMORY", "there is not enough memory")
    INPUT_CHANGED = ("E-INPUT-CHANGED", "an input was changed while it was read")
    NETWORK = ("E-NETWORK", "the Hub cannot be reached, or the connection broke")
    GATED = ("E-GATED", "the repository is gated: access must be requested")
    NO_ACCESS = ("E-NO-ACCESS", "the Hub gives no access: no such repository, or a missing or wrong token")
    NOT_IN_CACHE = ("E-NOT-IN-CACHE", "offline, and the file is not in the cache")
    HASH_MISMATCH = ("E-HASH-MISMATCH", "a file does not have the hash that the Hub states")
    NO_PARTS = ("E-NO-PARTS", "no part of a merge has run for this target")

    CHECK_FAILED = ("E-CHECK-FAILED", "a check that was asked for failed")
    NOT_AS_RECORDED = ("E-NOT-AS-RECORDED", "files are not what the manifest or the pin says")
    NO_SIGNATURE = ("E-NO-SIGNATURE", "the signature is missing, by somebody else, or wrong")
    DIFFERENT = ("E-DIFFERENT", "two checkpoints hold different weights")
    DOES_NOT_LOAD = ("E-DOES-NOT-LOAD", "the library would not load the checkpoint")
    PARTS_MISSING = ("E-PARTS-MISSING", "not all shards of a merge in parts are finished")
    INPUTS_UNVERIFIED = (
        "E-INPUTS-UNVERIFIED",
        "input files were compared with no hash, and --require-verified is given",
    )
    WEIGHTS_SUSPECT = ("E-WEIGHTS-SUSPECT", "--strict: weights are NaN, infinite or all the same")

    TARGET = ("E-TARGET", "the output folder cannot be used")
    TARGET_IN_USE = ("E-TARGET-IN-USE", "another run writes to the output folder")
    TARGET_NOT_EMPTY = ("E-TARGET-NOT-EMPTY", "the output folder holds something else")
    TARGET_DAMAGED = ("E-TARGET-DAMAGED", "the result is there, and does not verify")
    TARGET_IS_INPUT = ("E-TARGET-IS-INPUT", "the output folder is an input, is in one, or holds one")

    INTERRUPTED = ("E-INTERRUPTED", "SIGINT or SIGTERM ended the command")
    STDOUT_CLOSED = ("E-STDOUT-CLOSED", "whoever read stdout has left")

    def __init__(self, text: str, meaning: str) -> None:
        self.text, self.meaning = text, meaning

    def __str__(self) -> str:
        return self.text


OF_ERRNO = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.ENOTDIR: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.NO_PERMISSION,
    errno.EPERM: ErrorCode.NO_PERMISSION,
    errno.EROFS: ErrorCode.NO_PERMISSION,
    errno.ENOSPC: ErrorCode.DISK_FULL,
    errno.EDQUOT: ErrorCode.DISK_FULL,
    errno.EMFILE: ErrorCode.TOO_MANY_OPEN_FILES,
    errno.ENFILE: ErrorCode.TOO_MANY_OPEN_FILES,
    errno.ENOMEM: ErrorCode.OUT_OF_MEMORY,
}
"""The codes of errors of the system; others have that of the class."""
