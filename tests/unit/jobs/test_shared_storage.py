"""Tensors that share a storage: ties, slices and transposes, and how their elements are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltaweights.jobs.inspect import InspectReport, Total, inspect_checkpoint
from tests.conftest import Run
from tests.support.pairs import Tensors


def torch_file(folder: Path, tensors: Tensors) -> InspectReport:
    """Save tensors with torch, which keeps views, and inspect the file."""
    torch.save(tensors, folder / "pytorch_model.bin")
    return inspect_checkpoint(folder)


def test_tied(run: Run, tmp_path: Path) -> None:
    """Two names of one storage are reported as tied; they count once as parameters, and twice in bytes."""
    embedding = torch.randn(10, 4)
    report = torch_file(
        tmp_path, {"embed.weight": embedding, "norm.weight": torch.ones(4), "lm_head.weight": embedding}
    )
    (shared,) = report.shared
    assert (shared.tied, shared.elements, shared.tensors) == (True, 40, ("embed.weight", "lm_head.weight"))
    assert (report.parameters, report.bytes, report.dtypes["F32"]) == (44, 336, Total(3, 84, 336))
    assert "\nshared storage\n  tied   embed.weight, lm_head.weight (40 elements)\n" in run("inspect", tmp_path).stdout


WHOLE = torch.arange(48).reshape(8, 6)

VIEWS: dict[str, tuple[tuple[torch.Tensor, ...], bool]] = {
    "rows": ((WHOLE[:3], WHOLE[3], WHOLE[4:]), False),
    "columns": ((WHOLE[:, :2], WHOLE[:, 2:]), False),
    "columns-apart": ((WHOLE[:, :2], WHOLE[:, 3:5]), False),
    "gaps-reshaped": ((WHOLE.view(-1)[::3], WHOLE.view(-1)[::3].view(4, 4)), False),
    "transposed": ((WHOLE, WHOLE.t()), False),
    "reshaped": ((WHOLE, WHOLE.reshape(4, 12)), False),
    "whole-and-slice": ((WHOLE, WHOLE[2:5], WHOLE[5]), False),
    "overlapping-rows": ((WHOLE[:5], WHOLE[3:7]), False),
    "tied-slices": ((WHOLE[2:4], WHOLE[2:4]), True),
    "tied-and-another": ((WHOLE[2:4], WHOLE[2:4], WHOLE[6:]), False),
    "transposed-tied": ((WHOLE.t(), WHOLE.t()), True),
    "every-other": ((WHOLE[::2], WHOLE[::2].t(), WHOLE[1::2]), False),
    "interleaved-axes": ((WHOLE.reshape(4, 2, 6).permute(2, 0, 1), WHOLE[1:3]), False),
    "one-element": ((WHOLE[3, 3], WHOLE[3, 3].reshape(1, 1)), False),
}


@pytest.mark.parametrize(("views", "tied"), VIEWS.values(), ids=VIEWS)
def test_views(tmp_path: Path, views: tuple[torch.Tensor, ...], tied: bool) -> None:
    """Parameters count the elements that any view covers; equal views are tied, others are not."""
    report = torch_file(tmp_path, {f"v{i}": view for i, view in enumerate(views)} | {"own": torch.zeros(2)})
    shown = len({value for view in views for value in view.flatten().tolist()})  # each element holds its own number
    (shared,) = report.shared
    assert (shown, tied, len(views)) == (shared.elements, shared.tied, len(shared.tensors))
    assert shown + 2 == report.parameters


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8), st.booleans()), min_size=1, max_size=6))
def test_any_slices(tmp_path_factory: pytest.TempPathFactory, slices: list[tuple[int, int, bool]]) -> None:
    """Whatever rows of one matrix are saved, plain or transposed, parameters count each element once."""
    rows = [(WHOLE[begin : begin + length], turned) for begin, length, turned in slices]
    views = [view.t() if turned else view for view, turned in rows]
    report = torch_file(tmp_path_factory.mktemp("slices"), {f"v.{i}": view for i, view in enumerate(views)})
    assert len({value for view in views for value in view.flatten().tolist()}) == report.parameters


def test_views_with_gaps(tmp_path: Path) -> None:
    """Views with gaps that overlap in part are counted too high, but not beyond the storage between them."""
    report = torch_file(tmp_path, {"a": WHOLE[:, :3], "b": WHOLE[:, 1:4]})
    assert 8 * 4 <= report.parameters <= 7 * 6 + 4


def test_nothing_shares_nothing(tmp_path: Path) -> None:
    """Empty tensors share no storage, in either container, although they may begin at the same offset."""
    empty = torch.empty(0, 3)
    assert torch_file(tmp_path, {"a": empty, "b": empty, "c": torch.ones(2)}).shared == ()
    save_file({"a": torch.empty(0, 3), "b": torch.empty(3, 0), "c": torch.ones(2)}, tmp_path / "w.safetensors")
    report = inspect_checkpoint(tmp_path / "w.safetensors")
    assert (report.shared, report.parameters, len(report.tensors)) == ((), 2, 3)


def test_shared_buffer(tmp_path: Path) -> None:
    """Buffers are not parameters, shared or not; a weight on the storage of a buffer is one."""
    one = torch.ones(6)
    names = [f"layers.{i}.rotary_emb.inv_freq" for i in range(3)]
    report = torch_file(tmp_path, dict.fromkeys(names, one) | {"w": one[:2]})
    assert (report.parameters, report.buffers) == (2, Total(3, 18, 72))
    (shared,) = report.shared
    assert (shared.tied, shared.elements, shared.tensors) == (False, 6, (*names, "w"))
