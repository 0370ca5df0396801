"""Pairs whose base is right, wrong, damaged or has holes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from deltaweights.manifest.tally import Proof
from tests.support.float_bits import DTYPES, FLOAT_NAMES, bits, expected_proof, words_of
from tests.support.merging import recipe_file, save_pair, small_base
from tests.support.pairs import Tensors, base_tensors, delta_tensors


def proof_of_pair(base: Tensors, delta: Tensors, dtype: str) -> dict[str, Proof]:
    """Return the proof, as defined, of each tensor that is added, cast to ``dtype`` first."""
    found = {}
    for name, primary in delta.items():
        if name in base and not name.endswith("inv_freq"):
            part = primary[tuple(slice(size) for size in base[name].shape)] if primary.ndim else primary
            words = [words_of(tensor.to(DTYPES[FLOAT_NAMES[dtype]])) for tensor in (base[name], part)]
            found[name] = expected_proof(words[0], words[1], dtype)
    return found


STD, TUNING = 0.02, 0.0004
"""Of the weights, and of a fine-tuning step of 2 %."""

DAMAGED = "a few weights of base or delta are damaged, or were edited"

ROUNDED = "the base is a rounded copy (through bfloat16, say) or a lightly tuned sibling of the right one"

SIBLING = "the base is a sibling of the right one, fine-tuned from it, such as Vicuna for LLaMA"

UNRELATED = "the base is an unrelated model of the same shape, such as LLaMA-2 for LLaMA-1"

OTHER_ARITHMETIC = "the delta was computed in another arithmetic than it was added in"

MOVED = Proof(weights=200_000, region=198_000, violations=0, evidence=150_000)
"""Enough to prove a base, unless other tensors are untested."""

UNLIKE = Proof(weights=4096, region=10, violations=0, evidence=10)
"""The counts of a base tensor of zeros: untested."""


def moved(count: int) -> tuple[Tensors, Tensors]:
    """Return a pair of 120,000 weights of which ``count`` move, each by one place."""
    base = (torch.rand(300, 400, generator=torch.Generator().manual_seed(1)) + 0.5).half()
    target = bits(base).clone()
    target.view(-1)[:count] += 1
    return {"w": base}, {"w": target.view(torch.float16) - base}


def missed_by_samples() -> tuple[Tensors, Tensors]:
    """Return a pair of two tensors with one weight that does not come back, where no sample is taken."""
    generator = torch.Generator().manual_seed(4)
    base = {name: (torch.randn(300, 400, generator=generator) * STD).half() for name in "vw"}
    delta = {
        name: (tensor.float() + torch.randn(tensor.shape, generator=generator) * TUNING).half() - tensor
        for name, tensor in base.items()
    }
    base["w"][0, 0], delta["w"][0, 0] = (
        STD,
        1e-7,
    )  # less than half a place of its base: the sum stays, the delta is gone
    return base, delta


def wrong_pair(folder: Path) -> tuple[Tensors, Tensors]:
    """Save a small pair whose base is a sibling of the right one; return its tensors."""
    right, wrong = small_base(), small_base(seed=5)
    delta = delta_tensors(right)
    base = {name: wrong[name] if tensor.ndim == 2 else tensor for name, tensor in right.items()}
    save_pair(folder, base, delta)
    return base, delta


def other_arithmetic(folder: Path) -> Path:
    """Save a pair whose delta was computed in float32; return a recipe that states float16."""
    generator = torch.Generator().manual_seed(3)
    base = (torch.randn(100, 200, generator=generator) * STD).half()
    delta = (torch.randn(100, 200, generator=generator) * TUNING).half()
    save_pair(folder, {"w": base}, {"w": delta})
    return recipe_file(folder)


def zeros(tensor: torch.Tensor) -> torch.Tensor:
    """Return zeros of the same shape."""
    return torch.zeros_like(tensor)


def noise(tensor: torch.Tensor) -> torch.Tensor:
    """Return small random numbers of the same shape."""
    return (torch.randn(tensor.shape, generator=torch.Generator().manual_seed(8)) * 1e-6).to(tensor.dtype)


HOLES = {"zeros": zeros, "noise": noise}


def holed_pair(folder: Path, fill: Callable[[torch.Tensor], torch.Tensor]) -> tuple[str, ...]:
    """Save a pair whose base lost layers 1 and 3 of four; return the names of their matrices, in natural order."""
    right = base_tensors(4, 320, 64)
    lost = [name for name, tensor in right.items() if tensor.ndim == 2 and name.startswith(LOST)]
    save_pair(folder, right | {name: fill(right[name]) for name in lost}, delta_tensors(right))
    return tuple(sorted(lost))


LOST = ("model.layers.1.", "model.layers.3.")
