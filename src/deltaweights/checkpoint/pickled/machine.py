"""The stack machine that pickle is, for the opcodes that plain values need, and no others.

Enters: bytes in which a pickle of protocol 2 begins. Leaves: the value that it builds, of plain dicts, tuples, strings and numbers,
and of what a subclass adds, and where the pickle ends. Never: an import, a call, or memory out of proportion to the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from sys import getsizeof
from typing import Any, ClassVar

from deltaweights.checkpoint.pickled.tables import Storage, TensorView
from deltaweights.checkpoint.tensors import MAX_NAME
from deltaweights.errors import MalformedInput
from deltaweights.util.interruption import check
from deltaweights.util.limits import MOST_TENSORS

MAX_STEPS, STEPS_PER_TENSOR = 1_000_000, 60
"""Opcodes run at most: a Parameter with four axes needs 48, and the module versions of ``_metadata`` 9 per module."""

MAX_MEMORY, MEMORY_PER_TENSOR = 32 * 2**20, 1024
"""Bytes of all values built at most: a tensor needs some 700, one with four axes and a long name 1200, a module version 400."""

POINTER = 8
"""Bytes that the memo takes for each value, besides the value."""

MAX_STACK = 2 * MOST_TENSORS + 16
MAX_MARKS = 16
MAX_STRING = 4 * MAX_NAME
MAX_LINE = 256
MAX_AXES = 64
"""What torch allows; no tuple in a dict of tensors is longer."""


_REFUSED_OPCODES = {"G": "a float", "]": "a list", "a": "a list", "e": "a list", "\x81": "an object", "i": "an object"}

AGAIN = "the file is damaged or was tampered with: download it again"
REMEDY = "if you trust the file, load it with torch and save a dict of plain tensors"

Opcodes = dict[int, Callable[[Any], None]]
"""What a machine does at each opcode that it knows."""


def by_opcode(actions: dict[str, Callable[[Any], None]]) -> Opcodes:
    """Return the table of opcodes that is written with pickle's characters for them."""
    return {ord(opcode): action for opcode, action in actions.items()}


def no_more() -> bool:
    """Say that a machine was given all bytes there are."""
    return False


