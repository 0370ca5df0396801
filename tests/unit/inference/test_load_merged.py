"""A merged model of transformers that was never on the disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from deltaweights import apply_delta, load_merged, make_delta
from deltaweights.errors import Mismatch
from tests.support.limits import PATIENCE
from tests.support.tiny_llava import edit_tensors, make_llama


def pair(folder: Path) -> tuple[Path, Path]:
    """Make a plain LLaMA, and the delta of another one."""
    base, tuned = make_llama(folder / "base"), make_llama(folder / "tuned")
    edit_tensors(tuned, lambda tensors: tensors.update({name: t + 0.001 for name, t in tensors.items()}))
    return base, Path(make_delta(base, tuned, folder / "delta", compute_dtype="float32").delta)


def test_it_is_the_model_that_apply_would_have_written(tmp_path: Path) -> None:
    """Weights and logits are bit for bit those of the checkpoint; nothing is left on the disk."""
    where = pair(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    model = load_merged(*where)
    assert sorted(tmp_path.rglob("*")) == before
    written = Path(apply_delta(*where, tmp_path / "out", layout="transformers").target)
    loader: Any = AutoModelForCausalLM
    other = loader.from_pretrained(written)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, other(ids).logits)
    state = model.state_dict()
    assert state.keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_stored_dtype_is_the_models(tmp_path: Path, dtype: str) -> None:
    """``dtype`` is that of the parameters."""
    model = load_merged(*pair(tmp_path), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_a_wrong_base_gives_no_model(tmp_path: Path) -> None:
    """The base is judged before a model is made."""
    base, delta = pair(tmp_path)
    edit_tensors(base, lambda tensors: tensors.update({name: t * 1.01 for name, t in tensors.items()}))
    (base / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(Mismatch):
        load_merged(base, delta)


def test_without_transformers_it_says_what_to_install(tmp_path: Path) -> None:
    """One line names the extra, before anything is read."""
    program = """
import sys
sys.modules["transformers"] = None
from deltaweights import DeltaweightsError, load_merged
try:
    load_merged("nothing", "nowhere")
except DeltaweightsError as error:
    print(error.code, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout.startswith("E-MISSING-PACKAGE load_merged needs transformers")
    assert "pip install 'deltaweights[transformers]'" in done.stdout
