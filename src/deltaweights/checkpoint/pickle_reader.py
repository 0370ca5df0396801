"""The pickle inside a torch file, read as data.

Enters: the bytes of ``data.pkl``. Leaves: for every tensor name, which part of which storage it is. Never: an import, a call of
anything the pickle names, an object of any class but the few below, or memory out of proportion to the bytes read.

Pickle is a stack machine. This one knows the opcodes and the globals that ``torch.save`` writes for a dict of tensors under
protocol 2, and refuses all others by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from deltaweights.checkpoint.tensors import ITEM_SIZES, MAX_BYTES, MAX_TENSORS, name_fault
from deltaweights.errors import MalformedInput

MAX_STEPS, STEPS_PER_TENSOR = 1_000_000, 60
"""Opcodes run at most: a Parameter with four axes needs 48, and the module versions of ``_metadata`` 9 per module."""

MAX_STACK = 2 * MAX_TENSORS + 16
MAX_MARKS = 16
MAX_STRING = 4096
MAX_AXES = 64
"""What torch allows; no tuple in a dict of tensors is longer."""


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor: the elements of storage ``storage`` that begin at element ``offset`` and lie ``strides`` apart.

    ``dtype`` is safetensors' name; ``storage_nbytes`` is the size that the pickle claims for the whole storage.
    """

    storage: str
    storage_nbytes: int
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    kind: _StorageType
    nbytes: int


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str | None
    """None for an untyped storage, whose size is counted in bytes."""


@dataclass(frozen=True, slots=True)
class _DType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Function:
    name: str


_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip

_STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16",
    "Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8",
    "Bool": "BOOL", "ComplexFloat": "C64",
}  # fmt: skip

