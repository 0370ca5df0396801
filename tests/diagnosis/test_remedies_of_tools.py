"""Remedies that need something beside the command: other programs, keys, variables, archives, recipes, another repository."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from deltaweights.checkpoint.file_type import LFS_POINTER
from tests.diagnosis.test_remedies import (
    INDEX,
    SHARD,
    Case,
    Line,
    Scene,
    adding,
    command,
    load_delta,
    put,
    restored,
    save_model,
    try_remedy,
    without,
)
from tests.support.limits import PATIENCE
from tests.support.merging import recipe_file
from tests.support.pairs import GROWN, base_tensors, delta_tensors, save
from tests.support.signing import make_key
from tests.support.tiny_llava import tokenizer

pytestmark = pytest.mark.diagnosis

PASSWORD = "DELTAWEIGHTS_TEST_PASSWORD"  # noqa: S105  (the name of a variable)

OF_AN_ARRAY = {
    f"SLURM_ARRAY_TASK_{name}": str(number)
    for name, number in {"ID": 3, "MIN": 1, "MAX": 7, "STEP": 1, "COUNT": 3}.items()
}
"""What Slurm tells the second task of ``sbatch --array=1,3,7``."""


def variables() -> list[str]:
    """Return the names of what cases set, and of what Slurm sets."""
    return [PASSWORD, *(name for name in os.environ if name.startswith("SLURM_")), *OF_AN_ARRAY]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what Slurm or somebody else set; what a case sets is gone after it."""
    for name in variables():
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def shell(words: str, cwd: Path) -> None:
    """Run a command that a remedy names."""
    subprocess.run(shlex.split(words), cwd=cwd, check=True, capture_output=True, timeout=PATIENCE)