class StackMachine:
    """Runs the pickle that begins at byte ``at`` of ``data``; what it builds are plain values.

    ``more`` is called when ``data`` ends before the pickle does: it makes ``data`` longer, or says that there is no more.
    ``stack`` is what stands above the topmost mark, ``below`` the parts under each mark.
    """

    builds: ClassVar[str] = "plain value"
    """What the pickle is for, in messages."""

    def __init__(
        self, data: bytes | bytearray, where: str | Path, at: int = 0, more: Callable[[], bool] = no_more
    ) -> None:
        self.data, self.where, self.at, self.more = data, where, at, more
        self.below: list[list[object]] = []
        self.stack: list[object] = []
        self.memo: list[object] = []
        self.steps_left, self.memory_left = MAX_STEPS, MAX_MEMORY

    def run(self) -> object:
        """Run the opcodes, and return what STOP finds on the stack; ``at`` is then where the pickle ended."""
        protocol = self.take(2)
        if protocol != b"\x80\x02":
            raise self.refuse("the pickle's protocol is not 2", protocol, "b'\\x80\\x02'", REMEDY)
        stop = ord(".")
        while self.steps_left:
            if self.steps_left % 1024 == 0:
                check()
            self.steps_left -= 1
            opcode = self.byte()
            if opcode == stop:
                return self.result()
            action = self.opcodes.get(opcode)
            if action is None:
                kind = _REFUSED_OPCODES.get(chr(opcode))
                found = f"opcode {bytes([opcode])!r}" + (f", {kind}" if kind else "")
                raise self.refuse(f"the pickle does what no {self.builds} needs", found, remedy=REMEDY)
            action(self)
        raise self.refuse("the pickle does too much for its tensors", expected=f"at most {MAX_STEPS} opcodes besides")

    def result(self) -> object:
        """Return the one value that is left when the pickle ends."""
        value = self.pop()
        if self.stack or self.below:
            raise self.refuse("the pickle leaves values behind")
        return value

    def refuse(
        self,
        problem: str,
        found: object = None,
        expected: object = None,
        remedy: str = AGAIN,
        tensor: str | None = None,
    ) -> MalformedInput:
        """Return the exception; ``found`` must be short, and never a value of the pickle that could be nested."""
        name = self.pending_name() if tensor is None else tensor
        return MalformedInput(problem, where=self.where, tensor=name, found=found, expected=expected, remedy=remedy)

    def pending_name(self) -> str | None:
        """Return the name of the tensor that is being built, where there are tensors."""
        return None

    # Bytes.

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        begin, end = self.at, self.at + length
        while end > len(self.data):
            self.lengthen()
        self.at = end
        return bytes(self.data[begin:end])

    def byte(self) -> int:
        """Return the next byte."""
        while self.at >= len(self.data):
            self.lengthen()
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
            self.lengthen()
        text = self.take(end - self.at).decode("ascii", "backslashreplace")
        self.at += 1
        return text

    def lengthen(self) -> None:
        """Get more bytes than ``data`` has."""
        if not self.more():
            raise self.refuse("the pickle is cut short")

    # Stack.

    def make(self, value: object) -> None:
        """Put a new value on the stack, and count its memory."""
        self.spend(getsizeof(value))
        self.push(value)

    def spend(self, memory: int) -> None:
        """Count bytes of memory that a value takes."""
        self.memory_left -= memory
        if self.memory_left < 0:
            raise self.refuse(
                "the pickle builds too much for its tensors", expected=f"at most {MAX_MEMORY} bytes besides"
            )

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        if len(self.stack) >= MAX_STACK:
            raise self.refuse("the pickle's stack grows too high", expected=f"at most {MAX_STACK} values")
        self.stack.append(value)

    def pop(self) -> object:
        """Take the topmost value above the mark."""
        if not self.stack:
            raise self.refuse("the pickle takes a value from an empty stack")
        return self.stack.pop()

    def pop_many(self, count: int) -> tuple[object, ...]:
        """Take the ``count`` topmost values above the mark, in the order in which they came."""
        if len(self.stack) < count:
            raise self.refuse("the pickle takes a value from an empty stack")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def mark(self) -> None:
        """MARK: begin a part of the stack of its own."""
        if len(self.below) >= MAX_MARKS:
            raise self.refuse("the pickle is nested too deeply", expected=f"at most {MAX_MARKS} marks")
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[object]:
        """Take all values above the mark, and the mark."""
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
        """TUPLE: make a tuple of all values above the mark."""
        values = self.pop_to_mark()
        if len(values) > MAX_AXES:
            raise self.refuse("a tuple is too long", f"{len(values)} items", f"at most {MAX_AXES}")
        self.make(tuple(values))

    def put(self, index: int) -> None:
        """BINPUT: remember the topmost value."""
        if not self.stack:
            raise self.refuse("the pickle takes a value from an empty stack")
        if index > len(self.memo):  # picklers count up; a gap would only reserve memory
            raise self.refuse("memo index out of bounds", index, f"at most {len(self.memo)}")
        self.spend(POINTER)
        self.memo[index : index + 1] = self.stack[-1:]

    def get(self, index: int) -> None:
        """BINGET: push a value that was remembered."""
        if index >= len(self.memo):
            raise self.refuse("memo index that was never set", index, f"less than {len(self.memo)}")
        self.push(self.memo[index])

    def set_items(self, items: list[object]) -> None:
        """SETITEM and SETITEMS: put keys and values into the dict on the stack."""
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            raise self.refuse("the pickle puts items into something that is not a dict", kind_of(target))
        before = getsizeof(target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise self.refuse("a dict has a key that is not a string", kind_of(key), "a string", REMEDY)
            if key in target:
                raise self.refuse("duplicate key in a dict", key)
            target[key] = value
        if len(target) > MOST_TENSORS:
            raise self.refuse("too many tensors", len(target), f"at most {MOST_TENSORS}")
        self.spend(getsizeof(target) - before)

    opcodes: ClassVar[Opcodes] = by_opcode(
        {
            "(": mark,
            ")": lambda machine: machine.push(()),
            "}": lambda machine: machine.make({}),
            "N": lambda machine: machine.push(None),
            "\x88": lambda machine: machine.push(True),
            "\x89": lambda machine: machine.push(False),
            "K": lambda machine: machine.push(machine.byte()),
            "M": lambda machine: machine.make(machine.number(2)),
            "J": lambda machine: machine.make(machine.number(4, signed=True)),
            "\x8a": long,
            "X": string,
            "t": tuple_to_mark,
            "\x85": lambda machine: machine.make(machine.pop_many(1)),
            "\x86": lambda machine: machine.make(machine.pop_many(2)),
            "\x87": lambda machine: machine.make(machine.pop_many(3)),
            "q": lambda machine: machine.put(machine.byte()),
            "r": lambda machine: machine.put(machine.number(4)),
            "h": lambda machine: machine.get(machine.byte()),
            "j": lambda machine: machine.get(machine.number(4)),
            "s": lambda machine: machine.set_items(list(machine.pop_many(2))),
            "u": lambda machine: machine.set_items(machine.pop_to_mark()),
        }
    )


def kind_of(value: object) -> str:
    """Name the kind of a value of the pickle; never the value, which may be nested beyond all bounds."""
    names = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        type(None): "None",
        dict: "a dict",
        tuple: "a tuple",
        list: "a list",
    }
    names |= {TensorView: "a tensor", Storage: "a storage"}
    return names.get(type(value), "a function or type")