_GLOBALS: dict[str, object] = {
    "collections OrderedDict": _Function("OrderedDict"),
    "torch._utils _rebuild_tensor": _Function("_rebuild_tensor"),
    "torch._utils _rebuild_tensor_v2": _Function("_rebuild_tensor_v2"),
    "torch._utils _rebuild_tensor_v3": _Function("_rebuild_tensor_v3"),
    "torch._utils _rebuild_parameter": _Function("_rebuild_parameter"),
    "torch._utils _rebuild_parameter_with_state": _Function("_rebuild_parameter_with_state"),
    "torch.storage UntypedStorage": _StorageType(None),
    **{f"torch {name}Storage": _StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch {name}": _DType(dtype) for name, dtype in _DTYPES.items()},
}

_REFUSED_GLOBALS = {
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no data",
    "_rebuild_wrapper_subclass": "a tensor subclass",
    "_rebuild_from_type_v2": "a tensor subclass, or a tensor with attributes",
    "QInt8Storage": "a quantized tensor",
    "QUInt8Storage": "a quantized tensor",
    "QInt32Storage": "a quantized tensor",
    "QUInt4x2Storage": "a quantized tensor",
    "QUInt2x4Storage": "a quantized tensor",
    "ComplexDoubleStorage": "a complex128 tensor, which no safetensors file can hold",
}

_REFUSED_OPCODES = {"G": "a float", "]": "a list", "a": "a list", "e": "a list", "\x81": "an object", "i": "an object"}

_REMEDY = "if you trust the file, load it with torch and save a dict of plain tensors"


def read_state_dict(data: bytes, where: str | Path) -> dict[str, TensorView]:
    """Return the tensors of the pickled dict, in its order. Raises ``MalformedInput`` for all that is not a dict of tensors."""
    machine = _Machine(data, where)
    result = machine.run()
    if not isinstance(result, dict):
        raise machine.refuse("not a dict of tensors", _kind(result), "a dict", _REMEDY)
    for name, value in result.items():
        fault = name_fault(name)
        if fault:
            raise machine.refuse("unusable tensor name", fault, tensor=name)
        if not isinstance(value, TensorView):
            raise machine.refuse("a value that is not a tensor", _kind(value), "a tensor", _REMEDY, tensor=name)
    return result


class _Machine:
    """The stack machine: ``stack`` is what stands above the topmost mark, ``below`` the parts under each mark."""

    def __init__(self, data: bytes, where: str | Path) -> None:
        self.data, self.where = data, where
        self.at = 0
        self.below: list[list[object]] = []
        self.stack: list[object] = []
        self.memo: list[object] = []
        self.storages: dict[str, _Storage] = {}
        self.steps_left = MAX_STEPS
        self.views_left = MAX_TENSORS

    def run(self) -> object:
        if self.take(2) != b"\x80\x02":
            raise self.refuse("the pickle's protocol is not 2", self.data[:2], "b'\\x80\\x02'", _REMEDY)
        stop = ord(".")
        while self.steps_left:
            self.steps_left -= 1
            opcode = self.byte()
            if opcode == stop:
                return self.result()
            action = _ACTIONS.get(opcode)
            if action is None:
                kind = _REFUSED_OPCODES.get(chr(opcode))
                found = f"opcode {bytes([opcode])!r}" + (f", {kind}" if kind else "")
                raise self.refuse("the pickle does what no dict of tensors needs", found, remedy=_REMEDY)
            action(self)
        raise self.refuse("the pickle does too much for its tensors", expected=f"at most {MAX_STEPS} opcodes besides")

    def result(self) -> object:
        if self.at != len(self.data):
            raise self.refuse("bytes after the end of the pickle", f"{len(self.data) - self.at} bytes")
        value = self.pop()
        if self.stack or self.below:
            raise self.refuse("the pickle leaves values behind")
        return value

    def refuse(
        self,
        problem: str,
        found: object = None,
        expected: object = None,
        remedy: str = "the file is damaged or was tampered with: download it again",
        tensor: str | None = None,
    ) -> MalformedInput:
        """Return the exception; ``found`` must be short, and never a value of the pickle that could be nested."""
        name = self.pending_name() if tensor is None else tensor
        return MalformedInput(problem, where=self.where, tensor=name, found=found, expected=expected, remedy=remedy)

    def pending_name(self) -> str | None:
        """Return the key whose value is being built: the last string above the dict, when that is all there is."""
        dict_and_rest, *frames = *self.below, self.stack
        if not dict_and_rest or not isinstance(dict_and_rest[0], dict):
            return None
        pending = dict_and_rest[1:] or (frames[0] if frames else [])
        return next((value for value in reversed(pending) if isinstance(value, str)), None)

    # Bytes.

    def take(self, length: int) -> bytes:
        begin, self.at = self.at, self.at + length
        if self.at > len(self.data):
            self.at = len(self.data)
            raise self.refuse("the pickle is cut short")
        return self.data[begin : self.at]

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise self.refuse("the pickle is cut short")
        self.at += 1
        return self.data[self.at - 1]

    def number(self, length: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(length), "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 256)
        if end < 0:
            raise self.refuse("a global's name is cut short or too long")
        text = self.take(end - self.at).decode("ascii", "backslashreplace")
        self.at += 1
        return text

    # Stack.

    def push(self, value: object) -> None:
        if len(self.stack) >= MAX_STACK:
            raise self.refuse("the pickle's stack grows too high", expected=f"at most {MAX_STACK} values")
        self.stack.append(value)

    def pop(self) -> object:
        if not self.stack:
            raise self.refuse("the pickle takes a value from an empty stack")
        return self.stack.pop()

    def pop_many(self, count: int) -> tuple[object, ...]:
        if len(self.stack) < count:
            raise self.refuse("the pickle takes a value from an empty stack")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def mark(self) -> None:
        if len(self.below) >= MAX_MARKS:
            raise self.refuse("the pickle is nested too deeply", expected=f"at most {MAX_MARKS} marks")
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[object]:
        if not self.below:
            raise self.refuse("the pickle goes back to a mark that is not there")
        values, self.stack = self.stack, self.below.pop()
        return values

    # Opcodes.

    def string(self) -> None:
        length = self.number(4)
        if length > MAX_STRING:
            raise self.refuse("a string is too long", f"{length} bytes", f"at most {MAX_STRING}")
        try:
            self.push(self.take(length).decode("utf-8"))
        except UnicodeDecodeError:
            raise self.refuse("a string is not UTF-8") from None

    def long(self) -> None:
        length = self.byte()
        if length > 8:
            raise self.refuse("a number is too long", f"{length} bytes", "at most 8")
        self.push(self.number(length, signed=True))

    def tuple_to_mark(self) -> None:
        values = self.pop_to_mark()
        if len(values) > MAX_AXES:
            raise self.refuse("a tuple is too long", f"{len(values)} items", f"at most {MAX_AXES}")
        self.push(tuple(values))

    def put(self, index: int) -> None:
        if not self.stack:
            raise self.refuse("the pickle takes a value from an empty stack")
        if index > len(self.memo):  # picklers count up; a gap would only reserve memory
            raise self.refuse("memo index out of bounds", index, f"at most {len(self.memo)}")
        self.memo[index : index + 1] = self.stack[-1:]

    def get(self, index: int) -> None:
        if index >= len(self.memo):
            raise self.refuse("memo index that was never set", index, f"less than {len(self.memo)}")
        self.push(self.memo[index])

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            raise self.refuse("the pickle puts items into something that is not a dict", _kind(target))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise self.refuse("a dict has a key that is not a string", _kind(key), "a string", _REMEDY)
            if key in target:
                raise self.refuse("duplicate key in a dict", key)
            target[key] = value
        if len(target) > MAX_TENSORS:
            raise self.refuse("too many tensors", len(target), f"at most {MAX_TENSORS}")

    def build(self) -> None:
        target, state = self.pop_many(2)
        # torch hangs the module versions on a state dict as an attribute; they say nothing about its tensors.
        if not isinstance(target, dict) or not isinstance(state, dict) or set(state) != {"_metadata"}:
            raise self.refuse("the pickle sets attributes", f"on {_kind(target)}", "_metadata on a dict", _REMEDY)
        self.push(target)

    def find_global(self) -> None:
        name = f"{self.line()} {self.line()}"
        found = _GLOBALS.get(name)
        if found is None:
            # The last word alone: these functions moved between modules.
            kind = _REFUSED_GLOBALS.get(name.rsplit(" ", maxsplit=1)[-1])
            if kind is None:
                problem = "the pickle names what no dict of tensors needs; it may be made to run code"
                raise self.refuse(problem, name.replace(" ", "."), remedy="do not load it with torch either")
            raise self.refuse(kind, name.replace(" ", "."), remedy=_REMEDY)
        self.push(found)

    def persistent_id(self) -> None:
        value = self.pop()
        if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage":
            raise self.refuse("false storage record", _kind(value))
        _, kind, key, device, count = value
        if not (
            isinstance(kind, _StorageType) and isinstance(key, str) and isinstance(device, str) and _is_size(count)
        ):
            raise self.refuse("false storage record", f"{_kind(kind)}, {_kind(key)}, {_kind(device)}, {_kind(count)}")
        if device == "meta":
            raise self.refuse("a meta tensor, which has no data", "device meta", remedy=_REMEDY)
        nbytes = count * (1 if kind.dtype is None else ITEM_SIZES[kind.dtype])
        if nbytes > MAX_BYTES:
            raise self.refuse("huge storage", f"{count} elements", f"at most {MAX_BYTES} bytes")
        storage = _Storage(key, kind, nbytes)
        if self.storages.setdefault(key, storage) != storage:
            raise self.refuse("two records of one storage disagree", f"storage {key}")
        self.push(storage)

    def reduce(self) -> None:
        function, arguments = self.pop_many(2)
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise self.refuse("the pickle calls something that is not a function", _kind(function))
        call, counts = _CALLS[function.name]
        if len(arguments) not in counts:
            raise self.refuse(f"{function.name} has a false number of arguments", len(arguments))
        self.push(call(self, *arguments))

    # What the pickle may call. Flags for autograd say nothing about bytes; hooks and other extras must be empty.

    def ordered_dict(self) -> object:
        return {}

    def parameter(self, tensor: object, requires_grad: object, *extras: object) -> object:
        if not isinstance(tensor, TensorView):
            raise self.refuse("a Parameter of something that is not a tensor", _kind(tensor))
        self.check_extras(requires_grad, *extras)
        return tensor

    def tensor(self, *arguments: object) -> object:
        storage, offset, shape, strides, *extras = arguments
        self.check_extras(*(extras or [False]))
        if not isinstance(storage, _Storage) or storage.kind.dtype is None:
            raise self.refuse("a tensor without a typed storage", _kind(storage))
        return self.view(storage, storage.kind.dtype, offset, shape, strides)

    def tensor_v3(self, *arguments: object) -> object:
        storage, offset, shape, strides, grad, hooks, dtype, *extras = arguments
        self.check_extras(grad, hooks, *extras)
        if not isinstance(storage, _Storage) or storage.kind.dtype is not None or not isinstance(dtype, _DType):
            raise self.refuse("a tensor without an untyped storage and a dtype", f"{_kind(storage)}, {_kind(dtype)}")
        return self.view(storage, dtype.dtype, offset, shape, strides)

    def check_extras(self, requires_grad: object, *extras: object) -> None:
        if not isinstance(requires_grad, bool):
            raise self.refuse("requires_grad is not true or false", _kind(requires_grad))
        for extra in extras:
            if extra is not None and (not isinstance(extra, dict) or extra):
                raise self.refuse(
                    "a tensor with hooks, attributes or a pending conjugation", _kind(extra), "none", _REMEDY
                )

    def view(self, storage: _Storage, dtype: str, offset: object, shape: object, strides: object) -> TensorView:
        """Check that the view is one that a tensor can be written back to: every element once, inside its storage."""
        if not self.views_left:
            raise self.refuse("too many tensors", expected=f"at most {MAX_TENSORS}")
        self.views_left -= 1
        self.steps_left += STEPS_PER_TENSOR
        if not _is_size(offset) or not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides):
            raise self.refuse("offset, shape or strides are not whole numbers from 0 on, one stride for each size")
        what = f"offset {offset}, shape {list(shape)}, strides {list(strides)}"
        if math.prod(shape) * ITEM_SIZES[dtype] > MAX_BYTES:
            raise self.refuse("huge tensor", what, f"at most {MAX_BYTES} bytes")
        reach = 1  # how many elements the axes so far span, first and last included
        if 0 not in shape:
            for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1):
                if stride < reach:
                    raise self.refuse(
                        "a view that holds one element twice (expanded or overlapping)", what, remedy=_REMEDY
                    )
                reach += (size - 1) * stride
            count = storage.nbytes // ITEM_SIZES[dtype]
            if offset + reach > count:
                raise self.refuse(
                    "a view past the end of its storage", what, f"{count} elements in storage {storage.key}"
                )
        return TensorView(storage.key, storage.nbytes, dtype, offset, shape, strides)


