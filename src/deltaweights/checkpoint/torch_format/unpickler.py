"""A restricted unpickler: the opcodes that plain values need, and no others.

It builds dicts, tuples, strings and numbers. It imports nothing, calls nothing, and bounds its memory and steps by
the number of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from sys import getsizeof
from typing import Any, ClassVar

from deltaweights.checkpoint.tensors import MAX_NAME
from deltaweights.checkpoint.torch_format.pickled_types import PickledStorage, TensorView
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput
from deltaweights.util.interruption import check
from deltaweights.util.limits import MOST_TENSORS

MAX_STEPS, STEPS_PER_TENSOR = 1_000_000, 60
"""Most opcodes run. A Parameter with four axes needs 48; the module versions in ``_metadata`` need 9 per module."""

MAX_MEMORY, MEMORY_PER_TENSOR = 32 * 2**20, 1024
"""Most bytes of all values built. A tensor needs some 700, one with four axes and a long name 1200, a module version 400."""

POINTER = 8
"""Bytes in the memo per value."""

MAX_STACK = 2 * MOST_TENSORS + 16
MAX_MARKS = 16
MAX_STRING = 4 * MAX_NAME
MAX_LINE = 256
MAX_AXES = 64
"""The limit of torch; no tuple in a dict of tensors is longer."""

_REFUSED_OPCODES = {"G": "a float", "]": "a list", "a": "a list", "e": "a list", "\x81": "an object", "i": "an object"}

DOWNLOAD_AGAIN = "the file is damaged or was tampered with: download it again"
RESAVE = "if you trust the file, load it with torch and save a dict of plain tensors"

Opcodes = dict[int, Callable[[Any], None]]
"""The action of each known opcode."""


def by_opcode(actions: dict[str, Callable[[Any], None]]) -> Opcodes:
    """Return a table of opcodes by their numbers, given one by pickle's characters for them."""
    return {ord(opcode): action for opcode, action in actions.items()}


