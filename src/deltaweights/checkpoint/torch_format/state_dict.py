"""Read the pickle of a state dict as data: which part of which storage each tensor is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard

from deltaweights.checkpoint.tensors import ITEM_SIZES, MAX_BYTES, name_fault
from deltaweights.checkpoint.torch_format.pickled_types import (
    GLOBALS,
    REFUSED_GLOBALS,
    DType,
    Function,
    PickledStorage,
    StorageType,
    TensorView,
)
from deltaweights.checkpoint.torch_format.unpickler import RESAVE, Unpickler, by_opcode, value_kind
from deltaweights.error_codes import ErrorCode
from deltaweights.util.limits import MOST_TENSORS

MAX_PICKLE = 64 * 2**20
"""Most bytes of a pickle; torch writes 130 to 250 per tensor."""


def read_state_dict(data: bytes, where: str | Path) -> dict[str, TensorView]:
    """Return the tensors of the pickled dict ``data``, in its order. Raises ``MalformedInput`` if ``data`` is anything else."""
    unpickler = StateDictUnpickler(data, where)
    tensors = unpickler.state_dict()
    if unpickler.at != len(data):
        raise unpickler.refuse("bytes after the end of the pickle", f"{len(data) - unpickler.at} bytes")
    return tensors


class StateDictUnpickler(Unpickler):
    """Accepts what ``torch.save`` refers to and calls. ``storages`` are the storages that the pickle refers to, by key."""

    builds = "dict of tensors"

    def __init__(
        self, data: bytes | bytearray, where: str | Path, at: int = 0, more: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(data, where, at, more)
        self.storages: dict[str, PickledStorage] = {}
        self.views_left = MOST_TENSORS

    def state_dict(self) -> dict[str, TensorView]:
        """Run the pickle, and return the tensors of its dict, in order. Raises ``MalformedInput`` for anything else."""
        result = self.run()
        if not isinstance(result, dict):
            raise self.refuse("not a dict of tensors", value_kind(result), "a dict", RESAVE)
        for name, value in result.items():
            fault = name_fault(name)
            if fault:
                raise self.refuse("unusable tensor name", fault, tensor=name)
            if not isinstance(value, TensorView):
                raise self.refuse("a value that is not a tensor", value_kind(value), "a tensor", RESAVE, tensor=name)
        return result

    def pending_name(self) -> str | None:
        """Return the key whose value is being built: the last string above the dict at the bottom of the stack."""
        dict_and_rest, *frames = *self.below, self.stack
        if not dict_and_rest or not isinstance(dict_and_rest[0], dict):
            return None
        pending = dict_and_rest[1:] or (frames[0] if frames else [])
        return next((value for value in reversed(pending) if isinstance(value, str)), None)

    # Opcodes.

    def build(self) -> None:
        """BUILD: pop a state, and set it on the object below."""
        target, state = self.pop_many(2)
        # torch sets the module versions as an attribute of a state dict; they say nothing about its tensors.
        if not isinstance(target, dict) or not isinstance(state, dict) or set(state) != {"_metadata"}:
            raise self.refuse("the pickle sets attributes", f"on {value_kind(target)}", "_metadata on a dict", RESAVE)
        self.push(target)

    def find_global(self) -> None:
        """GLOBAL: read the lines of a module and a name, and push what ``GLOBALS`` has for them."""
        name = f"{self.line()} {self.line()}"
        found = GLOBALS.get(name)
        if found is None:
            # Without the module: these functions moved between modules.
            kind = REFUSED_GLOBALS.get(name.rsplit(" ", maxsplit=1)[-1])
            if kind is None:
                problem = "the pickle names a global that no dict of tensors needs; it may be made to run code"
                remedy = "do not load it with torch either"
                raise self.refuse(problem, name.replace(" ", "."), remedy=remedy, code=ErrorCode.UNSAFE_PICKLE)
            raise self.refuse(kind, name.replace(" ", "."), remedy=RESAVE)
        self.push(found)

    def persistent_id(self) -> None:
        """BINPERSID: pop a storage record, and push the storage."""
        self.make(self.storage(self.pop()))

    def storage(self, record: object) -> PickledStorage:
        """Return the storage of the record ``("storage", type, key, device, count)``."""
        if not isinstance(record, tuple) or len(record) != 5 or record[0] != "storage":
            raise self.refuse("invalid storage record", value_kind(record))
        _, kind, key, device, count = record
        if not (isinstance(kind, StorageType) and isinstance(key, str) and isinstance(device, str) and _is_size(count)):
            raise self.refuse("invalid storage record", ", ".join(map(value_kind, record[1:])))
        if device == "meta":
            raise self.refuse("a meta tensor, which has no data", "device meta", remedy=RESAVE)
        storage = PickledStorage(key, kind, count)
        if storage.nbytes > MAX_BYTES:
            raise self.refuse("huge storage", f"{count} elements", f"at most {MAX_BYTES} bytes")
        if self.storages.setdefault(key, storage) != storage:
            raise self.refuse("two records of one storage disagree", f"storage {key}")
        return storage

    def reduce(self) -> None:
        """REDUCE: pop a function and its arguments, and push the result."""
        function, arguments = self.pop_many(2)
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise self.refuse("the pickle calls something that is not a function", value_kind(function))
        call, counts = CALLS[function.name]
        if len(arguments) not in counts:
            raise self.refuse(f"{function.name} has a wrong number of arguments", len(arguments))
        self.make(call(self, *arguments))

    opcodes = Unpickler.opcodes | by_opcode({"b": build, "c": find_global, "Q": persistent_id, "R": reduce})

    # The functions that the pickle may call. Autograd's flags do not matter; hooks and other extras must be empty.

    def parameter(self, tensor: object, requires_grad: object, *extras: object) -> object:
        if not isinstance(tensor, TensorView):
            raise self.refuse("a Parameter of something that is not a tensor", value_kind(tensor))
        self.check_extras(requires_grad, *extras)
        return tensor

    def tensor(self, *arguments: object) -> object:
        storage, offset, shape, strides, *extras = arguments
        self.check_extras(*(extras or [False]))
        if not isinstance(storage, PickledStorage) or storage.kind.dtype is None:
            raise self.refuse("a tensor without a typed storage", value_kind(storage))
        return self.view(storage, storage.kind.dtype, offset, shape, strides)

    def tensor_v3(self, *arguments: object) -> object:
        """Return a view, with a dtype of its own, of an untyped storage."""
        storage, offset, shape, strides, grad, hooks, dtype, *extras = arguments
        self.check_extras(grad, hooks, *extras)
        if not isinstance(storage, PickledStorage) or storage.kind.dtype is not None or not isinstance(dtype, DType):
            found = f"{value_kind(storage)}, {value_kind(dtype)}"
            raise self.refuse("a tensor without an untyped storage and a dtype", found)
        return self.view(storage, dtype.dtype, offset, shape, strides)

    def check_extras(self, requires_grad: object, *extras: object) -> None:
        if not isinstance(requires_grad, bool):
            raise self.refuse("requires_grad is not true or false", value_kind(requires_grad))
        for extra in extras:
            if extra is not None and (not isinstance(extra, dict) or extra):
                problem = "a tensor with hooks, attributes or a pending conjugation"
                raise self.refuse(problem, value_kind(extra), "none", RESAVE)

    def view(self, storage: PickledStorage, dtype: str, offset: object, shape: object, strides: object) -> TensorView:
        """Return a view, in which every element must occur once, inside the storage."""
        if not self.views_left:
            raise self.refuse("too many tensors", expected=f"at most {MOST_TENSORS}")
        self.views_left -= 1
        self.allow_tensor()
        if not _is_size(offset) or not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides):
            raise self.refuse("offset, shape or strides are not whole numbers from 0 on, one stride for each size")
        what = f"offset {offset}, shape {list(shape)}, strides {list(strides)}"
        if math.prod(shape) * ITEM_SIZES[dtype] > MAX_BYTES:
            raise self.refuse("huge tensor", what, f"at most {MAX_BYTES} bytes")
        reach = 1  # elements spanned by the axes so far
        if 0 not in shape:
            for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1):
                if stride < reach:
                    problem = "a view that holds one element twice (expanded or overlapping)"
                    raise self.refuse(problem, what, remedy=RESAVE)
                reach += (size - 1) * stride
            count = storage.nbytes // ITEM_SIZES[dtype]
            if offset + reach > count:
                expected = f"{count} elements in storage {storage.key}"
                raise self.refuse("a view past the end of its storage", what, expected)
        return TensorView(storage.key, storage.nbytes, dtype, offset, shape, strides)


def _is_size(value: object) -> TypeGuard[int]:
    # bool is a subclass of int, and True is not a size.
    return type(value) is int and value >= 0


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(map(_is_size, value))


CALLS: dict[str, tuple[Callable[..., object], tuple[int, ...]]] = {
    "OrderedDict": (lambda _: {}, (0,)),
    "_rebuild_tensor": (StateDictUnpickler.tensor, (4,)),
    "_rebuild_tensor_v2": (StateDictUnpickler.tensor, (6, 7)),
    "_rebuild_tensor_v3": (StateDictUnpickler.tensor_v3, (7, 8)),
    "_rebuild_parameter": (StateDictUnpickler.parameter, (3,)),
    "_rebuild_parameter_with_state": (StateDictUnpickler.parameter, (4,)),
}
"""The implementation of each function, and how many arguments it may have."""