def _is_size(value: object) -> TypeGuard[int]:
    # bool is a subclass of int, and True is no size.
    return type(value) is int and value >= 0


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(map(_is_size, value))


def _kind(value: object) -> str:
    """Name the kind of a value of the pickle; never the value, which may be nested beyond all bounds."""
    names = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        type(None): "None",
        dict: "a dict",
        tuple: "a tuple",
    }
    names |= {TensorView: "a tensor", _Storage: "a storage"}
    return names.get(type(value), "a function or type")


_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    ord(opcode): action
    for opcode, action in {
        "(": _Machine.mark,
        ")": lambda machine: machine.push(()),
        "}": lambda machine: machine.push({}),
        "N": lambda machine: machine.push(None),
        "\x88": lambda machine: machine.push(True),
        "\x89": lambda machine: machine.push(False),
        "K": lambda machine: machine.push(machine.byte()),
        "M": lambda machine: machine.push(machine.number(2)),
        "J": lambda machine: machine.push(machine.number(4, signed=True)),
        "\x8a": _Machine.long,
        "X": _Machine.string,
        "t": _Machine.tuple_to_mark,
        "\x85": lambda machine: machine.push(machine.pop_many(1)),
        "\x86": lambda machine: machine.push(machine.pop_many(2)),
        "\x87": lambda machine: machine.push(machine.pop_many(3)),
        "q": lambda machine: machine.put(machine.byte()),
        "r": lambda machine: machine.put(machine.number(4)),
        "h": lambda machine: machine.get(machine.byte()),
        "j": lambda machine: machine.get(machine.number(4)),
        "s": lambda machine: machine.set_items(list(machine.pop_many(2))),
        "u": lambda machine: machine.set_items(machine.pop_to_mark()),
        "b": _Machine.build,
        "c": _Machine.find_global,
        "Q": _Machine.persistent_id,
        "R": _Machine.reduce,
    }.items()
}

_CALLS: dict[str, tuple[Callable[..., object], tuple[int, ...]]] = {
    "OrderedDict": (_Machine.ordered_dict, (0,)),
    "_rebuild_tensor": (_Machine.tensor, (4,)),
    "_rebuild_tensor_v2": (_Machine.tensor, (6, 7)),
    "_rebuild_tensor_v3": (_Machine.tensor_v3, (7, 8)),
    "_rebuild_parameter": (_Machine.parameter, (3,)),
    "_rebuild_parameter_with_state": (_Machine.parameter, (4,)),
}
"""The machine's answer to each function, and how many arguments it may have."""
