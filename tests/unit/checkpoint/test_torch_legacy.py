"""The reader of torch's legacy files: what torch writes is read byte for byte, everything else is refused by name.

Good files are written by ``torch.save``; bad ones are good ones taken apart and put together again with one thing wrong.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import shutil
import struct
import subprocess
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.file_type import HEAD_BYTES, detect_file_type
from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.folder import open_checkpoint
from deltaweights.checkpoint.tensors import WeightsFile
from deltaweights.checkpoint.torch_format import legacy
from deltaweights.checkpoint.torch_format.legacy import FIRST_READ
from deltaweights.checkpoint.torch_format.torch_file import NO_CHECKSUMS
from deltaweights.errors import MalformedInput
from deltaweights.jobs.apply import apply_delta
from tests.support.limits import MOMENT, PATIENCE
from tests.unit.checkpoint.test_torch_file import (
    GOOD_STATES,
    PICKLES,
    UNSUPPORTED,
    WEIGHT,
    content,
    open_torch_file,
    raw,
    refusal,
    same,
    table,
    tensor,
    text,
    written,
)

# Writing legacy files, right and wrong.


@dataclass(frozen=True)
class Parts:
    """A legacy file in its parts: five pickles, and for each storage its count and its elements."""

    magic: bytes
    version: bytes
    system: bytes
    state: bytes
    keys: bytes
    storages: tuple[tuple[int, bytes], ...]
    after: bytes = b""

    def __bytes__(self) -> bytes:
        stored = b"".join(struct.pack("<q", count) + elements for count, elements in self.storages)
        return self.pickles + stored + self.after

    @property
    def pickles(self) -> bytes:
        """What stands before the storages."""
        return self.magic + self.version + self.system + self.state + self.keys


def saved(state: object) -> bytes:
    """Return what ``torch.save`` writes in the legacy format."""
    out = io.BytesIO()
    torch.save(state, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def taken_apart(archive: bytes, item_sizes: dict[int, int]) -> Parts:
    """Return a file's parts, with its storages' keys (addresses) replaced by 0, 1, ...; a count identifies a storage's type."""
    stream = io.BytesIO(archive)
    pickles = []
    for _ in range(5):
        begin = stream.tell()
        list(pickletools.genops(stream))
        pickles.append(archive[begin : stream.tell()])
    magic, version, system, state, keys = pickles
    storages = []
    for number, key in enumerate(pickle.loads(keys)):  # noqa: S301  torch wrote it just now
        (count,) = struct.unpack("<q", stream.read(8))
        storages.append((count, stream.read(count * item_sizes[count])))
        state = state.replace(text(key), text(str(number)))
    assert stream.read() == b""
    return Parts(magic, version, system, state, key_list(*map(str, range(len(storages)))), tuple(storages))


def key_list(*keys: object) -> bytes:
    return pickle.dumps(list(keys), 2)


BIAS = torch.arange(5)
GOOD = taken_apart(saved(OrderedDict(w=WEIGHT, t=WEIGHT.t(), b=BIAS)), {12: 2, 5: 8})
W, B = (str([count for count, _ in GOOD.storages].index(count)) for count in (12, 5))
"""The keys of the storages of w and b; which of them comes first is up to torch."""


def stored(changes: dict[str, tuple[int, bytes]]) -> Parts:
    """Return the good parts with other counts and elements under the keys of ``changes``."""
    return replace(GOOD, storages=tuple(changes.get(str(at), pair) for at, pair in enumerate(GOOD.storages)))


def system(**changes: object) -> Parts:
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return replace(GOOD, system=pickle.dumps(facts | changes, 2))


def with_state(data: bytes) -> Parts:
    """Return a file whose state dict is the pickle ``data`` of an archive: its records get their sixth field."""
    return replace(GOOD, state=data.replace(b"tQ", b"NtQ"), keys=key_list("0"), storages=((12, raw(WEIGHT)),))


def with_records(old: bytes, new: bytes) -> Parts:
    """Return the good parts with every ``old`` in the state dict's pickle changed to ``new``."""
    assert old in GOOD.state
    return replace(GOOD, state=GOOD.state.replace(old, new))


def also_a_tar() -> bytes:
    """Return a tar archive whose first member's name is a pickled magic number."""
    info = tarfile.TarInfo(GOOD.magic.decode("utf-8", "surrogateescape"))
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape") + bytes(1024)


