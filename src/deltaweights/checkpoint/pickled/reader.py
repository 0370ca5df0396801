"""The pickle inside a torch file, read as data.

Enters: the bytes of ``data.pkl``, or the like of it in a legacy file. Leaves: for every tensor name, which part of which storage it
is. Never: an import, a call of anything the pickle names, an object of any class but the few in ``pickle_tables``, or a view that
leaves its storage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeGuard

from deltaweights.checkpoint.pickled.machine import (
    MEMORY_PER_TENSOR,
    REMEDY,
    STEPS_PER_TENSOR,
    Opcodes,
    StackMachine,
    by_opcode,
    kind_of,
    no_more,
)
from deltaweights.checkpoint.pickled.tables import (
    GLOBALS,
    REFUSED_GLOBALS,
    DType,
    Function,
    Storage,
    StorageType,
    TensorView,
)
from deltaweights.checkpoint.tensors import ITEM_SIZES, MAX_BYTES, name_fault
from deltaweights.util.limits import MOST_TENSORS

MAX_PICKLE = 64 * 2**20
"""Bytes of a pickle at most; torch writes 130 to 250 per tensor."""


def read_state_dict(data: bytes, where: str | Path) -> dict[str, TensorView]:
    """Return the tensors of the dict that ``data`` is the pickle of, in its order.

    Raises ``MalformedInput`` for all that is not a dict of tensors, and for bytes after the pickle.
    """
    machine = TorchPickle(data, where)
    tensors = machine.state_dict()
    if machine.at != len(data):
        raise machine.refuse("bytes after the end of the pickle", f"{len(data) - machine.at} bytes")
    return tensors


class TorchPickle(StackMachine):
    """Knows what ``torch.save`` refers to and calls. ``storages`` are those that the pickle refers to, by key."""

    builds = "dict of tensors"

    def __init__(
        self, data: bytes | bytearray, where: str | Path, at: int = 0, more: Callable[[], bool] = no_more
    ) -> None:
        super().__init__(data, where, at, more)
        self.storages: dict[str, Storage] = {}
        self.views_left = MOST_TENSORS

    def state_dict(self) -> dict[str, TensorView]:
        """Run the pickle, and return the tensors of its dict, in their order. Raises ``MalformedInput`` for anything else."""
        result = self.run()
        if not isinstance(result, dict):
            raise self.refuse("not a dict of tensors", kind_of(result), "a dict", REMEDY)
        for name, value in result.items():
            fault = name_fault(name)
            if fault:
                raise self.refuse("unusable tensor name", fault, tensor=name)
            if not isinstance(value, TensorView):
                raise self.refuse("a value that is not a tensor", kind_of(value), "a tensor", REMEDY, tensor=name)
        return result

    def pending_name(self) -> str | None:
        """Return the key whose value is being built: the last string above the dict, when that is all there is."""
        dict_and_rest, *frames = *self.below, self.stack
        if not dict_and_rest or not isinstance(dict_and_rest[0], dict):
            return None
        pending = dict_and_rest[1:] or (frames[0] if frames else [])
        return next((value for value in reversed(pending) if isinstance(value, str)), None)

    # What the opcodes mean that name, call and refer.

    def build(self) -> None:
        """BUILD: take a state from the stack, and set it on the object below."""
        target, state = self.pop_many(2)
        # torch hangs the module versions on a state dict as an attribute; they say nothing about its tensors.
        if not isinstance(target, dict) or not isinstance(state, dict) or set(state) != {"_metadata"}:
            raise self.refuse("the pickle sets attributes", f"on {kind_of(target)}", "_metadata on a dict", REMEDY)
        self.push(target)

    def find_global(self) -> None:
        """GLOBAL: read a module's and a name's line, and push what they stand for."""
        name = f"{self.line()} {self.line()}"
        found = GLOBALS.get(name)
        if found is None:
            # The last word alone: these functions moved between modules.
            kind = REFUSED_GLOBALS.get(name.rsplit(" ", maxsplit=1)[-1])
            if kind is None:
                problem = "the pickle names what no dict of tensors needs; it may be made to run code"
                raise self.refuse(problem, name.replace(" ", "."), remedy="do not load it with torch either")
            raise self.refuse(kind, name.replace(" ", "."), remedy=REMEDY)
        self.push(found)

    def persistent_id(self) -> None:
        """BINPERSID: take a record from the stack, and push what is stored elsewhere under it."""
        self.make(self.storage(self.pop()))

    def storage(self, record: object) -> Storage:
        """Return the storage of the record ``("storage", type, key, device, count)``."""
        if not isinstance(record, tuple) or len(record) != 5 or record[0] != "storage":
            raise self.refuse("false storage record", kind_of(record))
        _, kind, key, device, count = record
        if not (isinstance(kind, StorageType) and isinstance(key, str) and isinstance(device, str) and _is_size(count)):
            raise self.refuse(
                "false storage record", f"{kind_of(kind)}, {kind_of(key)}, {kind_of(device)}, {kind_of(count)}"
            )
        if device == "meta":
            raise self.refuse("a meta tensor, which has no data", "device meta", remedy=REMEDY)
        storage = Storage(key, kind, count)
        if storage.nbytes > MAX_BYTES:
            raise self.refuse("huge storage", f"{count} elements", f"at most {MAX_BYTES} bytes")
        if self.storages.setdefault(key, storage) != storage:
            raise self.refuse("two records of one storage disagree", f"storage {key}")
        return storage

    def reduce(self) -> None:
        """REDUCE: take a function and its arguments from the stack, and push the result."""
        function, arguments = self.pop_many(2)
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise self.refuse("the pickle calls something that is not a function", kind_of(function))
        call, counts = CALLS[function.name]
        if len(arguments) not in counts:
            raise self.refuse(f"{function.name} has a false number of arguments", len(arguments))
        self.make(call(self, *arguments))

    opcodes: ClassVar[Opcodes] = StackMachine.opcodes | by_opcode(
        {"b": build, "c": find_global, "Q": persistent_id, "R": reduce}
    )

    # What the pickle may call. Flags for autograd say nothing about bytes; hooks and other extras must be empty.

    def ordered_dict(self) -> object:
        """Return an empty dict."""
        return {}

    def parameter(self, tensor: object, requires_grad: object, *extras: object) -> object:
        """Return the tensor that a Parameter is made of."""
        if not isinstance(tensor, TensorView):
            raise self.refuse("a Parameter of something that is not a tensor", kind_of(tensor))
        self.check_extras(requires_grad, *extras)
        return tensor

    def tensor(self, *arguments: object) -> object:
        """Return a view of a storage that has a dtype."""
        storage, offset, shape, strides, *extras = arguments
        self.check_extras(*(extras or [False]))
        if not isinstance(storage, Storage) or storage.kind.dtype is None:
            raise self.refuse("a tensor without a typed storage", kind_of(storage))
        return self.view(storage, storage.kind.dtype, offset, shape, strides)

    def tensor_v3(self, *arguments: object) -> object:
        """Return a view, in a dtype of its own, of a storage that has none."""
        storage, offset, shape, strides, grad, hooks, dtype, *extras = arguments
        self.check_extras(grad, hooks, *extras)
        if not isinstance(storage, Storage) or storage.kind.dtype is not None or not isinstance(dtype, DType):
            raise self.refuse(
                "a tensor without an untyped storage and a dtype", f"{kind_of(storage)}, {kind_of(dtype)}"
            )
        return self.view(storage, dtype.dtype, offset, shape, strides)

    def check_extras(self, requires_grad: object, *extras: object) -> None:
        """Refuse a tensor that is more than its bytes."""
        if not isinstance(requires_grad, bool):
            raise self.refuse("requires_grad is not true or false", kind_of(requires_grad))
        for extra in extras:
            if extra is not None and (not isinstance(extra, dict) or extra):
                raise self.refuse(
                    "a tensor with hooks, attributes or a pending conjugation", kind_of(extra), "none", REMEDY
                )

    def view(self, storage: Storage, dtype: str, offset: object, shape: object, strides: object) -> TensorView:
        """Check that the view is one that a tensor can be written back to: every element once, inside its storage."""
        if not self.views_left:
            raise self.refuse("too many tensors", expected=f"at most {MOST_TENSORS}")
        self.views_left -= 1
        self.steps_left += STEPS_PER_TENSOR
        self.memory_left += MEMORY_PER_TENSOR
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
                        "a view that holds one element twice (expanded or overlapping)", what, remedy=REMEDY
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


CALLS: dict[str, tuple[Callable[..., object], tuple[int, ...]]] = {
    "OrderedDict": (TorchPickle.ordered_dict, (0,)),
    "_rebuild_tensor": (TorchPickle.tensor, (4,)),
    "_rebuild_tensor_v2": (TorchPickle.tensor, (6, 7)),
    "_rebuild_tensor_v3": (TorchPickle.tensor_v3, (7, 8)),
    "_rebuild_parameter": (TorchPickle.parameter, (3,)),
    "_rebuild_parameter_with_state": (TorchPickle.parameter, (4,)),
}
"""The machine's answer to each function, and how many arguments it may have."""
