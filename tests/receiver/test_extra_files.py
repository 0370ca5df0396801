"""Files that nobody stated, and that some loader, or the system that unpacks them, would take: none of them passes."""

from __future__ import annotations

import tarfile
import time
from pathlib import Path

import pytest

from deltaweights.errors import MalformedInput
from deltaweights.manifest.file_parts import EXTRAS, LOADER_FILES, WEIGHTS, part_of
from deltaweights.manifest.verify import verify
from tests.receiver.forms import FORMS, as_tgz, tar_of
from tests.receiver.test_verify_forms import signs
from tests.support.errors import refused
from tests.support.results import MANIFEST, SUMS, merged, original, sha256

__all__ = ["merged", "original"]  # fixtures

pytestmark = pytest.mark.receiver

READ = {
    "tokenizer.model.v3": LOADER_FILES,  # Mistral's library takes the last version
    "tokenizer.mm.model.v7": LOADER_FILES,
    "prophetnet.tokenizer": LOADER_FILES,
    "Modelfile": LOADER_FILES,  # Ollama
    "template": LOADER_FILES,
    "system": LOADER_FILES,
    "params": LOADER_FILES,
    "requirements.txt": LOADER_FILES,  # installed by inference servers
    "lm.arpa": LOADER_FILES,
    "model.tensors": WEIGHTS,
    "__0_0.distcp": WEIGHTS,
    "saved_model.pb": WEIGHTS,
    "model.keras": WEIGHTS,
    "model.onnx.data": WEIGHTS,
    "model.safetensors.index.fp16.json": WEIGHTS,
    # Other spellings of one name, for file systems that tell neither case nor what is not seen, or drop what ends a name.
    "model.SAFETENSORS": WEIGHTS,
    "model.safetensors.": WEIGHTS,
    "model.safetensors ": WEIGHTS,
    "model.safetensors::$DATA": WEIGHTS,
    "notes:x.safetensors": WEIGHTS,
    "a::b.py": LOADER_FILES,
    "a\n::error::b.py": LOADER_FILES,
    "two\nlines.safetensors": WEIGHTS,
    "merges\n.txt": LOADER_FILES,
    "model.safe\u200ctensors": WEIGHTS,
    "model.\uff53afetensors": WEIGHTS,
    "config.json\u200d": LOADER_FILES,
    "MERGES.TXT": LOADER_FILES,
    # Names that may stand beside any model, but for what they end with.
    ".git.safetensors": WEIGHTS,
    ".gitmodeling.py": LOADER_FILES,
    "._model-00003-of-00003.safetensors": WEIGHTS,
    "._modeling_llama.py": LOADER_FILES,
}


@pytest.mark.parametrize("name", READ)
def test_what_a_loader_reads_fails(name: str, merged: Path) -> None:
    """An extra file fails as what it is read as, in a folder and in an archive."""
    (merged / name).write_text("?")
    expected = "-++" if READ[name] == WEIGHTS else "+-+"
    assert signs(verify(merged)) == expected
    (merged / name).unlink()
    members = {path.name: path.read_bytes() for path in sorted(merged.iterdir())} | {name: b"?"}
    archive = tar_of(merged.parent / "received.tar", members)
    if name.isprintable():
        assert signs(verify(archive)) == expected


@pytest.mark.parametrize(
    "name", ["notes.md", "loss.png", "train.log", "a.txt", ".gitattributes", ".gitlab-ci.yml", ".gitkeep"]
)
def test_what_no_loader_reads_passes(name: str, merged: Path) -> None:
    """Notes, pictures, and files of git."""
    (merged / name).write_text("?")
    assert signs(verify(merged)) == "+++"


@pytest.mark.parametrize("form", FORMS)
def test_attributes_of_macos_are_litter(form: str, merged: Path, original: Path) -> None:
    """What macOS writes beside each file is no weights file; anything else, or a large one, could be one."""
    beside = merged / "._model-00001-of-00002.safetensors"
    beside.write_bytes(bytes.fromhex("0005160700020000") + bytes(4088))
    assert signs(verify(FORMS[form](merged, original))) == "+++"


