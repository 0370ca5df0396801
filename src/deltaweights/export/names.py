"""How tensors are named in the two layouts: one table, read in both directions.

Enters: a tensor's name. Leaves: its name in the other layout, or None. Never: two names for one tensor, or one for two.

*original* names are those of the LLaVA code of 2023, and of CLIP's own checkpoints; *transformers* names are those that the
``llava-hf`` repositories have on the Hub, which every transformers from 4.36 on reads (5.x renames them once more in memory).
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
"""Original name and transformers name; what stands in braces is the same in both. No two rows fit one name."""

FIELDS = {"number": "[0-9]+", "parameter": "weight|bias", "rest": r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*"}
"""What may stand in place of each word in braces."""

IDENTITY, ZEROS = "multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias"
"""Tensors that only the transformers layout has: its projector ends with a second linear layer, which so changes nothing."""


def _pattern(template: str) -> re.Pattern[str]:
    fields = {name: f"(?P<{name}>{pattern})" for name, pattern in FIELDS.items()}
    return re.compile(template.replace(".", r"\.").format(**fields))


_TO_TRANSFORMERS = tuple((_pattern(original), other) for original, other in TABLE)
_TO_ORIGINAL = tuple((_pattern(other), original) for original, other in TABLE)


def transformers_name(original: str) -> str | None:
    """Return the name in the transformers layout; None when the tensor has no place there."""
    return _mapped(original, _TO_TRANSFORMERS)


def original_name(other: str) -> str | None:
    """Return the original name of a tensor of the transformers layout; None when it has none."""
    return _mapped(other, _TO_ORIGINAL)


def _mapped(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, template in table:
        found = pattern.fullmatch(name)
        if found:
            return template.format(**found.groupdict())
    return None