def renamed(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


# Files that are something else.


def lfs_pointer(scene: Scene) -> Line:
    """Leave the pointer in place of a shard, as a clone without git-LFS does."""
    shutil.move(scene.delta / SHARD, scene.root / SHARD)
    (scene.delta / SHARD).write_bytes(LFS_POINTER + b"\noid sha256:" + b"0" * 64 + b"\nsize 1\n")
    return scene.apply()


def not_checked_out(scene: Scene) -> Line:
    """Clone the delta without a work tree."""
    source = scene.root / "source"
    scene.delta.rename(source)
    identity = "-c user.name=a -c user.email=a@b"
    for words in ("init -q", "add .", f"{identity} commit -q -m all"):
        shell(f"git -C {source} {words}", scene.root)
    shell(f"git clone -q --no-checkout {source} {scene.delta}", scene.root)
    return scene.apply()


def checked_out(scene: Scene, line: Line, remedy: str) -> Line:
    """Run the first of the two commands; the second is only needed where files are in git-LFS."""
    first, _ = remedy.removeprefix("run ").split(" and ")
    shell(first, scene.root)
    return line


def gzipped(scene: Scene) -> Line:
    path = scene.delta / SHARD
    path.write_bytes(gzip.compress(path.read_bytes()))
    return scene.apply()


def gunzipped(scene: Scene, line: Line, _remedy: str) -> Line:
    path = scene.delta / SHARD
    path.write_bytes(gzip.decompress(path.read_bytes()))
    return line


def torch_named_safetensors(scene: Scene) -> Line:
    torch.save(delta_tensors(scene.tensors), scene.root / "delta.safetensors")
    return put(scene.apply(), "--delta", scene.root / "delta.safetensors")


def named_bin(scene: Scene, line: Line, _remedy: str) -> Line:
    return put(line, "--delta", renamed(scene.root / "delta.safetensors", "delta.bin"))


def expanded(scene: Scene) -> Line:
    """Save a tensor whose elements share their memory, which no loader is asked for here."""
    tensors = delta_tensors(scene.tensors)
    norm = tensors["model.norm.weight"]
    torch.save(tensors | {"model.norm.weight": norm[:1].expand(norm.shape)}, scene.root / "delta.bin")
    return put(scene.apply(), "--delta", scene.root / "delta.bin")


def saved_as_plain(scene: Scene, line: Line, _remedy: str) -> Line:
    """Load the file with torch, and save a dict of plain tensors."""
    loaded = torch.load(scene.root / "delta.bin", weights_only=True)
    torch.save({name: tensor.clone() for name, tensor in loaded.items()}, scene.root / "plain.bin")
    return put(line, "--delta", scene.root / "plain.bin")


def compressed(scene: Scene) -> Line:
    """Give a compressed archive to a part of a merge, which cannot unpack it for the others."""
    shutil.make_archive(str(scene.root / "delta"), "zip", scene.delta)
    return put(scene.apply("--part", "1/1"), "--delta", scene.root / "delta.zip")


def unpacked_elsewhere(scene: Scene, line: Line, remedy: str) -> Line:
    assert "give the folder" in remedy
    shutil.unpack_archive(scene.root / "delta.zip", scene.root / "unpacked")
    return put(line, "--delta", scene.root / "unpacked")


def archive(*folders: str, name: str = "delta.zip") -> Callable[[Scene], Line]:
    """Pack the delta, once for each folder."""

    def situation(scene: Scene) -> Line:
        with zipfile.ZipFile(scene.root / name, "w") as packed:
            for folder in folders:
                for path in scene.delta.iterdir():
                    packed.write(path, f"{folder}/{path.name}")
        return put(scene.apply(), "--delta", scene.root / name)

    return situation


def unpacked(scene: Scene, line: Line, remedy: str) -> Line:
    assert "unpack it" in remedy
    with zipfile.ZipFile(line[line.index("--delta") + 1]) as packed:
        packed.extractall(scene.root / "unpacked")
    (first, *_) = sorted((scene.root / "unpacked").iterdir())
    return put(line, "--delta", first)


def named_zip(scene: Scene, line: Line, _remedy: str) -> Line:
    return put(line, "--delta", renamed(scene.root / "delta.bin", "delta.zip"))


def linked_configuration(scene: Scene) -> Line:
    shutil.move(scene.delta / "config.json", scene.root / "config.json")
    (scene.delta / "config.json").symlink_to(scene.root / "config.json")
    return scene.apply()


def copied(scene: Scene, line: Line, remedy: str) -> Line:
    assert "put a copy of it there" in remedy
    (scene.delta / "config.json").unlink()
    shutil.copy(scene.root / "config.json", scene.delta / "config.json")
    return line


def several_dtypes(scene: Scene) -> Line:
    (name, *_) = scene.tensors
    save(scene.tensors | {name: scene.tensors[name].float()}, scene.root / "mixed")
    return ["convert", "--base", str(scene.root / "mixed"), "--target", str(scene.target)]


def mean_folder(scene: Scene) -> Line:
    """Leave a staging folder beside the target that came from elsewhere."""
    staging = scene.root / f".{scene.target.name}.deltaweights"
    staging.mkdir(mode=0o700)
    (staging / "plan.json").write_text("{}")
    return scene.apply()


def staging_removed(scene: Scene, line: Line, remedy: str) -> Line:
    assert "remove it" in remedy
    shutil.rmtree(scene.root / f".{scene.target.name}.deltaweights")
    return line


# Keys, signatures and manifests.


def signing(*more: str) -> Callable[[Scene], Line]:
    """Merge, and sign with a key that is none."""

    def situation(scene: Scene) -> Line:
        command(scene.apply())
        (scene.root / "key.pem").write_text("no key")
        make_key(scene.root, "locked", password=b"secret")
        make_key(scene.root, "open")
        return ["sign", str(scene.target), "--private-key", *[word.format(scene.root) for word in more]]

    return situation


def key_made(scene: Scene, line: Line, remedy: str) -> Line:
    shell(remedy.removeprefix("make one with: "), scene.root)
    return line


def password_named(_scene: Scene, line: Line, remedy: str) -> Line:
    assert "--password-env NAME" in remedy
    os.environ[PASSWORD] = "secret"
    return [*line, "--password-env", PASSWORD]


def password_exported(_scene: Scene, line: Line, remedy: str) -> Line:
    assert "export the key's password" in remedy
    os.environ[PASSWORD] = "secret"
    return line


def not_needed(scene: Scene) -> Line:
    os.environ[PASSWORD] = "secret"
    return signing("{}/open.pem", "--password-env", PASSWORD)(scene)


def signed(scene: Scene) -> None:
    command(signing("{}/open.pem")(scene))


def verified_by_private(scene: Scene) -> Line:
    signed(scene)
    shutil.copy(scene.root / "open.pem", scene.root / "key.pem")
    return ["verify", str(scene.target), "--public-key", str(scene.root / "key.pem")]


def public_made(scene: Scene, line: Line, remedy: str) -> Line:
    shell(remedy.partition(": ")[2], scene.root)
    return put(line, "--public-key", scene.root / "pub.pem")


def without_public(scene: Scene) -> Line:
    signed(scene)
    return ["verify", str(scene.target), "--signature", str(scene.target / "model.sig")]


def public_too(scene: Scene, line: Line, remedy: str) -> Line:
    assert "--public-key" in remedy
    (signature,) = scene.target.glob("*.sig")
    return [*put(line, "--signature", signature), "--public-key", str(scene.root / "open.pub")]


def signature_in_the_way(scene: Scene) -> Line:
    line = signing("{}/open.pem", "--signature", "{}/mine.sig")(scene)
    (scene.root / "mine.sig").write_text("a letter")
    return line


def moved_off(*names: str) -> Callable[[Scene, Line, str], Line]:
    def follow(scene: Scene, line: Line, remedy: str) -> Line:
        assert "move it away" in remedy
        for name in names:
            renamed(scene.root / name, "elsewhere")
        return line

    return follow


def manifest_in_the_way(scene: Scene) -> Line:
    (scene.root / "mine.json").write_text("a letter")
    return ["manifest", str(scene.base), "--output", str(scene.root / "mine.json")]


def report_in_the_way(scene: Scene) -> Line:
    command(scene.apply())
    (scene.root / "mine.xml").write_text("a letter")
    return ["verify", str(scene.target), "--junit", str(scene.root / "mine.xml")]


def another_name(flag: str) -> Callable[[Scene, Line, str], Line]:
    def follow(scene: Scene, line: Line, remedy: str) -> Line:
        assert "name another file" in remedy
        return put(line, flag, scene.root / "another")

    return follow


# Devices, Slurm, options.


def with_options(*more: str) -> Callable[[Scene], Line]:
    return lambda scene: scene.apply(*more)


def replaced(flag: str, value: str) -> Callable[[Scene, Line, str], Line]:
    """Give ``flag`` the value that the remedy names."""

    def follow(_scene: Scene, line: Line, remedy: str) -> Line:
        assert f"{flag} {value.partition('/')[0].partition(':')[0]}" in remedy or f"{flag} K/N" in remedy
        return put(line, flag, value)

    return follow


def uneven_array(scene: Scene) -> Line:
    """Pretend to be a task of ``sbatch --array=1,3,7``."""
    os.environ.update(OF_AN_ARRAY)
    return scene.apply("--part", "slurm")


# Recipes.


def recipe(more: str = "", *, before: str = "") -> Callable[[Scene], Line]:
    """Give a recipe's file of the user's own, with something in it."""

    def situation(scene: Scene) -> Line:
        path = recipe_file(scene.root, more=more, stated=False)
        path.write_text(before + path.read_text())
        return scene.apply("--recipe", path)

    return situation


def edited(old: str, new: str) -> Callable[[Scene, Line, str], Line]:
    """Edit the recipe as the remedy says."""

    def follow(scene: Scene, line: Line, remedy: str) -> Line:
        assert new.partition(" ")[0] in remedy or "leave it out" in remedy or "correct" in remedy or "add it" in remedy
        path = scene.root / "own.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        return line

    return follow


def latin_recipe(scene: Scene) -> Line:
    line = recipe()(scene)
    path = scene.root / "own.toml"
    path.write_bytes(f"{path.read_text()}[delta]\nnote = 'für mich'\n".encode("latin-1"))
    return line


def saved_as_utf8(scene: Scene, line: Line, remedy: str) -> Line:
    assert remedy == "save it as UTF-8"
    path = scene.root / "own.toml"
    path.write_text(path.read_bytes().decode("latin-1").partition("[delta]")[0], encoding="utf-8")
    return line


def weights_as_recipe(scene: Scene) -> Line:
    (scene.root / "own.toml").write_bytes(bytes(2_000_000))
    return scene.apply("--recipe", scene.root / "own.toml")


def recipe_itself(scene: Scene, line: Line, remedy: str) -> Line:
    assert "give the recipe" in remedy
    return put(line, "--recipe", recipe_file(scene.root, stated=False))


def no_delta(scene: Scene) -> Line:
    line = scene.apply("--recipe", recipe_file(scene.root, stated=False))
    at = line.index("--delta")
    return [*line[:at], *line[at + 2 :]]


def no_base(scene: Scene) -> Line:
    line = scene.apply("--recipe", recipe_file(scene.root, stated=False))
    at = line.index("--base")
    return [*line[:at], *line[at + 2 :]]


def given(flag: str, name: str) -> Callable[[Scene, Line, str], Line]:
    def follow(scene: Scene, line: Line, remedy: str) -> Line:
        assert f"give {flag}" in remedy
        return [*line, flag, str(scene.root / name)]

    return follow


# What is really wrong with the base.


def merged_base(scene: Scene) -> Line:
    """Merge, and give the result as the base of the same delta."""
    command(put(scene.apply(), "--target", scene.root / "merged"))
    return put(scene.apply(), "--base", scene.root / "merged")


def delta_twice(scene: Scene) -> Line:
    return put(scene.apply(), "--base", scene.delta)


def made_as_base(scene: Scene) -> Line:
    """Give a delta of ours as the base of another one."""
    return put(scene.apply(), "--base", scene.make())


def base_itself(scene: Scene, line: Line, _remedy: str) -> Line:
    return put(line, "--base", scene.base)


def grown_to_the_delta(scene: Scene) -> Line:
    """Grow the base by as many rows as the delta has new tokens."""
    rows = torch.randn(4, 32) * 0.02
    tensors = {
        name: torch.cat([tensor, rows.half()]) if name in GROWN else tensor for name, tensor in scene.tensors.items()
    }
    save(tensors, scene.root / "grown")
    return put(scene.apply(), "--base", scene.root / "grown")


def rows_left_out(scene: Scene, line: Line, remedy: str) -> Line:
    """Leave out the rows after those that the remedy counts, as transformers would."""
    assert "resize_token_embeddings(48)" in remedy
    return put(line, "--base", scene.base)


def check_of_a_delta(scene: Scene) -> Line:
    return ["check", str(scene.make())]


def tuned_instead(scene: Scene, line: Line, remedy: str) -> Line:
    """Check what the delta was made of, as ``apply`` gives it back."""
    assert "deltaweights apply" in remedy
    save_model(scene.root / "model")
    return [line[0], str(scene.root / "model")]


def verify_others(scene: Scene) -> Line:
    return ["verify", str(scene.base)]


def listed_first(scene: Scene, line: Line, _remedy: str) -> Line:
    """Hold the folder against a manifest that was made when it was good."""
    command(["manifest", str(scene.base), "--output", str(scene.root / "kept.json")])
    return [*line, "--manifest", str(scene.root / "kept.json")]


def utf16_config(scene: Scene) -> Line:
    path = scene.base / "config.json"
    path.write_bytes('{"model_type": "llama"}'.encode("utf-16"))
    return ["convert", "--base", str(scene.base), "--target", str(scene.target)]


def saved_unmarked(scene: Scene, line: Line, _remedy: str) -> Line:
    path = scene.base / "config.json"
    path.write_text(path.read_bytes().decode("utf-16"), encoding="utf-8")
    return line


def export_of_another(scene: Scene) -> Line:
    """Ask for the layout of transformers where the configuration says that it is no LLaMA."""
    base = base_tensors(1, vocabulary=300)
    save(base, scene.base)
    save(load_delta(base), scene.delta)
    tokenizer().save_pretrained(scene.delta)
    (scene.delta / "config.json").write_text('{"model_type": "gptj"}')
    return scene.apply("--layout", "transformers")


def fp8_base(scene: Scene) -> Line:
    small = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.dim() == 2 else tensor for name, tensor in scene.tensors.items()
    }
    save(small, scene.root / "fp8", container="safetensors")
    return put(scene.apply(), "--base", scene.root / "fp8")


