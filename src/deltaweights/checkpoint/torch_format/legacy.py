"""Read a file in torch's legacy format: what ``torch.save`` wrote before torch 1.6, and still does on request.

The format (``_legacy_save`` in torch's ``serialization.py``): five pickles one after the other, of a magic number, a version,
facts about the machine, the state dict, and the list of its storages' keys; then, for each key, an int64 count and the elements.
It has no checksums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from blake3 import blake3

from deltaweights.checkpoint.file_type import HEAD_BYTES, LEGACY_TORCH, is_tar
from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.tensors import WeightsFile
from deltaweights.checkpoint.torch_format.pickled_types import PickledStorage
from deltaweights.checkpoint.torch_format.state_dict import MAX_PICKLE, StateDictUnpickler
from deltaweights.checkpoint.torch_format.strided import view_tensor
from deltaweights.checkpoint.torch_format.unpickler import DOWNLOAD_AGAIN, RESAVE, Unpickler, by_opcode, value_kind
from deltaweights.error_codes import ErrorCode
from deltaweights.util.limits import MOST_TENSORS

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

FIRST_READ, LONGEST_READ = 128 * 1024, 4 * 2**20
"""Bytes read at once while the pickles continue; the first read, at least ``HEAD_BYTES``, is enough for 700 tensors."""

_PICKLED_MAGIC = LEGACY_TORCH + MAGIC.to_bytes(10, "little") + b"."
_COUNT = 8

U = TypeVar("U", bound=Unpickler)


def read_legacy(file: InputFile) -> WeightsFile:
    """Read the pickles and the storages' sizes of ``file``, which begins with ``LEGACY_TORCH``. Raises as ``open_torch_file``."""
    return _LegacyReader(file).weights()


class _LegacyStateDict(StateDictUnpickler):
    """The state dict's pickle, whose storage records have one field more than those in an archive."""

    def storage(self, record: object) -> PickledStorage:
        """Return the storage of the record ``("storage", type, key, device, count, None)``."""
        if not isinstance(record, tuple) or len(record) != 6:
            raise self.refuse("invalid storage record", value_kind(record))
        if record[5] is not None:  # as the first versions of torch could write it
            raise self.refuse("a part of a storage (view_metadata)", value_kind(record[5]), "None", RESAVE)
        return super().storage(record[:5])


class _StorageKeys(Unpickler):
    """The pickle of the storages' keys: the only one that may hold a list, and nothing but a list of strings."""

    builds = "list of storages"

    def keys(self) -> list[str]:
        result = self.run()
        if not isinstance(result, list):
            raise self.refuse("not a list of storages", value_kind(result), "a list")
        return result

    def append(self, items: Iterable[object]) -> None:
        """APPEND and APPENDS: put strings into the list on the stack."""
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, list):
            raise self.refuse("the pickle puts items into something that is not a list", value_kind(target))
        for item in items:
            if not isinstance(item, str):
                raise self.refuse("a storage's key is not a string", value_kind(item), "a string")
            target.append(item)
        if len(target) > MOST_TENSORS:
            raise self.refuse("too many storages", len(target), f"at most {MOST_TENSORS}")

    opcodes = {ord(shared): Unpickler.opcodes[ord(shared)] for shared in "(Xqr"} | by_opcode(
        {
            "]": lambda unpickler: unpickler.make([]),
            "a": lambda unpickler: unpickler.append(unpickler.pop_many(1)),
            "e": lambda unpickler: unpickler.append(unpickler.pop_to_mark()),
        }
    )


