"""``deltaweights check``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.support.tiny_llava import (
    HIDDEN,
    Tensors,
    edit,
    edit_tensors,
    make_llava,
    make_original,
    published_ids,
    tokenizer,
)

ROWS = len(tokenizer())


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """Make a LLaVA, to be changed."""
    return make_llava(tmp_path / "llava")


@pytest.mark.slow
def test_a_panic_writes_nothing(run: Run, llava: Path) -> None:
    """The traceback of code in Rust, which goes past Python, is not on stderr: the problem alone is told."""
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    edit(llava / "tokenizer.json", lambda given: given.update(normalizer=normalizer))
    done = run("check", llava)
    assert done.returncode == 6
    assert len(done.stdout.splitlines()) == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"deltaweights: error: {llava}: 1 problem; ")


def test_the_command_prints_what_it_found(run: Run, llava: Path) -> None:
    """A folder that loads is told on stdout in a few lines; nothing of the library's own chatter is anywhere."""
    done = run("check", llava)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"checked         {llava}",
        "loads as        LlavaForConditionalGeneration, in transformers",
        "tensors         80, all that the model has and no other",
        "parameters      75,016",
        f"tokenizer       {ROWS} tokens",
    ]


def test_the_command_fails_with_its_findings(run: Run, llava: Path) -> None:
    """Findings are lines on stdout, those of tensors that differ in a number alone as one, and the exit code is 6."""

    def change(given: Tensors) -> None:
        for layer in range(2):
            del given[f"language_model.model.layers.{layer}.mlp.up_proj.weight"]

    edit_tensors(llava, change)
    edit(llava / "generation_config.json", lambda ids: ids.update(eos_token_id=1))
    done = run("check", "-q", llava)
    assert done.returncode == 6
    tensors, ids = done.stdout.splitlines()
    assert tensors.startswith(
        "FAILED          model.safetensors: tensor model.language_model.layers.{0-1}.mlp.up_proj.weight: "
    )
    assert tensors.endswith(f" expected [{3 * HIDDEN - 4}, {HIDDEN}]")
    assert ids.startswith("FAILED          generation_config.json: eos_token_id ")
    assert ids.endswith(": found 1, expected 2 (</s>)")
    assert done.stderr.startswith(f"deltaweights: error: {llava}: 3 problems; ")
    assert done.stderr.count("\n") == 1


def test_the_command_passes_a_folder_without_a_tokenizer(run: Run, tmp_path: Path) -> None:
    """In the original layout a tokenizer that is not there is a warning, and the lines that remain are printed."""
    folder = make_original(tmp_path / "original")
    (folder / "tokenizer.json").unlink()
    done = run("check", folder)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [
        "loads as        LlavaLlamaForCausalLM, in the original LLaVA code",
        "tensors         25, all that the model has and no other",
        "parameters      44,992",
    ]
    tokenizer_missing, padding, note = done.stderr.splitlines()
    assert tokenizer_missing.startswith(f"deltaweights: warning: {folder}: tokenizer_config.json: ")
    assert padding.startswith(f"deltaweights: warning: {folder}: config.json: pad_token_id ")
    assert padding.endswith(f": found -1, expected 0 to {ROWS - 1}")
    assert note.startswith(f"{folder}: ")


def test_the_command_gives_json(run: Run, tmp_path: Path) -> None:
    """The JSON object is the report; warnings are in it, and not on stderr as well."""
    folder = make_original(tmp_path / "original")
    done = run("check", "--json", folder)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["ok"]
    assert [(row["file"], row["found"], row["expected"]) for row in told["warnings"]] == [
        (file, found, expected) for file, _, found, expected in published_ids()
    ]
    assert (told["model_class"], told["problems"]) == ("LlavaLlamaForCausalLM", [])
