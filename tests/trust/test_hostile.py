"""Attacks that succeeded once: each is refused or reported, quickly and in little memory."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deltaweights.checkpoint.companions import state_dtype
from deltaweights.errors import CheckFailed, MalformedInput, UsageError
from deltaweights.hub.access import configured_access
from deltaweights.inference.prompts import MAX_ASPECT_RATIO, open_images
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.listing import list_checkpoint
from deltaweights.manifest.verify import verify
from deltaweights.signing.bundle import Bundle, pae, parse_bundle
from deltaweights.signing.folder import read_signature, sign_folder
from deltaweights.signing.keys import load_private
from deltaweights.util.limits import MANIFEST
from tests.conftest import Run
from tests.support.limits import PATIENCE
from tests.support.pairs import make_pair
from tests.support.params import few
from tests.support.signing import make_key, merged, result, stock_verifies
from tests.trust.harness import TARGET, assert_one_line, case, hold, run_command

__all__ = ["merged", "result"]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Return a private and a public key."""
    return make_key(tmp_path)


# Signatures.


def hide(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")


def link(folder: Path, name: str) -> None:
    (folder / name).symlink_to("/etc")


ADDED: dict[str, Callable[[Path], None]] = {
    "weights under .git*": lambda folder: hide(folder, ".gitevil.safetensors"),
    ".gitmodules": lambda folder: hide(folder, ".gitmodules"),
    "a link .git": lambda folder: link(folder, ".git"),
    "a link .cache": lambda folder: link(folder, ".cache"),
}


@pytest.mark.parametrize("add", ADDED.values(), ids=ADDED)
def test_names_that_a_signature_does_not_ignore(
    result: Path, keys: tuple[Path, Path], add: Callable[[Path], None]
) -> None:
    """Names that begin with .git, and links under ignored names, are not covered by signatures: such folders are not signed."""
    sign_folder(result, keys[0])
    add(result)
    assert not verify(result, signed=read_signature(result, keys[1])).ok
    with pytest.raises(CheckFailed, match=r"cannot be signed|is not in the manifest"):
        sign_folder(result, keys[0])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", [".git", ".github", ".gitignore", ".gitattributes", ".cache", ".deltaweights", "lost+found"]
)
def test_names_that_a_signature_ignores(result: Path, keys: tuple[Path, Path], name: str) -> None:
    """The documented names may be there, for the stock program and for us."""
    sign_folder(result, keys[0])
    (result / name).mkdir()
    (result / name / "x").touch()
    assert verify(result, signed=read_signature(result, keys[1])).ok
    assert stock_verifies(result, keys[1])


def test_a_listing_is_not_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """The manifest of a listed folder says less than that of a result: it is not signed, and no signature on it is accepted."""
    folder, _ = make_pair(tmp_path / "pair", "safetensors")
    (folder / "manifest.json").write_bytes(list_checkpoint(folder).document)
    with pytest.raises(CheckFailed, match="a listing of a folder, not the manifest of a result"):
        sign_folder(folder, keys[0])