def wrapped_inside(scene: Scene) -> Line:
    inside = {name.replace("self_attn.", "self_attn.module."): tensor for name, tensor in scene.tensors.items()}
    save(inside, scene.root / "inside")
    return put(scene.apply(), "--base", scene.root / "inside")


def delta_as_target(scene: Scene) -> Line:
    made = scene.make()
    return ["make", "--base", str(scene.base), "--target", str(made), "--delta", str(scene.target)]


def tuned_given(scene: Scene, line: Line, remedy: str) -> Line:
    assert "give the model itself as the target" in remedy
    return put(line, "--target", scene.root / "tuned")


def made_against_recipe(scene: Scene) -> Line:
    made = scene.make()
    return put(scene.apply("--recipe", recipe_file(scene.root, "bfloat16")), "--delta", made)


def no_recipe(_scene: Scene, line: Line, remedy: str) -> Line:
    assert "leave the recipe out" in remedy
    at = line.index("--recipe")
    return [*line[:at], *line[at + 2 :]]


def merge_as_delta(scene: Scene) -> Line:
    command(put(scene.apply(), "--target", scene.root / "merged"))
    return put(scene.apply(), "--delta", scene.root / "merged")


def delta_itself(scene: Scene, line: Line, remedy: str) -> Line:
    assert "give the delta itself" in remedy
    return put(line, "--delta", scene.delta)


