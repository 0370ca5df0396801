"""Which files of a directory are the checkpoint's weights, and which of several sets of weights is used."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.file_type import LFS_POINTER
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout_names import (
    HF_WEIGHTS,
    MAIN_FILES,
    META_PART,
    PARAMS,
    SAFETENSORS,
    STATE_SUFFIXES,
    TORCH,
)
from deltaweights.checkpoint.look_around import no_weights
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput

CLEARLY_NEWER = 60.0
"""Seconds by which a set must be newer before that alone is worth a word: files of one save are written one after another."""


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a folder: the file to give for it, all its files, what is wrong with it, and when it was written."""

    main: str
    files: frozenset[str]
    fault: str | None
    modified: float | None = None

    def is_newer(self, other: WeightSet, by: float = 0.0) -> bool:
        """Return whether this set was written later than ``other``, by more than ``by`` seconds; False where times are unknown."""
        return self.modified is not None and other.modified is not None and self.modified > other.modified + by

    @property
    def written(self) -> str:
        """When the set was written, for messages."""
        return (
            "" if self.modified is None else f"{datetime.fromtimestamp(self.modified, timezone.utc):%Y-%m-%d %H:%M UTC}"
        )


@dataclass(frozen=True)
class MainFile:
    """The file that says where the weights are, a note that says why, and another complete set of weights beside it, if any.

    ``unused`` are the names of weights files that are known but not used.
    """

    name: str
    unused: frozenset[str] = frozenset()
    note: str | None = None
    used: WeightSet | None = None
    twin: WeightSet | None = None


def find_main_file(directory: Directory, role: str) -> MainFile:
    """Return the main file of ``directory``; ``params.json`` stands for all of Meta's files.

    Complete safetensors are preferred to torch files of the same checkpoint. Raises ``MalformedInput`` when there are no
    weights, or it is not clear which are meant, and ``InputOutputError``.
    """
    names = directory.names()
    found = [name for name in MAIN_FILES if name in names]
    parts = [name for name in names if META_PART.fullmatch(name)]
    if parts:
        found.append(PARAMS)
    if len(found) == 1:
        return MainFile(found[0])
    if len(found) == 2 and found[0] in SAFETENSORS and found[1] in TORCH:
        return _choose_format(directory, *(_weight_set(directory, name, names) for name in found))
    if found:
        raise _more_than_one_set(directory, [_set_if_readable(directory, name, names) for name in found])
    raise no_weights(directory, role)


def _more_than_one_set(directory: Directory, sets: Iterable[WeightSet]) -> MalformedInput:
    """Return the error for sets of which any may be meant; only complete ones are recommended, the newest first."""
    sets = list(sets)
    complete = sorted((each for each in sets if each.fault is None), key=lambda each: -(each.modified or 0.0))
    if complete:
        given = [str(directory.path / each.main) for each in complete]
        if len(complete) > 1 and complete[0].is_newer(complete[1], CLEARLY_NEWER):
            given[0] = f"{given[0]} (the newest, {complete[0].written})"
        remedy = f"give the one you mean: {' or '.join(given)}"
        broken = next((each for each in sets if each.fault is not None), None)
        if broken is not None:
            remedy = f"give the complete one, {given[0]}" if len(complete) == 1 else remedy
            remedy = f"{remedy}; {broken.main} cannot be used, since {broken.fault}"
    else:
        remedy = f"none is complete ({', '.join(str(each.fault) for each in sets)}): finish the download of one"
    found = " and ".join(each.main for each in sets)
    return MalformedAt(directory.path, remedy)(
        "more than one set of weights", found, "one", code=ErrorCode.SEVERAL_WEIGHTS
    )


