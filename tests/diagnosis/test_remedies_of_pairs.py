"""Remedies about a base or a delta that is stored, named or computed in another way. Each is followed, and then the pair merges."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaweights.errors import DeltaweightsError
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.verify import verify
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save

pytestmark = pytest.mark.diagnosis

Run = Callable[..., subprocess.CompletedProcess[str]]

BASE = base_tensors()
DELTA = delta_tensors(BASE)


def merge(folder: Path, **options: Any) -> Any:
    """Merge ``folder/base`` and ``folder/delta``."""
    return apply_delta(folder / "base", folder / "delta", folder / "out", allow_unproved_base=True, **options)


def remedy_of(folder: Path, **options: Any) -> str:
    """Return the remedy of the error that ends a merge."""
    with pytest.raises(DeltaweightsError) as caught:
        merge(folder, **options)
    assert not (folder / "out").exists()
    return f"{caught.value.problem}; {caught.value.remedy}"


def fused(base: Tensors) -> Tensors:
    """Store three matrices as one, as Phi-3 and vLLM's converters do."""
    rest = {name: each for name, each in base.items() if not any(f".{one}_proj." in name for one in "qkv")}
    for layer in range(2):
        parts = [base[f"model.layers.{layer}.self_attn.{one}_proj.weight"] for one in "qkv"]
        rest[f"model.layers.{layer}.self_attn.qkv_proj.weight"] = torch.cat(parts)
    return rest


def gpt2(_base: Tensors) -> Tensors:
    """Return weights with the names of GPT-2."""
    ends = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "ln_1.weight")
    return {f"transformer.h.{layer}.{end}": torch.zeros(4, 4).half() for layer in range(12) for end in ends}


def headless(base: Tensors) -> Tensors:
    """Return what ``LlamaModel.save_pretrained`` writes: no head, and names without their prefix."""
    return {name.removeprefix("model."): each for name, each in base.items() if name != "lm_head.weight"}


FORMS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "fused": (fused, "use it as transformers saves a LLaMA"),
    "gpt2": (gpt2, "use the model that the delta was made for"),
    "headless": (headless, "use the full checkpoint"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_base_in_another_form(tmp_path: Path, form: str) -> None:
    """The base that is meant, in the form that is named, merges."""
    change, says = FORMS[form]
    save(DELTA, tmp_path / "delta")
    save(change(BASE), tmp_path / "base", config=False)
    assert says in remedy_of(tmp_path)
    shutil.rmtree(tmp_path / "base")
    save(BASE, tmp_path / "base")
    merge(tmp_path)
    assert verify(tmp_path / "out").ok


def test_a_damaged_manifest_of_a_delta(tmp_path: Path) -> None:
    """``verify`` finds it; with the dtype in which the delta was made, it is added all the same."""
    target = {name: (each.float() + torch.randn(each.shape) * 1e-3).half() for name, each in BASE.items()}
    save(BASE, tmp_path / "base")
    save(target, tmp_path / "target")
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    manifest = tmp_path / "delta" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"version":1', b'"version":[]').replace(b'"version": 1', b'"version": []'))
    assert "fetch it again, or give --compute-dtype, the dtype in which the delta was made" in remedy_of(tmp_path)
    assert [problem.file for problem in verify(tmp_path / "delta").problems] == ["manifest.json"]
    first = merge(tmp_path, compute_dtype="float16").content_digest
    manifest.write_bytes(whole)
    shutil.rmtree(tmp_path / "out")
    assert merge(tmp_path).content_digest == first


def test_a_projector_alone(tmp_path: Path) -> None:
    """Beside the weights that it belongs to, it is a part of the delta."""
    save(BASE, tmp_path / "base")
    projector = {name: each for name, each in DELTA.items() if "mm_projector" in name}
    (tmp_path / "delta").mkdir()
    torch.save(projector, tmp_path / "delta" / "mm_projector.bin")
    (tmp_path / "delta" / "config.json").write_text("{}")
    assert "copy mm_projector.bin beside the weights that it belongs to, and give their folder" in remedy_of(tmp_path)
    shutil.move(tmp_path / "delta", tmp_path / "alone")
    save({name: each for name, each in DELTA.items() if name not in projector}, tmp_path / "delta")
    shutil.copy(tmp_path / "alone" / "mm_projector.bin", tmp_path / "delta")
    assert merge(tmp_path).fates["copy"] == len(projector)


def test_an_arithmetic_that_is_not_known(tmp_path: Path, run: Run) -> None:
    """Sums in float16 of a delta that was made in float32 prove nothing; with --compute-dtype they do."""
    base = torch.randn(400, 400).half() * 0.02
    tuned = base.float() + torch.randn(400, 400) * 0.0004
    for name, tensor in (("base", base), ("delta", tuned - base.float())):
        save({"w": tensor}, tmp_path / name, "safetensors", 1)
    line = ("check-base", "--base", tmp_path / "base", "--delta", tmp_path / "delta")
    done = run(*line)
    assert done.returncode == 6
    assert "try --compute-dtype, if you know in which arithmetic the delta was computed" in done.stderr
    assert run(*line, "--compute-dtype", "float32").returncode == 0


def test_a_manifest_that_is_none(tmp_path: Path, run: Run) -> None:
    """The weights are compared, and ``verify`` says what is wrong, as the note says."""
    tensors = base_tensors(1)
    save(tensors, tmp_path / "base")
    save(delta_tensors(tensors), tmp_path / "delta")
    for name in ("one", "other"):
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / name)
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 77', 1))
    done = run("diff", tmp_path / "one", tmp_path / "other", "--trust-manifests")
    assert done.returncode == 0
    assert "deltaweights verify says what is wrong with the folder" in done.stderr
    done = run("verify", tmp_path / "other")
    assert done.returncode != 0
    assert "version 77" in done.stdout + done.stderr
