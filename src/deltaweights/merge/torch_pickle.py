"""The pickle of a torch file, ``data.pkl``: the dict of its tensors, written opcode by opcode.

The bytes are those that ``torch.save`` writes, but that a pickler splits dicts of 1000 items and more. All opcodes and names are
accepted by the first ``torch.load(weights_only=True)``, that of torch 1.13.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deltaweights.checkpoint.tensors import TensorSpec, row_major
from deltaweights.checkpoint.torch_format.pickled_types import GLOBALS, StorageType

_STORAGES = {kind.dtype: name for name, kind in GLOBALS.items() if isinstance(kind, StorageType) and kind.dtype}
"""Module and name of the storage class of each dtype that has one, from the table that our reader uses."""

_REBUILD, _NO_HOOKS = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_SHORT_TUPLES = {1: b"\x85", 2: b"\x86", 3: b"\x87"}


def state_dict_pickle(specs: Iterable[TensorSpec]) -> bytes:
    """Return the pickle (protocol 2) of ``specs``, on the CPU and row-major; the n-th storage, from 0, has the key ``n``."""
    pickle = _Pickle()
    pickle.new(b"}")
    pickle.add(b"(")
    for key, spec in enumerate(specs):
        pickle.new(_text(spec.name))
        pickle.add_tensor(spec, str(key))
    pickle.add(b"u.")
    return bytes(pickle.written)


class _Pickle:
    """The opcodes so far. Like a pickler, it numbers values (the memo) and refers to repeated ones by their number."""

    def __init__(self) -> None:
        self.written = bytearray(b"\x80\x02")
        self._numbers: dict[bytes, int] = {}
        self._values = 0

    def add(self, opcodes: bytes) -> None:
        """Add opcodes whose result has no number."""
        self.written += opcodes

    def new(self, opcodes: bytes) -> None:
        """Add opcodes that create a value, and give it the next number (BINPUT)."""
        self.written += opcodes + _numbered(b"q", b"r", self._values)
        self._values += 1

    def shared(self, opcodes: bytes) -> None:
        """Add opcodes that create a value, or, from the second time on, refer to it (BINGET)."""
        if opcodes in self._numbers:
            self.written += _numbered(b"h", b"j", self._numbers[opcodes])
        else:
            self._numbers[opcodes] = self._values
            self.new(opcodes)

    def add_tensor(self, spec: TensorSpec, key: str) -> None:
        """Add ``_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())``."""
        self.shared(_global(_REBUILD))
        self.add(b"((")  # the arguments; the storage's record
        self.shared(_text("storage"))
        self.shared(_global(_STORAGES[spec.dtype]))
        self.new(_text(key))
        self.shared(_text("cpu"))
        self.add(_integer(spec.count))
        self.new(b"t")
        self.add(b"Q")
        self.add(_integer(0))
        self.add_tuple(spec.shape)
        self.add_tuple(row_major(tuple(max(size, 1) for size in spec.shape)))  # torch's strides, also of no elements
        self.add(b"\x89")
        self.shared(_global(_NO_HOOKS))
        self.new(b")R")
        self.new(b"t")
        self.new(b"R")

    def add_tuple(self, numbers: Sequence[int]) -> None:
        """Add a tuple of non-negative integers."""
        items = b"".join(map(_integer, numbers))
        if not numbers:
            self.add(b")")
        elif len(numbers) in _SHORT_TUPLES:
            self.new(items + _SHORT_TUPLES[len(numbers)])
        else:
            self.new(b"(" + items + b"t")


def _numbered(short: bytes, long: bytes, number: int) -> bytes:
    return short + number.to_bytes(1, "little") if number < 0x100 else long + number.to_bytes(4, "little")


def _text(text: str) -> bytes:
    """BINUNICODE."""
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _global(name: str) -> bytes:
    """GLOBAL: a line for the module, and one for what is in it."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _integer(number: int) -> bytes:
    """BININT1, BININT2, BININT, whose four bytes have a sign, or LONG1."""
    for opcode, length, end in ((b"K", 1, 1 << 8), (b"M", 2, 1 << 16), (b"J", 4, 1 << 31)):
        if number < end:
            return opcode + number.to_bytes(length, "little")
    length = number.bit_length() // 8 + 1  # with the sign
    return b"\x8a" + length.to_bytes(1, "little") + number.to_bytes(length, "little")
