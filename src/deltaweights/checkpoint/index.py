"""The index of a sharded checkpoint: which tensor is in which shard."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.foreign.recognise import original_name
from deltaweights.checkpoint.layout_names import HF_WEIGHTS, SUFFIXES
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.small_files import json_object
from deltaweights.checkpoint.tensors import LazyTensor, name_fault
from deltaweights.error_codes import ErrorCode
from deltaweights.util.limits import INDEX, MOST_TENSORS
from deltaweights.util.text import natural_key


@dataclass(frozen=True)
class Index:
    """The contents of an index; ``path`` is for messages."""

    path: Path
    weight_map: dict[str, str]
    total_size: object

    @property
    def shards(self) -> list[str]:
        """The names of the shards, in natural order."""
        return sorted(set(self.weight_map.values()), key=natural_key)

    def refuse_missing(self, directory: Directory) -> None:
        """Raise ``MalformedInput`` when a shard is not there."""
        for name in self.shards:
            if not directory.has(name):
                expected = f"every file that {self.path.name} names"
                renamed = next((other for other in directory.names() if original_name(other) == name), None)
                if renamed is not None:
                    raise MalformedAt(directory.path / name, f"rename {shlex.quote(renamed)} to {shlex.quote(name)}")(
                        "shard is missing", renamed, expected, code=ErrorCode.INCOMPLETE
                    )
                others = [other for other in directory.names() if self._is_of_another_save(other)]
                if others:
                    found = f"{others[0]}, which it does not name"
                    remedy = (
                        f"index and shards are of two saves: fetch {self.path.name} again, or the shards that it names"
                    )
                    raise MalformedAt(directory.path / name, remedy)(
                        "shard is missing", found, expected, code=ErrorCode.INCOMPLETE
                    )
                raise MalformedAt(directory.path / name, "finish the download")(
                    "shard is missing", expected=expected, code=ErrorCode.INCOMPLETE
                )

    def _is_of_another_save(self, name: str) -> bool:
        return (
            name not in self.shards
            and HF_WEIGHTS.fullmatch(name) is not None
            and name.endswith(Path(self.shards[0]).suffix)
        )

    def check(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Raise ``MalformedInput`` unless the ``tensors`` of the shards are those of the index, each in its shard."""
        remedy = "index and shards are of different downloads: fetch them again"
        malformed = MalformedAt(self.path, remedy)
        for name, shard in self.weight_map.items():
            if name not in tensors:
                raise malformed("tensor of the index is not in its shard", expected=f"it in {shard}", tensor=name)
            if tensors[name].file != shard:
                problem, found = "tensor is in another shard than the index says", f"it in {tensors[name].file}"
                raise malformed(problem, found, shard, tensor=name)
        for name, tensor in tensors.items():
            if name not in self.weight_map:
                malformed = MalformedAt(self.path.with_name(tensor.file), remedy)
                raise malformed("tensor of a shard is not in the index", tensor=name)

    def check_total(self, tensors: Mapping[str, LazyTensor]) -> list[str]:
        """Return a warning if the stated size is wrong. That is no error: writers disagree on whether tied tensors count twice."""
        total = sum(tensor.spec.nbytes for tensor in tensors.values())
        if self.total_size is None or self.total_size == total:
            return []
        return [f"{self.path}: total_size is {self.total_size}, the tensors have {total} bytes"]


def read_index(directory: Directory, name: str) -> Index:
    """Read and check an index. Raises ``MalformedInput`` when it is not one, ``InputOutputError`` when it cannot be read."""
    path = directory.path / name
    malformed = MalformedAt(path, "the index is damaged or was tampered with: fetch it again")
    document = json_object(directory.read(name, INDEX.size), path)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise malformed("index has no weight_map")
    if len(weight_map) > MOST_TENSORS:
        raise malformed("too many tensors", len(weight_map), f"at most {MOST_TENSORS}")
    for tensor, shard in weight_map.items():
        fault = name_fault(tensor)
        if fault:
            raise malformed("unusable tensor name in the index", fault)
        if not isinstance(shard, str) or not _is_plain(shard):
            raise malformed("index names something other than a weights file beside it", repr(shard), tensor=tensor)
    suffixes = sorted({Path(shard).suffix for shard in set(weight_map.values())})
    if len(suffixes) > 1:
        raise malformed("index mixes formats", " and ".join(suffixes), "one format")
    metadata = document.get("metadata")
    return Index(path, weight_map, metadata.get("total_size") if isinstance(metadata, dict) else None)


@lru_cache(maxsize=256)  # an index repeats a few names for all its tensors
def _is_plain(name: str) -> bool:
    if len(name) > 255 or "/" in name or "\\" in name or name_fault(name) is not None:
        return False
    return len(name.encode()) <= 255 and Path(name).suffix in SUFFIXES
