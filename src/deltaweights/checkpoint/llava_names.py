"""How the tensors of a LLaVA are named in the original layout and in those of transformers.

*Original* names are those of the LLaVA code of 2023, and of CLIP's own checkpoints. *Transformers* names are those of the
``llava-hf`` repositories on the Hub, which transformers reads from 4.36 on. Later versions have other names in memory, and some of
them on disk; ``SINCE_4_52`` and ``SINCE_5`` lead back to those.
"""

from __future__ import annotations

import re

TABLE = (
    ("lm_head.{rest}", "language_model.lm_head.{rest}"),
    ("model.embed_tokens.{rest}", "language_model.model.embed_tokens.{rest}"),
    ("model.layers.{number}.{rest}", "language_model.model.layers.{number}.{rest}"),
    ("model.norm.{rest}", "language_model.model.norm.{rest}"),
    ("model.mm_projector.{parameter}", "multi_modal_projector.linear_1.{parameter}"),
    ("vision_model.{rest}", "vision_tower.vision_model.{rest}"),
)
"""Original name and transformers name. At most one row matches a name."""

SINCE_4_52 = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.vision_tower.", "vision_tower."),
)
"""How names begin in a model of transformers 4.52 and later, and in the transformers layout."""

SINCE_5 = tuple(
    (f"vision_tower.{part}", f"vision_tower.vision_model.{part}")
    for part in ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
)
"""The same of CLIP's tower in transformers 5, which also saves it so."""

FIELDS = {"number": "[0-9]+", "parameter": "weight|bias", "rest": r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*"}
"""What each word in braces matches."""

IDENTITY, ZEROS = "multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias"
"""Only in the transformers layout, whose projector ends with a second linear layer: here one that changes nothing."""


def _pattern(template: str) -> re.Pattern[str]:
    fields = {name: f"(?P<{name}>{pattern})" for name, pattern in FIELDS.items()}
    return re.compile(template.replace(".", r"\.").format(**fields))


_PATTERNS = tuple((_pattern(original), other) for original, other in TABLE)
_BACK = tuple((_pattern(other), original) for original, other in TABLE)


def transformers_name(original: str) -> str | None:
    """Return a tensor's name in the transformers layout, None when it has none."""
    return _translated(original, _PATTERNS)


def original_name(name: str) -> str | None:
    """Return the original name of a tensor in the transformers layout, None when it has none."""
    return _translated(name, _BACK)


def _translated(name: str, patterns: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    matches = ((pattern.fullmatch(name), template) for pattern, template in patterns)
    return next((template.format(**found.groupdict()) for found, template in matches if found), None)
