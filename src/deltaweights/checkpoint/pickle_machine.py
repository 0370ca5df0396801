"""The stack machine that pickle is, for the opcodes that a dict of tensors needs, and no others.

Enters: the bytes of a pickle of protocol 2. Leaves: the value that it builds, of plain dicts, tuples, strings and numbers, and of
what a subclass makes of globals and calls. Never: an import, a call, or memory out of proportion to the bytes read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from deltaweights.checkpoint.pickle_tables import Storage, TensorView
from deltaweights.checkpoint.tensors import MAX_TENSORS
from deltaweights.errors import MalformedInput

MAX_STEPS, STEPS_PER_TENSOR = 1_000_000, 60
"""Opcodes run at most: a Parameter with four axes needs 48, and the module versions of ``_metadata`` 9 per module."""

MAX_STACK = 2 * MAX_TENSORS + 16
MAX_MARKS = 16
MAX_STRING = 4096
MAX_AXES = 64
"""What torch allows; no tuple in a dict of tensors is longer."""


_REFUSED_OPCODES = {"G": "a float", "]": "a list", "a": "a list", "e": "a list", "\x81": "an object", "i": "an object"}

REMEDY = "if you trust the file, load it with torch and save a dict of plain tensors"


class StackMachine(ABC):
    """``stack`` is what stands above the topmost mark, ``below`` the parts under each mark."""

    def __init__(self, data: bytes, where: str | Path) -> None:
        self.data, self.where = data, where
        self.at = 0
        self.below: list[list[object]] = []
        self.stack: list[object] = []
        self.memo: list[object] = []
        self.steps_left = MAX_STEPS

    def run(self) -> object:
        """Run the opcodes, and return what STOP finds on the stack."""
        if self.take(2) != b"\x80\x02":
            raise self.refuse("the pickle's protocol is not 2", self.data[:2], "b'\\x80\\x02'", REMEDY)
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
                raise self.refuse("the pickle does what no dict of tensors needs", found, remedy=REMEDY)
            action(self)
        raise self.refuse("the pickle does too much for its tensors", expected=f"at most {MAX_STEPS} opcodes besides")

    def result(self) -> object:
        """Return the one value that is left when the pickle ends."""
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
        """Return the next ``length`` bytes."""
        begin, self.at = self.at, self.at + length
        if self.at > len(self.data):
            self.at = len(self.data)
            raise self.refuse("the pickle is cut short")
        return self.data[begin : self.at]

    def byte(self) -> int:
        """Return the next byte."""
        if self.at >= len(self.data):
            raise self.refuse("the pickle is cut short")
        self.at += 1
        return self.data[self.at - 1]

    def number(self, length: int, *, signed: bool = False) -> int:
        """Return the next ``length`` bytes as a little-endian number."""
        return int.from_bytes(self.take(length), "little", signed=signed)

    def line(self) -> str:
        """Return the text up to the next newline."""
        end = self.data.find(b"\n", self.at, self.at + 256)
        if end < 0:
            raise self.refuse("a global's name is cut short or too long")
        text = self.take(end - self.at).decode("ascii", "backslashreplace")
        self.at += 1
        return text

    # Stack.

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
            self.push(self.take(length).decode("utf-8"))
        except UnicodeDecodeError:
            raise self.refuse("a string is not UTF-8") from None

    def long(self) -> None:
        """LONG1: push a number of up to 8 bytes."""
        length = self.byte()
        if length > 8:
            raise self.refuse("a number is too long", f"{length} bytes", "at most 8")
        self.push(self.number(length, signed=True))

    def tuple_to_mark(self) -> None:
        """TUPLE: make a tuple of all values above the mark."""
        values = self.pop_to_mark()
        if len(values) > MAX_AXES:
            raise self.refuse("a tuple is too long", f"{len(values)} items", f"at most {MAX_AXES}")
        self.push(tuple(values))

    def put(self, index: int) -> None:
        """BINPUT: remember the topmost value."""
        if not self.stack:
            raise self.refuse("the pickle takes a value from an empty stack")
        if index > len(self.memo):  # picklers count up; a gap would only reserve memory
            raise self.refuse("memo index out of bounds", index, f"at most {len(self.memo)}")
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
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise self.refuse("a dict has a key that is not a string", kind_of(key), "a string", REMEDY)
            if key in target:
                raise self.refuse("duplicate key in a dict", key)
            target[key] = value
        if len(target) > MAX_TENSORS:
            raise self.refuse("too many tensors", len(target), f"at most {MAX_TENSORS}")

    # Opcodes that mean something only to those who know what is pickled.

    @abstractmethod
    def build(self) -> None:
        """Take a state from the stack, and set it on the object below."""

    @abstractmethod
    def find_global(self) -> None:
        """Read a module's and a name's line, and push what they stand for."""

    @abstractmethod
    def persistent_id(self) -> None:
        """Take an identifier from the stack, and push what is stored elsewhere under it."""

    @abstractmethod
    def reduce(self) -> None:
        """Take a function and its arguments from the stack, and push the result."""


def kind_of(value: object) -> str:
    """Name the kind of a value of the pickle; never the value, which may be nested beyond all bounds."""
    names = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        type(None): "None",
        dict: "a dict",
        tuple: "a tuple",
    }
    names |= {TensorView: "a tensor", Storage: "a storage"}
    return names.get(type(value), "a function or type")


_ACTIONS: dict[int, Callable[[StackMachine], None]] = {
    ord(opcode): action
    for opcode, action in {
        "(": StackMachine.mark,
        ")": lambda machine: machine.push(()),
        "}": lambda machine: machine.push({}),
        "N": lambda machine: machine.push(None),
        "\x88": lambda machine: machine.push(True),
        "\x89": lambda machine: machine.push(False),
        "K": lambda machine: machine.push(machine.byte()),
        "M": lambda machine: machine.push(machine.number(2)),
        "J": lambda machine: machine.push(machine.number(4, signed=True)),
        "\x8a": StackMachine.long,
        "X": StackMachine.string,
        "t": StackMachine.tuple_to_mark,
        "\x85": lambda machine: machine.push(machine.pop_many(1)),
        "\x86": lambda machine: machine.push(machine.pop_many(2)),
        "\x87": lambda machine: machine.push(machine.pop_many(3)),
        "q": lambda machine: machine.put(machine.byte()),
        "r": lambda machine: machine.put(machine.number(4)),
        "h": lambda machine: machine.get(machine.byte()),
        "j": lambda machine: machine.get(machine.number(4)),
        "s": lambda machine: machine.set_items(list(machine.pop_many(2))),
        "u": lambda machine: machine.set_items(machine.pop_to_mark()),
        "b": lambda machine: machine.build(),
        "c": lambda machine: machine.find_global(),
        "Q": lambda machine: machine.persistent_id(),
        "R": lambda machine: machine.reduce(),
    }.items()
}