class Unpickler:
    """Runs the pickle of protocol 2 that begins at byte ``at`` of ``data``.

    ``more`` is called when ``data`` ends before the pickle does: it extends ``data``, or returns False.
    ``stack`` holds the values above the topmost mark, ``below`` those under each mark.
    """

    builds: ClassVar[str] = "plain value"
    """What the pickle should contain, for messages."""

    def __init__(
        self, data: bytes | bytearray, where: str | Path, at: int = 0, more: Callable[[], bool] = lambda: False
    ) -> None:
        self.data, self.where, self.at, self.more = data, where, at, more
        self.below: list[list[object]] = []
        self.stack: list[object] = []
        self.memo: list[object] = []
        self.steps_left, self.memory_left = MAX_STEPS, MAX_MEMORY

    def run(self) -> object:
        """Run the pickle, and return its value; ``at`` is then the end of the pickle."""
        protocol = self.take(2)
        if protocol != b"\x80\x02":
            raise self.refuse("the pickle's protocol is not 2", protocol, "b'\\x80\\x02'", RESAVE)
        stop = ord(".")
        while self.steps_left:
            if self.steps_left % 1024 == 0:
                check()
            self.steps_left -= 1
            opcode = self.byte()
            if opcode == stop:
                value = self.pop()
                if self.stack or self.below:
                    raise self.refuse("the pickle leaves values behind")
                return value
            action = self.opcodes.get(opcode)
            if action is None:
                kind = _REFUSED_OPCODES.get(chr(opcode))
                found = f"opcode {bytes([opcode])!r}" + (f", {kind}" if kind else "")
                problem = f"the pickle uses an opcode that no {self.builds} needs"
                raise self.refuse(problem, found, remedy=RESAVE, code=ErrorCode.UNSAFE_PICKLE)
            action(self)
        raise self.refuse("the pickle does too much for its tensors", expected=f"at most {MAX_STEPS} opcodes besides")

    def refuse(
        self,
        problem: str,
        found: object = None,
        expected: object = None,
        remedy: str = DOWNLOAD_AGAIN,
        tensor: str | None = None,
        code: ErrorCode | None = None,
    ) -> MalformedInput:
        """Return the error to raise. ``found`` must not be a value of the pickle, which may be deeply nested."""
        name = self.pending_name() if tensor is None else tensor
        return MalformedInput(
            problem, where=self.where, tensor=name, found=found, expected=expected, remedy=remedy, code=code
        )

    def pending_name(self) -> str | None:
        """Return the name of the tensor that is being built, if any."""
        return None

    # Bytes.

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        begin, end = self.at, self.at + length
        while end > len(self.data):
            self.extend()
        self.at = end
        return bytes(self.data[begin:end])

    def byte(self) -> int:
        """Return the next byte."""
        while self.at >= len(self.data):
            self.extend()
        self.at += 1
        return self.data[self.at - 1]

    def number(self, length: int, *, signed: bool = False) -> int:
        """Return the next ``length`` bytes as a little-endian number."""
        return int.from_bytes(self.take(length), "little", signed=signed)

    def line(self) -> str:
        """Return the text up to the next newline."""
        while (end := self.data.find(b"\n", self.at, self.at + MAX_LINE)) < 0:
            if len(self.data) >= self.at + MAX_LINE:
                raise self.refuse("a global's name is too long", expected=f"at most {MAX_LINE} bytes")
            self.extend()
        text = self.take(end - self.at).decode("ascii", "backslashreplace")
        self.at += 1
        return text

    def extend(self) -> None:
        """Have ``data`` extended."""
        if not self.more():
            raise self.refuse("the pickle is cut short")

    # Stack.

    def make(self, value: object) -> None:
        """Push a new value, and count its memory."""
        self.spend(getsizeof(value))
        self.push(value)

    def spend(self, memory: int) -> None:
        """Count the bytes of a value."""
        self.memory_left -= memory
        if self.memory_left < 0:
            expected = f"at most {MAX_MEMORY} bytes besides"
            raise self.refuse("the pickle builds too much for its tensors", expected=expected)

    def allow_tensor(self) -> None:
        """Allow the steps and the memory of one more tensor."""
        self.steps_left += STEPS_PER_TENSOR
        self.memory_left += MEMORY_PER_TENSOR

    def push(self, value: object) -> None:
        """Push a value."""
        if len(self.stack) >= MAX_STACK:
            raise self.refuse("the pickle's stack grows too high", expected=f"at most {MAX_STACK} values")
        self.stack.append(value)

    def pop(self) -> object:
        """Pop the topmost value above the mark."""
        return self.pop_many(1)[0]

    def pop_many(self, count: int) -> tuple[object, ...]:
        """Pop the ``count`` topmost values above the mark, in the order in which they were pushed."""
        if len(self.stack) < count:
            raise self.refuse("the pickle takes a value from an empty stack")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def mark(self) -> None:
        """MARK: begin a new part of the stack."""
        if len(self.below) >= MAX_MARKS:
            raise self.refuse("the pickle is nested too deeply", expected=f"at most {MAX_MARKS} marks")
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[object]:
        """Pop all values above the mark, and the mark."""
        if not self.below:
            raise self.refuse("the pickle goes back to a mark that is not there")
        values, self.stack = self.stack, self.below.pop()
        return values

    # Opcodes.

    def string(self) -> None:
        """BINUNICODE: push a string."""
        length = self.number(4)
        if length > MAX_STRING:
            raise self.refuse("a string is too long", f"{length} bytes", f"at most {MAX_STRING}")
        try:
            self.make(self.take(length).decode("utf-8"))
        except UnicodeDecodeError:
            raise self.refuse("a string is not UTF-8") from None

    def long(self) -> None:
        """LONG1: push a number of up to 8 bytes."""
        length = self.byte()
        if length > 8:
            raise self.refuse("a number is too long", f"{length} bytes", "at most 8")
        self.make(self.number(length, signed=True))

    def tuple_to_mark(self) -> None:
        """TUPLE: push a tuple of all values above the mark."""
        values = self.pop_to_mark()
        if len(values) > MAX_AXES:
            raise self.refuse("a tuple is too long", f"{len(values)} items", f"at most {MAX_AXES}")
        self.make(tuple(values))

    def put(self, index: int) -> None:
        """BINPUT: store the topmost value in the memo."""
        if not self.stack:
            raise self.refuse("the pickle takes a value from an empty stack")
        if index > len(self.memo):  # picklers count up; a gap would only use memory
            raise self.refuse("memo index out of bounds", index, f"at most {len(self.memo)}")
        self.spend(POINTER)
        self.memo[index : index + 1] = self.stack[-1:]

    def get(self, index: int) -> None:
        """BINGET: push a value from the memo."""
        if index >= len(self.memo):
            raise self.refuse("memo index that was never set", index, f"less than {len(self.memo)}")
        self.push(self.memo[index])

    def set_items(self, items: list[object]) -> None:
        """SETITEM and SETITEMS: put keys and values into the dict on the stack."""
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            raise self.refuse("the pickle puts items into something that is not a dict", value_kind(target))
        before = getsizeof(target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise self.refuse("a dict has a key that is not a string", value_kind(key), "a string", RESAVE)
            if key in target:
                raise self.refuse("duplicate key in a dict", key)
            target[key] = value
        if len(target) > MOST_TENSORS:
            raise self.refuse("too many tensors", len(target), f"at most {MOST_TENSORS}")
        self.spend(getsizeof(target) - before)

    opcodes: ClassVar[Opcodes] = by_opcode(
        {
            "(": mark,
            ")": lambda unpickler: unpickler.push(()),
            "}": lambda unpickler: unpickler.make({}),
            "N": lambda unpickler: unpickler.push(None),
            "\x88": lambda unpickler: unpickler.push(True),
            "\x89": lambda unpickler: unpickler.push(False),
            "K": lambda unpickler: unpickler.push(unpickler.byte()),
            "M": lambda unpickler: unpickler.make(unpickler.number(2)),
            "J": lambda unpickler: unpickler.make(unpickler.number(4, signed=True)),
            "\x8a": long,
            "X": string,
            "t": tuple_to_mark,
            "\x85": lambda unpickler: unpickler.make(unpickler.pop_many(1)),
            "\x86": lambda unpickler: unpickler.make(unpickler.pop_many(2)),
            "\x87": lambda unpickler: unpickler.make(unpickler.pop_many(3)),
            "q": lambda unpickler: unpickler.put(unpickler.byte()),
            "r": lambda unpickler: unpickler.put(unpickler.number(4)),
            "h": lambda unpickler: unpickler.get(unpickler.byte()),
            "j": lambda unpickler: unpickler.get(unpickler.number(4)),
            "s": lambda unpickler: unpickler.set_items(list(unpickler.pop_many(2))),
            "u": lambda unpickler: unpickler.set_items(unpickler.pop_to_mark()),
        }
    )


_VALUE_KINDS: dict[type, str] = {
    str: "a string", bool: "true or false", int: "a number", type(None): "None",
    dict: "a dict", tuple: "a tuple", list: "a list", TensorView: "a tensor", PickledStorage: "a storage",
}  # fmt: skip


def value_kind(value: object) -> str:
    """Return in words what kind of value of the pickle this is; the value may be deeply nested, so it is never shown."""
    return _VALUE_KINDS.get(type(value), "a function or type")