def edited(result: Path, private: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Sign, and edit the bundle without changing the signed part."""
    sign_folder(result, private)
    document = json.loads((result / "model.sig").read_text())
    change(document)
    (result / "model.sig").write_text(json.dumps(document))


BUNDLES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another hint": lambda d: d["verificationMaterial"]["publicKey"].update(hint="0" * 64),
    "escape sequences for a hint": lambda d: d["verificationMaterial"]["publicKey"].update(hint="\x1b[2J"),
    "a hint that is no text": lambda d: d["verificationMaterial"]["publicKey"].update(hint=[1]),
    "a certificate, too": lambda d: d["verificationMaterial"].update(certificate={"rawBytes": ""}),
    "another signature, too": lambda d: d.update(messageSignature={"signature": ""}),
    "two signatures": lambda d: d["dsseEnvelope"]["signatures"].append(d["dsseEnvelope"]["signatures"][0]),
    "no signature": lambda d: d["dsseEnvelope"]["signatures"].clear(),
    "signatures that are no list": lambda d: d["dsseEnvelope"].update(signatures={}),
    "a key that is no object": lambda d: d["verificationMaterial"].update(publicKey="x"),
}


@pytest.mark.parametrize("change", BUNDLES.values(), ids=BUNDLES)
def test_bundles_that_say_two_things(
    result: Path, keys: tuple[Path, Path], change: Callable[[dict[str, Any]], object]
) -> None:
    """A bundle with a valid signature and unexpected content is refused in one printable line."""
    edited(result, keys[0], change)
    with pytest.raises(CheckFailed) as caught:
        read_signature(result, keys[1])
    assert str(caught.value).isprintable()


SPELLED_TWICE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "the envelope": (
        lambda d: d.update(dsse_envelope=d["dsseEnvelope"]),
        "one key in two spellings: dsseEnvelope and dsse_envelope",
    ),
    "the envelope, first": (
        lambda d: [d.update(dsse_envelope={}), d.update(dsseEnvelope=d.pop("dsseEnvelope"))],
        "one key in two spellings: dsse_envelope and dsseEnvelope",
    ),
    "in the envelope": (lambda d: d["dsseEnvelope"].update(payload_type="x"), "payloadType and payload_type"),
    "the type": (lambda d: d.update(media_type="x"), "mediaType and media_type"),
    "the key": (lambda d: d["verificationMaterial"].update(public_key={}), "publicKey and public_key"),
    "in a list": (
        lambda d: d["verificationMaterial"].update(tlogEntries=[{"logIndex": "1", "log_index": "2"}]),
        "logIndex and log_index",
    ),
    "another signature": (
        lambda d: d.update(message_signature={"signature": ""}),
        "more than a signature by a key: message_signature",
    ),
    "a chain": (
        lambda d: d["verificationMaterial"].update(x509_certificate_chain={"certificates": []}),
        "more than a signature by a key: x509_certificate_chain",
    ),
}


@pytest.mark.trust
@pytest.mark.parametrize(("change", "says"), SPELLED_TWICE.values(), ids=SPELLED_TWICE)
def test_row90_bundles_that_spell_a_key_twice(
    result: Path, keys: tuple[Path, Path], run: Run, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    """Protobuf's JSON has two spellings of a key, and readers differ in which counts: both at once are refused with 6, anywhere."""
    edited(result, keys[0], change)
    done = run("verify", result, "--public-key", keys[1])
    assert done.returncode == 6
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.trust
def test_row90_a_statement_that_spells_a_key_twice(result: Path, keys: tuple[Path, Path]) -> None:
    """The same holds for the signed part."""
    key = load_private(keys[0])
    sign_folder(result, keys[0])
    bundle = parse_bundle((result / "model.sig").read_bytes())
    statement = {**json.loads(bundle.payload), "predicate_type": "x"}
    payload = json.dumps(statement).encode()
    (result / "model.sig").write_bytes(Bundle(payload, key.sign(pae(payload)), key.public.name).to_bytes())
    with pytest.raises(CheckFailed, match="one key in two spellings: predicateType and predicate_type"):
        read_signature(result, keys[1])


def test_a_bundle_without_a_hint(result: Path, keys: tuple[Path, Path]) -> None:
    """The key hint may be missing, because it proves nothing."""
    edited(result, keys[0], lambda document: document["verificationMaterial"]["publicKey"].pop("hint"))
    assert verify(result, signed=read_signature(result, keys[1])).ok


def test_two_signatures_are_said(result: Path, keys: tuple[Path, Path]) -> None:
    """The message is ours, not Python's."""
    edited(result, keys[0], BUNDLES["two signatures"])
    with pytest.raises(ValueError, match=r"^2 signatures, not one$"):
        parse_bundle((result / "model.sig").read_bytes())


def test_a_report_replaces_no_key(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """``--junit`` overwrites an earlier report or an empty file, and nothing else."""
    sign_folder(result, keys[0])
    before = keys[1].read_bytes()
    done = run("verify", result, "--public-key", keys[1], "--junit", keys[1])
    assert done.returncode == 2
    assert "--junit would replace what is no report" in done.stderr
    assert keys[1].read_bytes() == before
    report = keys[1].with_name("report.xml")
    for _ in range(2):
        assert run("verify", result, "--junit", report).returncode == 0
    assert "<testsuite" in report.read_text()


# Configurations.


def nested(depth: int) -> bytes:
    """Return a configuration with the same keys so many levels deep, and at its top."""
    inner = '"a":' + '{"torch_dtype":"float32","b":' * depth + "0" + "}" * depth
    return f'{{{inner},"torch_dtype":"float32"}}'.encode()


@pytest.mark.trust
def test_row47_a_configuration_that_says_it_often(tmp_path: Path, normal: float) -> None:
    """A dtype in many places is changed at the top in one pass, or the nesting is refused, quickly."""

    def make(folder: Path) -> list[str | Path]:
        base, delta = make_pair(folder, "safetensors")
        (delta / "config.json").write_bytes(nested(100_000))
        return ["apply", "--base", base, "--delta", delta, "--target", TARGET]

    hold(case(make, 3, "config.json", "nested too deeply"), tmp_path, normal)
    changed, what = state_dtype(nested(400), "float16", Path("config.json"))
    assert json.loads(changed) == json.loads(nested(400)) | {"torch_dtype": "float16"}
    assert what == "config.json: torch_dtype changed from float32 to float16"


TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["torch_dtype", "dtype", '"', "\\", "{", ":", "float32"]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(
    rest=st.dictionaries(TEXT, VALUE, max_size=5),
    stated=TEXT,
    indent=st.none() | st.integers(0, 3),
    ascii_only=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_only_the_dtype_at_the_top_changes(
    rest: dict[str, Any], stated: str, indent: int | None, ascii_only: bool, order: Random
) -> None:
    """In any configuration, however it is formatted, only that value changes."""
    entries = list((rest | {"torch_dtype": stated}).items())
    order.shuffle(entries)
    document = dict(entries)
    written = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    changed, _ = state_dtype(written, "bfloat16", Path("config.json"))
    expected = document | {"torch_dtype": "bfloat16"}
    if isinstance(document.get("dtype"), str):
        expected["dtype"] = "bfloat16"
    assert json.loads(changed) == expected
    assert list(json.loads(changed)) == list(document)


# Memory.


def licences(folder: Path, names: list[str], size: int) -> list[str | Path]:
    """Make a pair whose delta has sparse licence files of so many bytes."""
    base, delta = make_pair(folder, "safetensors")
    for name in names:
        with (delta / name).open("wb") as file:
            file.truncate(size)
    return ["apply", "--base", base, "--delta", delta, "--target", TARGET]


@pytest.mark.trust
def test_row47_companions_without_end(tmp_path: Path, normal: float) -> None:
    """Licences that are too large, and names that differ only in case, are refused."""
    large = case(lambda folder: licences(folder, ["LICENSE"], 60 * 2**20), 3, "LICENSE: file is too long")
    twins = case(
        lambda folder: licences(folder, ["LICENSE", "License"], 10), 3, "two files whose names differ only in case"
    )
    for number, subject in enumerate((large, twins)):
        hold(subject, tmp_path / str(number), normal)


@pytest.mark.trust
def test_row74_a_manifest_of_one_endless_string(tmp_path: Path, normal: float) -> None:
    """A huge SHA256SUMS ends the verification with 6, in little memory."""

    def make(folder: Path) -> list[str | Path]:
        base, delta = make_pair(folder, "safetensors")
        apply_delta(base, delta, folder / "out")
        with (folder / "out" / "manifest.json").open("wb") as file:
            file.write('{"a": "🙂'.encode() + b"x" * (60 * 2**20) + b'"}')
        return ["verify", folder / "out"]

    hold(case(make, 6, "manifest.json", "a value of more than 131,072 characters"), tmp_path, normal)


MOST_MEBIBYTES = 500
"""For documents about 100,000 tensors, or as large as such (SECURITY.md)."""

FULL: dict[str, Callable[[], str]] = {
    "row74-keys": lambda: "{" + ",".join(f'"{number:x}":0' for number in range(MANIFEST.commas)) + "}",
    "row74-texts": lambda: "[" + ",".join(f'"{number:030x}"' for number in range(MANIFEST.commas)) + "]",
    "row74-lists": lambda: "[" + "[],[0,0]," * (MANIFEST.lists // 2 - 9) + "0]",
}


@pytest.mark.trust
@pytest.mark.parametrize("make", few(FULL.values(), 1), ids=FULL)
def test_the_most_that_a_document_may_hold(tmp_path: Path, normal: float, make: Callable[[], str]) -> None:
    """A manifest at its limits ends in one line, within the documented memory."""
    base, delta = make_pair(tmp_path, "safetensors")
    apply_delta(base, delta, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(make())
    outcome = run_command(["verify", tmp_path / "out"])
    assert outcome.code == 6
    assert_one_line(outcome, ["manifest.json: is not a manifest"])
    assert outcome.seconds < 5
    assert outcome.peak < normal + MOST_MEBIBYTES


@pytest.mark.trust
def test_row76_a_signature_without_end(tmp_path: Path, normal: float) -> None:
    """A bundle of 60 MB is not read."""

    def make(folder: Path) -> list[str | Path]:
        base, delta = make_pair(folder, "safetensors")
        apply_delta(base, delta, folder / "out")
        (folder / "out" / "model.sig").write_bytes(base64.b64encode(bytes(45 * 2**20)))
        return ["verify", folder / "out", "--public-key", make_key(folder)[1]]

    hold(case(make, 6, "model.sig: file is too long"), tmp_path, normal)


# The environment.


@pytest.mark.parametrize(
    "endpoint", ["http://[", "http://\x1b[31m", "http://a:99999999", "http://", "ftp://x", "x", "http://:80"]
)
def test_no_address_of_a_hub(endpoint: str) -> None:
    """A malformed address is a usage error with a printable message."""
    with pytest.raises(UsageError, match="not a valid Hub address") as caught:
        configured_access(endpoint=endpoint)
    assert str(caught.value).isprintable()


ENVIRONMENTS = {
    "a number": ({"HF_HUB_DOWNLOAD_TIMEOUT": "x"}, "unusable environment variable of huggingface_hub"),
    "a proxy": ({"ALL_PROXY": "foo://user:secret@x"}, "unusable proxy address"),
    "another proxy": ({"HTTPS_PROXY": "ftp://user:secret@x"}, "unusable proxy address"),
    "an endpoint": (
        {"HF_ENDPOINT": "http://\x1b[31m"},
        "not a valid Hub address: found http://\\x1b[31m; check HF_ENDPOINT",
    ),
}


@pytest.mark.parametrize(("variables", "says"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_an_environment_that_is_not_usable(variables: dict[str, str], says: str, tmp_path: Path) -> None:
    """It ends with 2 and one line that names the variable, without a secret."""
    command = [sys.executable, "-m", "deltaweights", "download", "org/name"]
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    done = subprocess.run(
        command,
        env=environment | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()


def test_a_terminal_that_is_not_utf_8(result: Path) -> None:
    """A name that the terminal's encoding cannot represent is escaped, without a traceback."""
    (result / "é日本.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "deltaweights", "verify", result],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 6
    assert b"\xe9\\u65e5\\u672c.py: is not in the manifest" in done.stdout


def test_quiet_says_nothing(result: Path, keys: tuple[Path, Path], run: Run) -> None:
    """Nothing is printed, not even an empty line."""
    done = run("sign", result, "--private-key", keys[0], "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Images.


def test_only_images_are_images(tmp_path: Path) -> None:
    """PostScript, which Pillow would pass to another program, is refused whatever its name."""
    (tmp_path / "photo.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(MalformedInput, match="not an image: expected one of PNG"):
        open_images([tmp_path / "photo.png"])


@pytest.mark.parametrize(
    ("width", "height"), [(7747, 7746), (9500, 9500), (MAX_ASPECT_RATIO * 10 + 1, 10), (1, MAX_ASPECT_RATIO + 1)]
)
def test_images_that_would_fill_the_memory(tmp_path: Path, width: int, height: int) -> None:
    """Images that are too large are refused before they are decoded."""
    Image.new("1", (width, height)).save(tmp_path / "x.png")
    with pytest.raises(MalformedInput, match="image is too large: "):
        open_images([tmp_path / "x.png"])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_images_of_all_usual_kinds(tmp_path: Path, kind: str) -> None:
    """Images as cameras and microscopes write them are read."""
    Image.new("RGB", (40, 30), "gray").save(tmp_path / "x", kind)
    (image,) = open_images([tmp_path / "x"])
    assert (image.mode, image.size) == ("RGB", (40, 30))
