"""One file in torch's legacy format: what ``torch.save`` wrote before torch 1.6, and still does when asked to.

Enters: an open file that begins as that format does. Leaves: a ``WeightsFile`` whose tensors lie inside storages that are there
in full, each used by a tensor. Never: torch, a byte of weights, a checksum (the format has none), or memory for what a file claims.

The format (``_legacy_save`` in torch's ``serialization.py``): five pickles one after the other, of a magic number, a version,
facts about the machine, the state dict, and the list of its storages' keys; then, for each key, an int64 count and the elements.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, TypeVar

from blake3 import blake3

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.pickled.machine import AGAIN, REMEDY, Opcodes, StackMachine, by_opcode, kind_of
from deltaweights.checkpoint.pickled.reader import MAX_PICKLE, TorchPickle
from deltaweights.checkpoint.pickled.tables import Storage as PickledStorage
from deltaweights.checkpoint.pickled.tables import TensorView
from deltaweights.checkpoint.pickled.views import source_of
from deltaweights.checkpoint.sniff import HEAD_BYTES, LEGACY_TORCH, is_tar
from deltaweights.checkpoint.tensors import ITEM_SIZES, LazyTensor, Storage, TensorSpec
from deltaweights.checkpoint.weights_file import WeightsFile
from deltaweights.errors import MalformedInput
from deltaweights.util.limits import MOST_TENSORS

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

FIRST_READ, LONGEST_READ = 128 * 1024, 4 * 2**20
"""Bytes read at once while the pickles go on; the first read, of no less than ``HEAD_BYTES``, is enough for 700 tensors."""

_PICKLED_MAGIC = LEGACY_TORCH + MAGIC.to_bytes(10, "little") + b"."
_COUNT = 8

Machine = TypeVar("Machine", bound=StackMachine)


def read_legacy(file: InputFile) -> WeightsFile:
    """Read the pickles and the storages' sizes of ``file``, which begins with ``LEGACY_TORCH``.

    Raises ``MalformedInput`` when the file breaks a rule of the format or needs more than a dict of tensors, ``InputOutputError``
    when it cannot be read.
    """
    return _Reader(file).weights()


class _StateDict(TorchPickle):
    """The state dict's pickle, whose storage records have one more field than those in an archive."""

    def storage(self, record: object) -> PickledStorage:
        """Return the storage of the record ``("storage", type, key, device, count, None)``.

        In place of None the first versions of torch could say which part of the storage is meant.
        """
        if not isinstance(record, tuple) or len(record) != 6:
            raise self.refuse("false storage record", kind_of(record))
        if record[5] is not None:
            raise self.refuse("a part of a storage (view_metadata)", kind_of(record[5]), "None", REMEDY)
        return super().storage(record[:5])


class _Keys(StackMachine):
    """The pickle of the storages' keys, the only one in which a list belongs; nothing but strings may stand in it."""

    builds = "list of storages"

    def keys(self) -> list[str]:
        """Run the pickle, and return the keys."""
        result = self.run()
        if not isinstance(result, list):
            raise self.refuse("not a list of storages", kind_of(result), "a list")
        return result

    def append(self, items: Iterable[object]) -> None:
        """APPEND and APPENDS: put strings into the list on the stack."""
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, list):
            raise self.refuse("the pickle puts items into something that is not a list", kind_of(target))
        for item in items:
            if not isinstance(item, str):
                raise self.refuse("a storage's key is not a string", kind_of(item), "a string")
            target.append(item)
        if len(target) > MOST_TENSORS:
            raise self.refuse("too many storages", len(target), f"at most {MOST_TENSORS}")

    opcodes: ClassVar[Opcodes] = {ord(shared): StackMachine.opcodes[ord(shared)] for shared in "(Xqr"} | by_opcode(
        {
            "]": lambda machine: machine.make([]),
            "a": lambda machine: machine.append(machine.pop_many(1)),
            "e": lambda machine: machine.append(machine.pop_to_mark()),
        }
    )