class _LegacyReader:
    """Runs the pickles one after the other, and checks that the storages behind them are all there and all used."""

    def __init__(self, file: InputFile) -> None:
        self.file, self.refuse = file, MalformedAt(file.path, DOWNLOAD_AGAIN)
        self.head = bytearray()
        self.read_more()

    def weights(self) -> WeightsFile:
        self.check_magic()
        version = self.unpickler(Unpickler, len(_PICKLED_MAGIC))
        self.check_version(version.run())
        system = self.unpickler(Unpickler, version.at)
        self.check_system(system.run())
        state = self.unpickler(_LegacyStateDict, system.at)
        views = state.state_dict()
        listed = self.unpickler(_StorageKeys, state.at)
        keys = listed.keys()
        users: dict[str, str] = {}  # for each storage the first tensor that uses it
        for name, view in views.items():
            users.setdefault(view.storage, name)
        self.check_keys(keys, users)
        digest = blake3(self.head[: listed.at])
        offsets: dict[str, int] = {}
        at = listed.at
        for key in keys:
            storage = state.storages[key]
            digest.update(self.read_count(storage, at, users[key]))
            offsets[key] = at + _COUNT
            at += _COUNT + storage.nbytes
        if at != self.file.size:
            raise self.refuse("bytes after the last storage", f"{self.file.size - at} bytes", "none")
        tensors = {name: view_tensor(self.file, name, view, offsets[view.storage]) for name, view in views.items()}
        return WeightsFile(self.file, "torch-legacy", f"blake3:{digest.hexdigest()}", tensors)

    # The pickles.

    def read_more(self) -> bool:
        have = len(self.head)
        if have == self.file.size:
            return False
        if have >= MAX_PICKLE:
            raise self.refuse("the pickles are too long", expected=f"at most {MAX_PICKLE} bytes")
        length = min(max(have, FIRST_READ), LONGEST_READ, self.file.size - have)
        self.head += self.file.read(have, length)
        return True

    def unpickler(self, kind: type[U], at: int) -> U:
        return kind(self.head, self.file.path, at, self.read_more)

    def check_magic(self) -> None:
        start = bytes(self.head[: len(_PICKLED_MAGIC)])
        if start != _PICKLED_MAGIC:
            problem = "truncated in the magic number" if _PICKLED_MAGIC.startswith(start) else "wrong magic number"
            raise self.refuse(problem, start, _PICKLED_MAGIC)
        # torch tries to open a file as a tar archive, its first format of all, before it looks for the magic number.
        if is_tar(bytes(self.head[:HEAD_BYTES])):
            raise self.refuse("a legacy file that is also a tar archive", remedy="do not load it with torch either")

    def check_version(self, version: object) -> None:
        if version != PROTOCOL:
            found = version if isinstance(version, int) else value_kind(version)
            raise self.refuse("wrong protocol version", found, PROTOCOL)

    def check_system(self, facts: object) -> None:
        if not isinstance(facts, dict):
            raise self.refuse("no facts about the machine that wrote the file", value_kind(facts), "a dict")
        self.check_version(facts.get("protocol_version"))
        little = facts.get("little_endian")
        if little is not True:
            found = f"little_endian {little}" if isinstance(little, bool) else value_kind(little)
            remedy = "save it again on a little-endian machine"
            raise self.refuse("not little-endian", found, "little_endian True", remedy)

    # Storages.

    def check_keys(self, keys: list[str], users: dict[str, str]) -> None:
        """Raise unless ``keys`` are the storages that tensors use, each once; ``users`` names a tensor for each."""
        unseen = set(keys)
        for key, name in users.items():
            if key not in unseen:
                problem = f"storage {key} is not in the list of storages (torch would return uninitialised memory)"
                raise self.refuse(problem, tensor=name)
        for key in keys:
            if key not in users:
                raise self.refuse("the list of storages names one that no tensor uses", key)
            if key not in unseen:
                raise self.refuse("the list of storages names one twice", key, tensor=users[key])
            unseen.remove(key)

    def read_count(self, storage: PickledStorage, at: int, user: str) -> bytes:
        """Return the bytes of the count at byte ``at``; it must be the storage's, and its elements must follow."""
        left = self.file.size - at
        count = self.file.read(at, min(left, _COUNT))
        elements = int.from_bytes(count, "little", signed=True)
        if len(count) == _COUNT and elements != storage.count:
            problem = f"storage {storage.key} does not have the size in its record"
            raise self.refuse(problem, f"{elements} elements", storage.count, tensor=user)
        if left < _COUNT + storage.nbytes:
            problem = f"truncated: storage {storage.key} goes on past the end of the file"
            expected = _COUNT + storage.nbytes
            raise self.refuse(problem, f"{left} bytes", expected, tensor=user, code=ErrorCode.INCOMPLETE)
        return count