def overwritten(name: str, data: bytes) -> Callable[[Scene], Line]:
    """Put something else in place of a file of the delta."""

    def situation(scene: Scene) -> Line:
        shutil.move(scene.delta / name, scene.root / name)
        (scene.delta / name).write_bytes(data)
        return scene.apply()

    return situation


def no_projector(scene: Scene) -> Line:
    save(load_delta(scene.tensors), scene.delta)
    torch.save({"other": torch.ones(2)}, scene.delta / "mm_projector.bin")
    return scene.apply()


def projector_removed(scene: Scene, line: Line, remedy: str) -> Line:
    assert "remove it" in remedy
    (scene.delta / "mm_projector.bin").unlink()
    return line


def base_with(files: dict[str, str]) -> Callable[[Scene], Line]:
    """Give a folder with nothing but these files as the base."""

    def situation(scene: Scene) -> Line:
        (scene.root / "other").mkdir()
        for name, text in files.items():
            (scene.root / "other" / name).write_text(text)
        return put(scene.apply(), "--base", scene.root / "other")

    return situation


def to_export(*without: str) -> Callable[[Scene], Line]:
    """Export a model without some of its files."""

    def situation(scene: Scene) -> Line:
        save_model(scene.root / "model")
        (scene.root / "model" / "tokenizer.model").unlink()
        base = base_tensors(1, vocabulary=300)
        save(base, scene.root / "model", shards=1, container="safetensors")
        config = LlamaConfig(
            vocab_size=300, hidden_size=32, intermediate_size=92, num_hidden_layers=1, num_attention_heads=4
        )
        config.save_pretrained(scene.root / "model")
        tokenizer().save_pretrained(scene.root / "model")
        (scene.root / "away").mkdir()
        for name in without:
            for path in (scene.root / "model").glob(name):
                shutil.move(path, scene.root / "away")
        return ["export", str(scene.root / "model"), "--target", str(scene.target)]

    return situation