SOUND = bytes(GOOD)
LAST = str(len(GOOD.storages) - 1)
LAST_USER, LAST_BYTES = ("w", 24) if LAST == W else ("b", 40)
FALSE_SIZE = f"storage {W} does not have the size in its record"

MANY = 2**42
MORE = b"\x80\x02N."
OTHER_MAGIC = GOOD.magic[:-2] + b"\x18."
FOUR_TERABYTES = replace(
    with_records(b"K\x0c", b"\x8a\x06" + MANY.to_bytes(6, "little")), storages=stored({W: (MANY, raw(WEIGHT))}).storages
)

FILES: dict[str, tuple[Parts | bytes, str]] = {
    "row37-first": (
        replace(GOOD, keys=key_list("1"), storages=GOOD.storages[1:]),
        (
            f"tensor {'w' if W == '0' else 'b'}: storage 0 is not in the list of storages "
            f"(torch would return uninitialised memory)"
        ),
    ),
    "row37-last": (
        replace(GOOD, keys=key_list("0"), storages=GOOD.storages[:1]),
        (
            f"tensor {LAST_USER}: storage {LAST} is not in the list of storages "
            f"(torch would return uninitialised memory)"
        ),
    ),
    "row37-all": (
        replace(GOOD, keys=key_list(), storages=()),
        f"tensor w: storage {W} is not in the list of storages (torch would return uninitialised memory)",
    ),
    "row38-unknown": (
        replace(GOOD, keys=key_list("0", "1", "\x1b[2J"), storages=(*GOOD.storages, (0, b""))),
        r"the list of storages names one that no tensor uses: found \x1b[2J",
    ),
    "row38-twice": (
        replace(GOOD, keys=key_list("0", "1", W), storages=(*GOOD.storages, (12, raw(WEIGHT)))),
        f"tensor w: the list of storages names one twice: found {W}",
    ),
    "row38-number": (
        replace(GOOD, keys=key_list("0", 1)),
        "the pickle uses an opcode that no list of storages needs: found opcode b'K'",
    ),
    "row38-none": (
        replace(GOOD, keys=b"\x80\x02](" + text("0") + b"]e."),
        "a storage's key is not a string: found a list, expected a string",
    ),
    "row38-string": (
        replace(GOOD, keys=pickle.dumps("01", 2)),
        "not a list of storages: found a string, expected a list",
    ),
    "row38-items-of-a-string": (
        replace(GOOD, keys=b"\x80\x02" + text("0") + text("1") + b"a."),
        "the pickle puts items into something that is not a list: found a string",
    ),
    "row38-dict": (
        replace(GOOD, keys=pickle.dumps({"0": None}, 2)),
        "the pickle uses an opcode that no list of storages needs: found opcode b'}'",
    ),
    "row38-global": (
        replace(GOOD, keys=b"\x80\x02cbuiltins\neval\n."),
        "the pickle uses an opcode that no list of storages needs: found opcode b'c'",
    ),
    "row38-itself": (
        replace(GOOD, keys=b"\x80\x02]q\0h\0a."),
        "the pickle uses an opcode that no list of storages needs: found opcode b'h'",
    ),
    "row38-many": (
        replace(GOOD, keys=key_list(*map(str, range(100_001)))),
        "too many storages: found 100001, expected at most 100000",
    ),
    "row39-fewer": (
        stored({W: (11, raw(WEIGHT)[:22])}),
        f"tensor w: {FALSE_SIZE}: found 11 elements, expected 12",
    ),
    "row39-more": (
        stored({W: (13, raw(WEIGHT) + b"12")}),
        f"tensor w: {FALSE_SIZE}: found 13 elements, expected 12",
    ),
    "row39-negative": (
        stored({W: (-12, raw(WEIGHT))}),
        f"tensor w: {FALSE_SIZE}: found -12 elements, expected 12",
    ),
    "row39-bytes-for-elements": (
        stored({W: (24, raw(WEIGHT))}),
        f"tensor w: {FALSE_SIZE}: found 24 elements, expected 12",
    ),
    "row39-record": (
        with_records(b"K\x0c", b"K\x0d"),
        f"tensor w: {FALSE_SIZE}: found 12 elements, expected 13",
    ),
    "row39-negative-record": (
        with_records(b"K\x0c", b"J\xff\xff\xff\xff"),
        "tensor w: invalid storage record: found a function or type, a string, a string, a number",
    ),
    "row40-cut": (
        SOUND[:-1],
        (
            f"tensor {LAST_USER}: truncated: storage {LAST} goes on past the end of the file: "
            f"found {LAST_BYTES + 7} bytes, expected {LAST_BYTES + 8}"
        ),
    ),
    "row40-cut-before-the-last": (
        SOUND[: -LAST_BYTES - 8],
        (
            f"tensor {LAST_USER}: truncated: storage {LAST} goes on past the end of the file: "
            f"found 0 bytes, expected {LAST_BYTES + 8}"
        ),
    ),
    "row40-cut-in-a-count": (
        SOUND[: -LAST_BYTES - 1],
        (
            f"tensor {LAST_USER}: truncated: storage {LAST} goes on past the end of the file: "
            f"found 7 bytes, expected {LAST_BYTES + 8}"
        ),
    ),
    "row40-cut-in-the-list": (GOOD.pickles[:-1], "the pickle is cut short"),
    "row40-cut-in-the-state": (
        SOUND[: SOUND.index(b"HalfStorage") + 4],
        "tensor w: the pickle is cut short",
    ),
    "row40-cut-after-the-magic": (GOOD.magic, "the pickle is cut short"),
    "row40-cut-in-the-magic": (
        GOOD.magic[:9],
        rf"truncated in the magic number: found b'\x80\x02\x8a\nl\xfc\x9cF\xf9', expected {GOOD.magic!r}",
    ),
    "row40-trailing": (
        replace(GOOD, after=b"junk"),
        "bytes after the last storage: found 4 bytes, expected none",
    ),
    "row40-trailing-zero": (
        replace(GOOD, after=b"\0"),
        "bytes after the last storage: found 1 bytes, expected none",
    ),
    "row40-between": (
        replace(GOOD, keys=GOOD.keys + MORE),
        (
            f"tensor {'w' if W == '0' else 'b'}: storage 0 does not have the size in its record: "
            f"found {int.from_bytes(MORE, 'little') + (GOOD.storages[0][0] << 32)} elements, "
            f"expected {GOOD.storages[0][0]}"
        ),
    ),
    "row41-magic": (
        replace(GOOD, magic=OTHER_MAGIC),
        f"wrong magic number: found {OTHER_MAGIC!r}, expected {GOOD.magic!r}",
    ),
    "row41-version": (
        replace(GOOD, version=pickle.dumps(1002, 2)),
        "wrong protocol version: found 1002, expected 1001",
    ),
    "row41-version-kind": (
        replace(GOOD, version=pickle.dumps({}, 2)),
        "wrong protocol version: found a dict, expected 1001",
    ),
    "row41-version-global": (
        replace(GOOD, version=b"\x80\x02cbuiltins\neval\n."),
        "the pickle uses an opcode that no plain value needs: found opcode b'c'",
    ),
    "row41-protocol": (
        replace(GOOD, version=pickle.dumps(1001, 4)),
        r"the pickle's protocol is not 2: found b'\x80\x04', expected b'\x80\x02'",
    ),
    "row41-system-version": (
        system(protocol_version=1000),
        "wrong protocol version: found 1000, expected 1001",
    ),
    "row41-system-kind": (
        replace(GOOD, system=pickle.dumps(None, 2)),
        "no facts about the machine that wrote the file: found None, expected a dict",
    ),
    "row41-system-list": (
        system(little_endian=[]),
        "the pickle uses an opcode that no plain value needs: found opcode b']', a list",
    ),
    "row34-big-endian": (
        system(little_endian=False),
        "not little-endian: found little_endian False, expected little_endian True",
    ),
    "row34-endian-kind": (
        system(little_endian=1),
        "not little-endian: found a number, expected little_endian True",
    ),
    "row42-also-a-tar": (
        also_a_tar(),
        "a legacy file that is also a tar archive",
    ),
    "row43-count": (
        stored({W: (MANY, raw(WEIGHT))}),
        f"tensor w: {FALSE_SIZE}: found {MANY} elements, expected 12",
    ),
    "row43-record": (
        with_records(b"K\x0c", b"\x8a\x06" + MANY.to_bytes(6, "little")),
        f"tensor w: {FALSE_SIZE}: found 12 elements, expected {MANY}",
    ),
    "row43-both": (
        FOUR_TERABYTES,
        (
            f"tensor w: truncated: storage {W} goes on past the end of the file: "
            f"found {32 + (0 if W == LAST else 48)} bytes, expected {2 * MANY + 8}"
        ),
    ),
    "row43-more-than-an-offset": (
        with_records(b"K\x0c", b"\x8a\x08" + (2**62).to_bytes(8, "little")),
        f"tensor w: huge storage: found {2**62} elements, expected at most {2**63 - 1} bytes",
    ),
    "view-of-a-storage": (
        with_records(b"K\x0cNt", b"K\x0c" + text("1") + b"K\x00K\x0c\x87t"),
        "tensor w: a part of a storage (view_metadata): found a tuple, expected None",
    ),
    "record-of-an-archive": (
        with_records(b"K\x0cNt", b"K\x0ct"),
        "tensor w: invalid storage record: found a tuple",
    ),
    "row20-after-stop": (
        with_state(table((text("w"), tensor())) + b".."),
        r"the pickle's protocol is not 2: found b'..', expected b'\x80\x02'",
    ),
    "row20-no-stop": (
        with_state(table((text("w"), tensor()), end=b"")),
        r"the pickle uses an opcode that no dict of tensors needs: found opcode b'\x80'",
    ),
    "row26-missing": (
        with_state(table((text("w"), tensor()), (text("v"), tensor(key="7")))),
        "tensor v: storage 7 is not in the list of storages (torch would return uninitialised memory)",
    ),
    "row26-no-tensor": (
        with_state(table()),
        "the list of storages names one that no tensor uses: found 0",
    ),
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize(("archive", "message"), FILES.values(), ids=FILES)
def test_refuses_file(tmp_path: Path, archive: Parts | bytes, message: str) -> None:
    """A file with one fault is refused with that fault, the tensor, and what was expected."""
    assert refusal(tmp_path, bytes(archive)) == message


SHARED = {
    row: case
    for row, case in PICKLES.items()
    # What follows these pickles in a legacy file is not the end of the file; storage keys are no paths.
    if row not in {"row20-after-stop", "row20-no-stop", "row20-empty", "row21-cut-string"} and row[:5] != "row26"
}


@pytest.mark.sampled(15)
@pytest.mark.parametrize(("data", "message"), SHARED.values(), ids=SHARED)
def test_refuses_what_is_refused_in_an_archive(tmp_path: Path, data: bytes, message: str) -> None:
    """A state dict's pickle that is refused in an archive is refused in a legacy file for the same reason."""
    assert message.replace(r"\\x", r"\x") in refusal(tmp_path, bytes(with_state(data)))


@pytest.mark.parametrize(("make", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_refuses_what_torch_saves_and_no_model_needs(tmp_path: Path, make: Callable[[], object], message: str) -> None:
    """Files that torch writes but that are not a dict of plain tensors are refused with kind and tensor."""
    assert message in refusal(tmp_path, saved(make()))


def test_row19_runs_nothing(tmp_path: Path) -> None:
    """None of the five pickles can run a command."""
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {mark}",)

    evil = pickle.dumps(Evil(), 2)
    for part in ("magic", "version", "system", "state", "keys"):
        changes: dict[str, Any] = {part: evil}
        refusal(tmp_path, bytes(replace(GOOD, **changes)))
        assert not mark.exists()
    pickle.loads(evil)  # noqa: S301  the proof that it would have
    assert mark.exists()


def test_row37_torch_returns_what_was_in_memory(tmp_path: Path) -> None:
    """The file without a storage that is refused here is loaded by torch."""
    archive, _ = FILES["row37-last"]
    loaded = torch.load(written(tmp_path, bytes(archive)), weights_only=True)
    assert list(loaded) == ["w", "t", "b"]


def test_row40_every_cut_is_refused(tmp_path: Path) -> None:
    """A file truncated anywhere is refused as truncated."""
    for length in range(len(GOOD.magic[:4]), len(SOUND)):
        message = refusal(tmp_path, SOUND[:length])
        assert "truncated" in message or "cut short" in message


def test_row40_long_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with endless pickles is not read to its end."""
    monkeypatch.setattr(legacy, "MAX_PICKLE", FIRST_READ)
    archive = saved(GOOD_STATES["row36-many"]())
    assert f"the pickles are too long: expected at most {FIRST_READ} bytes" in refusal(tmp_path, archive)


def test_row42_tar(tmp_path: Path) -> None:
    """A tar archive, torch's oldest format, is refused as such."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as target:
        for name in ("storages", "tensors", "pickle"):
            target.addfile(tarfile.TarInfo(name))
    assert refusal(tmp_path, out.getvalue()).endswith(": found a tar archive")


def test_row42_a_tar_archive_is_known_by_its_checksum() -> None:
    """Tar archives are recognised as ``tarfile`` does, which torch uses, also in the oldest format."""
    archive = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    assert detect_file_type(archive) == ("a tar archive", "unpack it first")
    checksum = 256 + sum(archive[:148] + archive[156:257] + archive[265:])  # without magic and version
    oldest = archive[:148] + b"%06o\0 " % checksum + archive[156:257] + bytes(8) + archive[265:]
    assert detect_file_type(oldest) == ("a tar archive", "unpack it first")
    assert detect_file_type(archive[:-1] + b"x") is None


def test_errors_close_the_file(tmp_path: Path) -> None:
    """A refused file leaves no descriptor open."""
    path = written(tmp_path, SOUND[:-1])
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(MalformedInput):
            open_torch_file(path)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def bomb() -> bytes:
    """Return a pickle whose many tensors allow millions of opcodes, which build values to fill the memory."""
    first = tensor().replace(b"_v2\n", b"_v2\nq\0")[:-1] + b"q\1R"
    views = b"".join(text(str(index)) + b"h\0h\1R" for index in range(99_000))
    dicts = b"(" + (b"(" + b"}" * 64 + b"t") * 64 + b"t"
    return b"\x80\x02}(" + text("w") + first + views + text("z") + b"(" + (b"(" + dicts * 60 + b"t") * 20 + b"tu."


HOSTILE: dict[str, Parts] = {
    "row21-dicts": with_state(bomb()),
    "row21-wide-strings": with_state(table(*((text(str(i)), text("😀".ljust(4090))) for i in range(16_000)))),
    "row21-keys": replace(GOOD, keys=key_list(*(str(i).ljust(4000) for i in range(16_000)))),
    "row43-both": FOUR_TERABYTES,
}


@pytest.mark.sampled(1)
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="ru_maxrss would count the process that started it, too"
)
@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_cost_little(tmp_path: Path, archive: Parts) -> None:
    """Files made to use much time or memory are refused within 5 seconds and 200 MB."""
    path = written(tmp_path, bytes(archive))
    program = f"""
import time
from pathlib import Path
from deltaweights.checkpoint.files import LocalFile
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.errors import MalformedInput
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
before, began = peak(), time.process_time()
try:
    open_torch_file(LocalFile(Path({str(path)!r})))
except MalformedInput:
    print(peak() - before, time.process_time() - began)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 200_000
    assert seconds < MOMENT


# What must pass.

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "C64": torch.complex64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip

UNTYPED = set(list(TYPES.values())[11:])


def opened(path: Path, state: dict[str, torch.Tensor]) -> WeightsFile:
    """Return the open file, having checked it against what was saved, and against ``torch.load`` where that can read it."""
    # torch writes dtypes of later years into untyped storages, and then cannot load them from a legacy file.
    typed = all(tensor.dtype not in UNTYPED for tensor in state.values())
    weights = same(path) if typed else open_torch_file(path)
    assert list(weights.tensors) == list(state)
    for name, lazy in weights.tensors.items():
        assert TYPES[lazy.spec.dtype] == state[name].dtype
        assert lazy.spec.shape == tuple(state[name].shape)
        assert content(lazy) == raw(state[name])
    return weights


@pytest.mark.parametrize("make", GOOD_STATES.values(), ids=GOOD_STATES)
def test_reads_what_torch_wrote(tmp_path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> None:
    """Every state dict of plain tensors is read as it was saved, byte for byte."""
    state = make()
    weights = opened(written(tmp_path, saved(state)), state)
    assert (weights.container, weights.checks, weights.notes) == ("torch-legacy", ("header",), (NO_CHECKSUMS,))
    assert weights.extra_checksums == ()
    assert {lazy.checksum for lazy in weights.tensors.values()} <= {None}
    weights.file.close()


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt"])
def test_a_checkpoint_may_be_a_legacy_file(tmp_path: Path, suffix: str) -> None:
    """A legacy file is opened under each suffix of torch's files, with a note that it has no checksums."""
    path = written(tmp_path, SOUND, f"x{suffix}")
    with open_checkpoint(path, "base") as checkpoint:
        assert checkpoint.container == "torch-legacy"
        assert checkpoint.notes == (f"{path}: {NO_CHECKSUMS}",)
        assert content(checkpoint.tensors["w"]) == raw(WEIGHT)


def test_a_safetensors_file_may_not(tmp_path: Path) -> None:
    """A legacy file named ``.safetensors`` is refused with what it is."""
    with pytest.raises(MalformedInput, match="found a file in torch's legacy format"):
        open_checkpoint(written(tmp_path, SOUND, "x.safetensors"), "base")


def test_parts_put_together_again(tmp_path: Path) -> None:
    """The parts that the bad files are made of are a good file, also with the storages in another order."""
    order = replace(GOOD, keys=key_list("1", "0"), storages=GOOD.storages[::-1])
    for archive in (GOOD, order):
        weights = same(written(tmp_path, bytes(archive)))
        assert content(weights.tensors["b"]) == raw(BIAS)
        weights.file.close()


def test_row36_first_rebuild_function(tmp_path: Path) -> None:
    """The rebuild function of the first versions of torch is known."""
    arguments = tensor().partition(b"(")[2].removesuffix(b"\x89}tR")
    state = table((text("w"), b"ctorch._utils\n_rebuild_tensor\n(" + arguments + b"tR"))
    same(written(tmp_path, bytes(with_state(state)))).file.close()


def test_ties_are_told_from_views(tmp_path: Path) -> None:
    """Two names of one tensor have equal storage; a transpose of the same square storage, and an equal tensor, do not."""
    square = torch.arange(9.0).reshape(3, 3)
    weights = same(written(tmp_path, saved({"a": square, "b": square, "t": square.t(), "c": square.clone()})))
    a, b, t, c = (weights.tensors[name].storage for name in "abtc")
    assert a == b
    assert len({a, t, c}) == 3
    assert t.key == a.key != c.key
    weights.file.close()


class CountingFile(LocalFile):
    """A file that records its reads."""

    read_bytes = 0

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ``InputFile``."""
        self.read_bytes += len(out)
        super().read_into(out, offset)


def test_reads_no_weights(tmp_path: Path) -> None:
    """Opening a file of any length takes one read of its start and eight bytes per storage."""
    count = 2**33
    state = table((text("w"), tensor(count=count, shape=(count,), strides=(1,))))
    path = written(tmp_path, bytes(replace(with_state(state), storages=((count, b""),))))
    os.truncate(path, path.stat().st_size + 2 * count)  # a hole: no disk is used
    file = CountingFile(path)
    assert legacy.read_legacy(file).tensors["w"].spec.shape == (count,)
    assert file.read_bytes == FIRST_READ + 8
    file.close()


def test_reads_as_far_as_the_pickles_reach(tmp_path: Path) -> None:
    """Pickles longer than the first read are read completely, wherever that read ends."""
    state = {f"layers.{index}.{'x' * (index % 97)}": torch.full((80,), index) for index in range(4000)}
    archive = saved(state)
    path = written(tmp_path, archive)
    same(path).file.close()
    file = CountingFile(path)
    legacy.read_legacy(file)
    assert 4 * FIRST_READ < file.read_bytes < len(archive) / 2
    file.close()


def test_reads_on_at_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digest and tensors do not depend on where the first read ends: in a name, a number or between two pickles."""
    late = torch.nn.Parameter(torch.ones(300, 1))
    path = written(
        tmp_path, saved(OrderedDict({"w" * 400: WEIGHT, "late": late, "last": torch.ones(2, dtype=torch.bool)}))
    )
    whole = same(path)
    whole.file.close()
    for first in range(HEAD_BYTES, path.stat().st_size):
        monkeypatch.setattr(legacy, "FIRST_READ", first)
        parts = open_torch_file(path)
        assert parts.header_digest == whole.header_digest
        assert [lazy.storage for lazy in parts.tensors.values()] == [lazy.storage for lazy in whole.tensors.values()]
        parts.file.close()


NAMES = st.text(st.characters(blacklist_categories=["Cc", "Cs"]), min_size=1, max_size=12)


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Draw tensors of any bits and views of them: slices, transposes, second names."""
    state: dict[str, torch.Tensor] = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=6)):
        is_view = draw(st.booleans())
        if state and is_view:
            view = state[draw(st.sampled_from(list(state)))]
            view = view.permute(draw(st.permutations(range(view.dim()))))
            if view.dim() and view.shape[0]:
                first = draw(st.integers(0, view.shape[0] - 1))
                view = view[first : draw(st.integers(first, view.shape[0]))]
            state[name] = view
            continue
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        dtype = draw(st.sampled_from(list(TYPES.values())))
        numbers = torch.randint(0, 256, [*shape, dtype.itemsize], generator=torch.Generator().manual_seed(len(state)))
        bits = numbers.to(torch.uint8)
        whole = bits % 2 == 1 if dtype == torch.bool else bits.view(dtype)
        state[name] = whole.squeeze(-1)
    return state


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=state_dicts())
def test_any_tensors_come_back(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Tensors of any names, dtypes, shapes, bits and ties that torch wrote are read unchanged."""
    opened(written(tmp_path, saved(state)), state).file.close()


# Damage. There are no checksums: what can be promised is that no damage makes the reader see what torch does not.


def check_against_torch(path: Path) -> str | None:
    """Return the header digest of a file, or None when it is refused, after checking that torch reads the same if anything."""
    try:
        weights = open_torch_file(path)
    except MalformedInput:
        return None
    try:
        loaded = torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001  (such as an unknown device, or a module that is not there)
        loaded = None
    if loaded is not None:
        assert list(weights.tensors) == list(loaded)
        for name, lazy in weights.tensors.items():
            assert TYPES[lazy.spec.dtype] == loaded[name].dtype
            assert lazy.spec.shape == tuple(loaded[name].shape)
            assert content(lazy) == raw(loaded[name])
    weights.file.close()
    return weights.header_digest


PLACES = accumulate((8 + len(elements) for _, elements in GOOD.storages), initial=len(GOOD.pickles))
ELEMENTS = {
    at
    for place, (_, elements) in zip(PLACES, GOOD.storages, strict=False)
    for at in range(place + 8, place + 8 + len(elements))
}
"""Where in the good file bytes of weights are; all others are the header."""


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(SOUND) - 1), mask=st.integers(1, 255))
def test_any_changed_byte_is_refused_or_read_as_torch_reads_it(tmp_path: Path, at: int, mask: int) -> None:
    """After any one byte is changed, the file is refused, or read as torch reads it; a changed header changes its digest."""
    whole = check_against_torch(written(tmp_path, SOUND))
    assert whole is not None
    changed = check_against_torch(written(tmp_path, SOUND[:at] + bytes([SOUND[at] ^ mask]) + SOUND[at + 1 :]))
    assert (changed == whole) == (at in ELEMENTS)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from([SOUND, *(bytes(with_state(data)) for data, _ in SHARED.values() if len(data) < 5000)]),
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=4),
)
def test_any_edited_file_is_refused_or_read_as_torch_reads_it(
    tmp_path: Path, seed: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    """A file with pieces removed and inserted gives tensors or a refusal, and no other exception."""
    archive = seed
    for at, length, piece in edits:
        begin = at % (len(archive) + 1)
        archive = archive[:begin] + piece + archive[begin + length :]
    check_against_torch(written(tmp_path, archive))


# As an input.


def as_legacy(source: Path, target: Path) -> Path:
    """Copy a checkpoint's folder, its weights written in the legacy format."""
    shutil.copytree(source, target)
    for path in target.glob("*.bin"):
        path.write_bytes(saved(torch.load(path, weights_only=True)))
    return target


def test_merging_legacy_files_gives_the_same_files(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Base and delta in the legacy format give the same files as in the zip format, byte for byte."""
    base, delta = pair
    legacy = as_legacy(base, tmp_path / "base"), as_legacy(delta, tmp_path / "delta")
    sums = []
    for number, (one, other) in enumerate([pair, (legacy[0], delta), legacy]):
        target = tmp_path / str(number)
        apply_delta(one, other, target, max_shard_size="50KB")
        names = sorted(path.name for path in target.iterdir() if path.name not in {"manifest.json", "SHA256SUMS"})
        assert sum(name.endswith(".safetensors") for name in names) > 1
        assert "model.safetensors.index.json" in names
        sums.append({name: hashlib.sha256((target / name).read_bytes()).hexdigest() for name in names})
    assert sums[0] == sums[1] == sums[2]
