"""How tensors are named in the two layouts.

*Original* names are those of the LLaVA code of 2023, and of CLIP's own checkpoints. *Transformers* names are those of the
``llava-hf`` repositories on the Hub, which transformers reads from 4.36 on (5.x renames them once more in memory).
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

FIELDS = {"number": "[0-9]+", "parameter": "weight|bias", "rest": r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*"}
"""What each word in braces matches."""

IDENTITY, ZEROS = "multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias"
"""Only in the transformers layout, whose projector ends with a second linear layer: here one that changes nothing."""


def _pattern(template: str) -> re.Pattern[str]:
    fields = {name: f"(?P<{name}>{pattern})" for name, pattern in FIELDS.items()}
    return re.compile(template.replace(".", r"\.").format(**fields))


_PATTERNS = tuple((_pattern(original), other) for original, other in TABLE)


def transformers_name(original: str) -> str | None:
    """Return a tensor's name in the transformers layout, None when it has none."""
    matches = ((pattern.fullmatch(original), template) for pattern, template in _PATTERNS)
    return next((template.format(**found.groupdict()) for found, template in matches if found), None)