def put_back(scene: Scene, line: Line, remedy: str) -> Line:
    assert "beside the weights" in remedy or "copy it" in remedy
    for path in (scene.root / "away").iterdir():
        shutil.copy(path, scene.root / "model")
    return line


CASES: dict[str, Case] = {
    "an fp8 base": Case(fp8_base, "E-OTHER-TENSORS", "in float16, bfloat16 or float32", base_itself),
    "a base from inside a wrapper": Case(wrapped_inside, "E-OTHER-TENSORS", "wrappers removed", base_itself),
    "a delta of ours to make one from": Case(delta_as_target, "E-NOT-A-MODEL", "give the model itself", tuned_given),
    "a recipe against the delta's manifest": Case(made_against_recipe, "E-USAGE", "leave the recipe out", no_recipe),
    "a merge of ours as the delta": Case(merge_as_delta, "E-ALREADY-MERGED", "give the delta itself", delta_itself),
    "zeros for a shard": Case(
        overwritten(SHARD, bytes(4096)), "E-UNSUPPORTED-FORMAT", "fetch it again", restored(SHARD)
    ),
    "a page for a shard": Case(
        overwritten(SHARD, b"<!DOCTYPE html><html></html>"), "E-UNSUPPORTED-FORMAT", "not a page", restored(SHARD)
    ),
    "an empty shard": Case(overwritten(SHARD, b""), "E-INCOMPLETE", "download it again", restored(SHARD)),
    "an index of something else": Case(
        overwritten(INDEX, b'{"a": 1}'), "E-MALFORMED", "fetch it again", restored(INDEX)
    ),
    "a projector that is none": Case(no_projector, "E-MALFORMED", "remove it", projector_removed),
    "an empty folder": Case(base_with({}), "E-NO-WEIGHTS", "give the folder that holds the base's", base_itself),
    "a folder of words": Case(base_with({"notes.txt": "a"}), "E-NO-WEIGHTS", "a README alone", base_itself),
    "a configuration alone": Case(
        base_with({"config.json": "{}"}), "E-NO-WEIGHTS", "give the folder that holds them", base_itself
    ),
    "a dataset": Case(base_with({"a.parquet": "PAR1"}), "E-NO-WEIGHTS", "give the folder of a model", base_itself),
    "source code": Case(base_with({"setup.py": ""}), "E-NO-WEIGHTS", "give the folder of the model", base_itself),
    "a GGUF file": Case(base_with({"m.gguf": "GGUF"}), "E-NO-WEIGHTS", "that it was made from", base_itself),
    "no configuration to export": Case(to_export("config.json"), "E-MALFORMED", "put the model's config.json", put_back),
    "no tokenizer to export": Case(to_export("tokenizer*"), "E-MALFORMED", "copy it from", put_back),
    "a merge as the base": Case(merged_base, "E-WRONG-BASE", "use the original LLaMA-1", base_itself),
    "the delta as the base, too": Case(delta_twice, "E-NOT-A-MODEL", "give the base itself", base_itself),
    "a delta of ours as the base": Case(made_as_base, "E-NOT-A-MODEL", "give the model itself", base_itself),
    "a base with as many rows as the delta": Case(
        grown_to_the_delta, "E-WRONG-BASE", "leave them out", rows_left_out
    ),
    "a delta of ours to check": Case(check_of_a_delta, "E-DOES-NOT-LOAD", "check the model itself", tuned_instead),
    "a folder without a manifest": Case(verify_others, "E-NOT-AS-RECORDED", "with --manifest", listed_first),
    "a configuration in UTF-16": Case(utf16_config, "E-MALFORMED", "UTF-8 without BOM", saved_unmarked),
    "no LLaMA for transformers": Case(
        export_of_another, "E-MISMATCH", "without --layout", without("--layout")
    ),
    "a git-LFS pointer": Case(lfs_pointer, "E-LFS-POINTER", "run git lfs pull", restored(SHARD)),
    "a clone without its files": Case(not_checked_out, "E-NO-WEIGHTS", "checkout HEAD -- .", checked_out),
    "a shard that is gzipped": Case(gzipped, "E-UNSUPPORTED-FORMAT", "unpack it first", gunzipped),
    "a torch file of another name": Case(
        torch_named_safetensors, "E-UNSUPPORTED-FORMAT", "name it .bin or .pth", named_bin
    ),
    "an expanded tensor": Case(expanded, "E-MALFORMED", "save a dict of plain tensors", saved_as_plain),
    "a compressed archive for a part": Case(compressed, "E-MALFORMED", "unpack it first", unpacked_elsewhere),
    "an archive with two folders": Case(archive("one", "two"), "E-MALFORMED", "give the one you mean", unpacked),
    "an archive of another name": Case(archive("delta", name="delta.bin"), "E-MALFORMED", "name it .zip", named_zip),
    "a link out of the folder": Case(linked_configuration, "E-LINK-OUTSIDE", "put a copy of it there", copied),
    "weights of several dtypes": Case(several_dtypes, "E-USAGE", "give --dtype", adding("--dtype", "float16")),
    "staging from elsewhere": Case(mean_folder, "E-FOREIGN-STAGING", "remove it", staging_removed),
    "no private key": Case(signing("{}/key.pem"), "E-MALFORMED", "openssl ecparam", key_made),
    "an encrypted key": Case(signing("{}/locked.pem"), "E-USAGE", "--password-env NAME", password_named),
    "a password that is not set": Case(
        signing("{}/locked.pem", "--password-env", PASSWORD), "E-USAGE", "export the key's password", password_exported
    ),
    "a password that is not needed": Case(
        not_needed, "E-USAGE", "leave --password-env out", without("--password-env")
    ),
    "a private key to verify with": Case(verified_by_private, "E-MALFORMED", "openssl ec -in", public_made),
    "a signature without a key": Case(without_public, "E-USAGE", "give --public-key", public_too),
    "something else where the signature goes": Case(
        signature_in_the_way, "E-TARGET", "move it away", moved_off("mine.sig")
    ),
    "something else where the manifest goes: away": Case(
        manifest_in_the_way, "E-TARGET", "move it away", moved_off("mine.json")
    ),
    "something else where the manifest goes: another": Case(
        manifest_in_the_way, "E-TARGET", "name another file", another_name("--output")
    ),
    "something else where the report goes": Case(
        report_in_the_way, "E-USAGE", "name another file", another_name("--junit")
    ),
    "no such GPU": Case(
        with_options("--device", "cuda:99"), "E-USAGE", "run with --device cpu", replaced("--device", "cpu")
    ),
    "not in Slurm": Case(
        with_options("--part", "slurm"), "E-USAGE", "--part K/N", replaced("--part", "1/1")
    ),
    "an array of Slurm with holes": Case(
        uneven_array, "E-USAGE", "--part slurm:LIST", replaced("--part", "slurm:1,3,7")
    ),
    "a key of the recipe with a slip": Case(
        recipe(before='titel = "mine"\n'), "E-MALFORMED", "did you mean", edited("titel", "title")
    ),
    "a key of the recipe that is none": Case(
        recipe(before="zzz = 1\n"), "E-MALFORMED", "leave it out", edited("zzz = 1\n", "")
    ),
    "a key of the recipe that is missing": Case(
        recipe(before="# "), "E-MALFORMED", "add it", edited("# ", "")
    ),
    "a value of the recipe": Case(
        recipe(before="title = 1\n"), "E-MALFORMED", "correct it, or leave it out", edited("title = 1\n", "")
    ),
    "a recipe that is no TOML": Case(
        recipe(before="{\n"), "E-MALFORMED", "correct it there", edited("{\n", "")
    ),
    "a recipe that is not UTF-8": Case(latin_recipe, "E-MALFORMED", "save it as UTF-8", saved_as_utf8),
    "weights for a recipe": Case(weights_as_recipe, "E-MALFORMED", "give the recipe, not the weights", recipe_itself),
    "a recipe that does not say where the delta is": Case(
        no_delta, "E-NO-INPUT-GIVEN", "give --delta", given("--delta", "delta")
    ),
    "a recipe that does not say where the base is": Case(
        no_base, "E-NO-INPUT-GIVEN", "give --base", given("--base", "base")
    ),
}  # fmt: skip


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", CASES)
def test_the_remedy_works(tmp_path: Path, name: str) -> None:
    """The remedy is what the table says; followed, the command succeeds, or fails with the next right error."""
    try_remedy(CASES[name], Scene(tmp_path))
