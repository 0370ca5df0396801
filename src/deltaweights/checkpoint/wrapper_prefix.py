"""The prefix that a wrapper of the model put before every name: DataParallel's ``module.``, ``torch.compile``'s ``_orig_mod.``."""

from __future__ import annotations

from collections.abc import Iterable

from deltaweights.checkpoint.projector import NAMES as PROJECTOR

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "base_model.model.")
"""torch's DataParallel and DDP, torch.compile, FSDP; Lightning's Fabric; PEFT. No model of transformers has such a name."""

ATTRIBUTE, HELD = "model.", ("model.", "lm_head.")
"""What Lightning's modules put before every name where they hold the model as ``self.model``, and what must then follow it."""


def wrapper_prefix(names: Iterable[str]) -> str:
    """Return what wrappers put before every one of ``names``, empty where they did not; several may be nested.

    A projector, which may be of a file of its own, need not have the prefix, unless it is there with and without.
    """
    every = set(names)
    rest = [name for name in every if name not in PROJECTOR]
    prefix = ""
    while rest:
        found = next((wrapper for wrapper in WRAPPERS if rest[0].startswith(prefix + wrapper)), None)
        if found is None or not all(name.startswith(prefix + found) for name in rest):
            break
        prefix += found
    held = tuple(prefix + ATTRIBUTE + name for name in HELD)
    if rest and all(name.startswith(held) for name in rest):
        prefix += ATTRIBUTE
    return "" if prefix and any(prefix + name in every for name in PROJECTOR if name in every) else prefix