def _choose_format(directory: Directory, safetensors: WeightSet, torch: WeightSet) -> MainFile:
    """Choose as the Hub's loaders do; a git-LFS pointer, which a clone has in place of each large file, counts as missing."""
    if safetensors.fault is None:
        note = f"{directory.path}: {safetensors.main} is used, not {torch.main} beside it"
        if torch.fault is not None:
            if torch.is_newer(safetensors, CLEARLY_NEWER) and not _is_pointer(torch):
                note = f"{note}, which is newer ({torch.written}) but not complete: {torch.fault}"
            return MainFile(safetensors.main, torch.files, note, safetensors)
        return MainFile(safetensors.main, torch.files, note, safetensors, torch)
    if torch.fault is not None:
        return MainFile(safetensors.main)  # opening it will report what is missing
    note = f"{directory.path}: {torch.main} is used, since {safetensors.fault}"
    if safetensors.is_newer(torch, CLEARLY_NEWER) and not _is_pointer(safetensors):
        note = f"{note}, although {safetensors.main} is newer ({safetensors.written}): finish its download if you mean that"
    return MainFile(torch.main, safetensors.files, note, torch)


def _is_pointer(broken: WeightSet) -> bool:
    return broken.fault is not None and broken.fault.endswith("pointer")


def twin_note(directory: Directory, main: MainFile, same: bool | None) -> str | None:
    """Return the note about two complete sets of weights; ``same`` says whether samples of them agree, None if that is unknown.

    ``main`` has a ``twin``. A folder that was saved into twice has a new and an old model.
    """
    used, twin = main.used, main.twin
    if used is None or twin is None or same:
        return main.note
    newer, where = twin.is_newer(used, 0.0 if same is False else CLEARLY_NEWER), directory.path
    if same is None and not newer:
        return main.note
    note = f"{where}: {used.main} is used, although {twin.main} beside it"
    if newer:
        what = "holds other weights and is newer" if same is False else "is newer"
        return f"{note} {what} ({twin.written}, not {used.written}): give {where / twin.main} if you mean that"
    return f"{note} holds other weights: give {where / twin.main} if you mean that"


def _weight_set(directory: Directory, main: str, names: Collection[str]) -> WeightSet:
    if main == PARAMS:
        files = {name for name in names if META_PART.fullmatch(name)}
        fault = None if PARAMS in names else f"{PARAMS} is missing"
        shown = min(files)
    else:
        fault, files = _file_fault(directory, main), {main}
        shown = main
        if fault is None and main.endswith(".index.json"):
            files |= set(read_index(directory, main).shards)
    fault = fault or next(filter(None, (_file_fault(directory, name) for name in sorted(files))), None)
    times = [time for name in files if (time := directory.modified(name)) is not None]
    return WeightSet(shown, frozenset(files), fault, max(times, default=None))


def _set_if_readable(directory: Directory, main: str, names: Collection[str]) -> WeightSet:
    try:
        return _weight_set(directory, main, names)
    except MalformedInput as error:
        return WeightSet(main, frozenset({main}), f"it is damaged ({error.problem})")


def _file_fault(directory: Directory, name: str) -> str | None:
    if not directory.has(name):
        return f"{name} is missing"
    state = unfinished_by(directory, name)
    if state is not None:
        return f"{name} is not finished: {state} is beside it"
    return f"{name} is a git-LFS pointer" if directory.head(name).startswith(LFS_POINTER) else None


def unfinished_by(directory: Directory, name: str) -> str | None:
    """Return the file by which a downloader says that it has not finished the file ``name``, None if there is none."""
    return next((name + suffix for suffix in STATE_SUFFIXES if directory.has(name + suffix)), None)


def refuse_strays(directory: Directory, main: str, known: Iterable[str]) -> None:
    """Raise ``MalformedInput`` when there are weights that are not ``known``: it is not clear which are meant."""
    for name in directory.names():
        if HF_WEIGHTS.fullmatch(name) and name not in known:
            stray, used = directory.modified(name), directory.modified(main)
            is_newer = stray is not None and used is not None and stray > used + CLEARLY_NEWER
            found = f"{name} beside {main}, which does not name it" + (" and is older" if is_newer else "")
            malformed = MalformedAt(directory.path, f"give the one you mean: {directory.path / main}")
            raise malformed("more than one set of weights", found, "one", code=ErrorCode.SEVERAL_WEIGHTS)