@pytest.mark.parametrize(
    "content", [b"\x08" + bytes(7) + b"{}", bytes.fromhex("00051607") + bytes(2**20)], ids=["other", "large"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_weights_with_the_name_of_litter(content: bytes, merged: Path, original: Path, *, packed: bool) -> None:
    """Loaders that take whatever ends with .safetensors take it."""
    (merged / "._model-00001-of-00002.safetensors").write_bytes(content)
    report = verify(as_tgz(merged, original) if packed else merged)
    assert [(each.file, each.found) for each in report.problems] == [
        ("._model-00001-of-00002.safetensors", "an extra file")
    ]
    assert signs(report) == "-++"


def test_a_name_in_another_case(merged: Path, tmp_path: Path) -> None:
    """Unpacked where case does not count, such a member would take the place of what was compared."""
    members = {path.name: path.read_bytes() for path in sorted(merged.iterdir())}
    path = tar_of(tmp_path / "received.tar", members | {"readme.MD": b"?"})
    assert [each.file for each in verify(path).problems] == ["readme.MD"]


@pytest.mark.parametrize("name", ["custom_generate", "Additional_Chat_Templates"])
def test_folders_that_transformers_reads(name: str, merged: Path) -> None:
    """They are loader files, whether a manifest or sums state the rest."""
    (merged / name).mkdir()
    assert signs(verify(merged)) == "+-+"
    _by_sums(merged)
    assert signs(verify(merged)) == "+-+"


def _by_sums(folder: Path, more: str = "") -> None:
    (folder / MANIFEST).unlink()
    sums = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in sums if MANIFEST not in line) + more)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("extra", "expected"),
    [("model.fp16.safetensors", "-++"), ("generate.py", "+-+"), ("notes.md", "+++"), ("link", "++-")],
)
def test_other_files_in_folders_that_sums_reach_into(
    extra: str, expected: str, merged: Path, original: Path, *, packed: bool
) -> None:
    """Where sums state a file in a folder inside, what else is there counts as at the top."""
    inside = merged / "unet"
    inside.mkdir()
    (inside / "config.json").write_text("{}")
    _by_sums(merged, f"{sha256(inside / 'config.json')}  unet/config.json\n")
    assert signs(verify(merged)) == "+++"
    if extra == "link":
        (inside / extra).symlink_to("config.json")
    else:
        (inside / extra).write_text("?")
    if extra != "link" or not packed:
        assert signs(verify(as_tgz(merged, original) if packed else merged)) == expected


@pytest.mark.slow
def test_many_documents_in_an_archive_take_no_longer_each(tmp_path: Path) -> None:
    """The bytes that are kept are counted as they come, not anew for each member: that took 21 s, and now 1."""
    path = tmp_path / "received.tar"
    info = tarfile.TarInfo()
    with tarfile.open(path, "w") as archive:
        for number in range(50_000):
            info.name = f"{number}/manifest.json"
            archive.addfile(info)
    begin = time.process_time()
    with refused(MalformedInput, problem="several folders at the top"):
        verify(path)
    assert time.process_time() - begin < 12


def test_parts_of_names() -> None:
    """Text that no tokenizer reads, and pictures, are extras."""
    assert {part_of(name) for name in ("README.md", "a.png", "LICENSE", "NOTICE.txt", "run.sh")} == {EXTRAS}


@pytest.mark.slow
def test_many_extra_files_take_no_longer_each(merged: Path) -> None:
    """Each of 30,000 files of code is a problem of its own, and made no set of all names: that took 50 s, and now 2."""
    for number in range(30_000):
        (merged / f"{number}.py").touch()
    begin = time.process_time()
    assert len(verify(merged).problems) == 30_000
    assert time.process_time() - begin < 20


@pytest.mark.slow
def test_many_folders_take_no_longer_each(merged: Path) -> None:
    """Neither do 10,000 folders beside sums of 60,000 files inside of others."""
    _by_sums(merged, "".join(f"{64 * '0'}  sub/{number}\n" for number in range(60_000)))
    for number in range(10_000):
        (merged / f"folder{number}").mkdir()
    begin = time.process_time()
    assert len(verify(merged).notes) == 10_000
    assert time.process_time() - begin < 20
