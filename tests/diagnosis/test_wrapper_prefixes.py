"""Pairs of which one was saved with the prefix of a wrapper before every name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from deltaweights.checkpoint.wrapper_prefix import wrapper_prefix
from deltaweights.errors import Mismatch
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.verify import verify
from tests.support.errors import refused
from tests.support.merging import merge_and_load
from tests.support.pairs import Tensors, base_tensors, delta_tensors, load, reference, same_bits, save
from tests.support.prepared import prepare_merge
from tests.support.reports import RecordingReport

pytestmark = pytest.mark.diagnosis


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def inputs_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_bytes())["inputs"]


def test_the_prefixes_are_those_of_the_wrappers() -> None:
    """What torch's own wrappers put before the names of a state is what is recognised, nested, too."""
    layer = nn.Linear(2, 2)
    assert wrapper_prefix(DataParallel(layer).state_dict()) == "module."
    compiled: nn.Module = torch.compile(layer)  # type: ignore[assignment]  # a module, where one is given
    assert wrapper_prefix(compiled.state_dict()) == "_orig_mod."
    assert wrapper_prefix(DataParallel(compiled).state_dict()) == "module._orig_mod."
    assert wrapper_prefix(layer.state_dict()) == wrapper_prefix([]) == ""
    assert wrapper_prefix(["module.a", "b"]) == wrapper_prefix(["modules.a"]) == ""


PREFIXES = (
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_fsdp_wrapped_module.",
    "_forward_module.",
    "base_model.model.",
)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("container", ["torch", "safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_base_with_a_prefix_gives_the_same_result(tmp_path: Path, prefix: str, container: str) -> None:
    """Its tensors are added by their names in the model, and the manifest has the names on disk, by which it verifies."""
    base = base_tensors()
    delta = delta_tensors(base)
    save(under(prefix, base), tmp_path / "base", container)
    save(delta, tmp_path / "delta", container)
    report = RecordingReport()
    merged = merge_and_load(tmp_path, report=report)
    assert same_bits(merged.tensors, reference(base, delta))
    assert verify(merged.folder).ok
    assert [note for note in report.notes if f"all names begin with {prefix}" in note]
    assert report.warnings == []
    found = inputs_of(merged.folder)
    assert found["base"]["prefix"] == prefix
    assert "prefix" not in found["delta"]
    rows = json.loads((merged.folder / "manifest.json").read_bytes())["result"]["tensors"]
    added = [name for name in rows if rows[name]["fate"].startswith("add")]
    assert {rows[name]["base"] for name in added} == set(found["base"]["tensors"])
    assert all(rows[name]["base"] == prefix + name for name in added)


@pytest.mark.parametrize("of", ["delta", "both"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_delta_with_a_prefix_keeps_its_names(tmp_path: Path, prefix: str, of: str) -> None:
    """Embedding, head and projector have their rules, the result has the delta's names, and a warning says so."""
    base = base_tensors()
    delta = delta_tensors(base)
    save(under(prefix, base) if of == "both" else base, tmp_path / "base")
    save(under(prefix, delta), tmp_path / "delta")
    report = RecordingReport()
    merged = merge_and_load(tmp_path, report=report)
    assert same_bits(merged.tensors, under(prefix, reference(base, delta)))
    assert verify(merged.folder).ok
    assert inputs_of(merged.folder)["delta"]["prefix"] == prefix
    (warning,) = report.warnings
    assert f"all names begin with {prefix}, and so do the result's" in warning


def test_a_projector_of_a_file_of_its_own_has_no_prefix(tmp_path: Path) -> None:
    """LLaVA's mm_projector.bin lies beside a delta that was saved from a wrapper."""
    base = base_tensors()
    delta = delta_tensors(base)
    projector = {name: delta.pop(name) for name in list(delta) if "mm_projector" in name}
    save(base, tmp_path / "base")
    save(under("module.", delta), tmp_path / "delta")
    torch.save(projector, tmp_path / "delta" / "mm_projector.bin")
    merged = merge_and_load(tmp_path)
    assert same_bits(merged.tensors, under("module.", reference(base, delta)) | projector)


def test_a_target_with_a_prefix_comes_back(tmp_path: Path) -> None:
    """A delta that is made of a wrapped target, on a base without a prefix, gives the target, under its names."""
    base = base_tensors(dtype=torch.float32)
    target = reference(base, delta_tensors(base, dtype=torch.float32), torch.float32)
    save(base, tmp_path / "base")
    save(under("module.", target), tmp_path / "target")
    options: dict[str, Any] = {"compute_dtype": "float32", "dtype": "float32"}
    made = make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta", **options)
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "back", **options)
    back = load(tmp_path / "back")
    assert back.keys() == {f"module.{name}" for name in target}
    assert made.fates["subtract"] == sum(name in base for name in target) - 2
    assert all(torch.allclose(back[f"module.{name}"], tensor) for name, tensor in target.items())


def test_the_identity_of_the_staging_tells_prefixes_apart(tmp_path: Path) -> None:
    """The plan of a pair with a prefix is another one than that of the same pair without."""
    base = base_tensors()
    save(base, tmp_path / "base")
    save(under("module.", base), tmp_path / "wrapped")
    save(delta_tensors(base), tmp_path / "delta")
    identities = set()
    for name in ("base", "wrapped"):
        with prepare_merge(tmp_path / name, tmp_path / "delta", tmp_path / "out") as prepared:
            identities.add(prepared.plan.identity)
    assert len(identities) == 2


def test_the_base_is_proved_and_refused_as_without_a_prefix(tmp_path: Path) -> None:
    """check-base proves it; a delta that is the base itself is refused although the names differ."""
    base = base_tensors()
    delta = delta_tensors(base)
    wrapped = save(under("module.", base), tmp_path / "wrapped")
    assert (
        check_base(wrapped, save(delta, tmp_path / "delta")).proof
        == check_base(save(base, tmp_path / "base"), tmp_path / "delta").proof
    )
    with refused(Mismatch, problem="base and delta hold the same weights, as far as samples tell"):
        apply_delta(wrapped, tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_of_the_names_is_not_enough(tmp_path: Path) -> None:
    """Where only some names have the prefix, nothing is guessed: the refusal names it, and not the base's model."""
    base = base_tensors()
    mixed = {name if "norm" in name else f"module.{name}": tensor for name, tensor in base.items()}
    save(mixed, tmp_path / "base")
    save(delta_tensors(base), tmp_path / "delta")
    with refused(Mismatch) as caught:
        apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert "saved from inside a wrapper: some names hold module." in str(caught.value)
    assert "LLaMA-1" not in str(caught.value)