class _Reader:
    """Runs the pickles one after the other, and holds what they say against the storages behind them."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.head = bytearray()
        self.read_on()

    def weights(self) -> WeightsFile:
        self.check_magic()
        version = self.machine(StackMachine, len(_PICKLED_MAGIC))
        self.check_version(version.run())
        system = self.machine(StackMachine, version.at)
        self.check_system(system.run())
        state = self.machine(_StateDict, system.at)
        views = state.state_dict()
        listed = self.machine(_Keys, state.at)
        keys = listed.keys()
        users: dict[str, str] = {}  # for each storage the first tensor that uses it
        for name, view in views.items():
            users.setdefault(view.storage, name)
        self.check_keys(keys, users)
        digest = blake3(self.head[: listed.at])
        places: dict[str, int] = {}
        at = listed.at
        for key in keys:
            storage = state.storages[key]
            digest.update(self.read_count(storage, at, users[key]))
            places[key] = at + _COUNT
            at += _COUNT + storage.nbytes
        if at != self.file.size:
            raise self.refuse("bytes after the last storage", f"{self.file.size - at} bytes", "none")
        tensors = {name: self.tensor(name, view, places[view.storage]) for name, view in views.items()}
        return WeightsFile(self.file, "torch-legacy", f"blake3:{digest.hexdigest()}", tensors)

    def refuse(
        self,
        problem: str,
        found: object = None,
        expected: object = None,
        remedy: str = AGAIN,
        tensor: str | None = None,
    ) -> MalformedInput:
        return MalformedInput(
            problem, where=self.file.path, tensor=tensor, found=found, expected=expected, remedy=remedy
        )

    # The head of the file.

    def read_on(self) -> bool:
        """Read more of the file, and return False at its end."""
        have = len(self.head)
        if have == self.file.size:
            return False
        if have >= MAX_PICKLE:
            raise self.refuse("the pickles are too long", expected=f"at most {MAX_PICKLE} bytes")
        length = min(max(have, FIRST_READ), LONGEST_READ, self.file.size - have)
        self.head += self.file.read(have, length)
        return True

    def machine(self, kind: type[Machine], at: int) -> Machine:
        return kind(self.head, self.file.path, at, self.read_on)

    def check_magic(self) -> None:
        start = bytes(self.head[: len(_PICKLED_MAGIC)])
        if start != _PICKLED_MAGIC:
            problem = "truncated in the magic number" if _PICKLED_MAGIC.startswith(start) else "false magic number"
            raise self.refuse(problem, start, _PICKLED_MAGIC)
        # torch tries to open a file as a tar archive, its first format of all, before it looks for the magic number.
        if is_tar(bytes(self.head[:HEAD_BYTES])):
            raise self.refuse("a legacy file that is a tar archive, too", remedy="do not load it with torch either")

    def check_version(self, version: object) -> None:
        if version != PROTOCOL:
            found = version if isinstance(version, int) else kind_of(version)
            raise self.refuse("false protocol version", found, PROTOCOL)

    def check_system(self, facts: object) -> None:
        if not isinstance(facts, dict):
            raise self.refuse("no facts about the machine that wrote the file", kind_of(facts), "a dict")
        self.check_version(facts.get("protocol_version"))
        little = facts.get("little_endian")
        if little is not True:
            found = f"little_endian {little}" if isinstance(little, bool) else kind_of(little)
            raise self.refuse(
                "not little-endian", found, "little_endian True", "save it again on a little-endian machine"
            )

    # Storages.

    def check_keys(self, keys: list[str], users: dict[str, str]) -> None:
        """Refuse a list that is not the storages which tensors use, each once; ``users`` names a tensor for each."""
        listed = set(keys)
        for key, name in users.items():
            if key not in listed:
                problem = f"storage {key} is not in the list of storages (torch would return uninitialised memory)"
                raise self.refuse(problem, tensor=name)
        for key in keys:
            if key not in users:
                raise self.refuse("the list of storages names one that no tensor uses", key)
            if key not in listed:
                raise self.refuse("the list of storages names one twice", key, tensor=users[key])
            listed.remove(key)

    def read_count(self, storage: PickledStorage, at: int, user: str) -> bytes:
        """Return the count that stands at byte ``at``, when it is the storage's and the elements are there, too."""
        left = self.file.size - at
        count = self.file.read(at, min(left, _COUNT))
        elements = int.from_bytes(count, "little", signed=True)
        if len(count) == _COUNT and elements != storage.count:
            problem = f"storage {storage.key} has not the size that its record says"
            raise self.refuse(problem, f"{elements} elements", storage.count, tensor=user)
        if left < _COUNT + storage.nbytes:
            problem = f"truncated: storage {storage.key} goes on past the end of the file"
            raise self.refuse(problem, f"{left} bytes", _COUNT + storage.nbytes, tensor=user)
        return count

    def tensor(self, name: str, view: TensorView, place: int) -> LazyTensor:
        item_size = ITEM_SIZES[view.dtype]
        source = source_of(self.file, place + view.offset * item_size, item_size, view.shape, view.strides)
        storage = Storage(self.file.path.name, view.storage, view.offset, view.strides)
        return LazyTensor(TensorSpec(name, view.dtype, view.shape), source, self.file.path, storage)
