"""Stored names are found from those of transformers."""

from __future__ import annotations

from deltaweights.inference.tensor_names import StoredNames


def test_stored_names_are_found_from_the_librarys() -> None:
    """The name with the longest end in common is meant, then the one with most parts in common, else the name itself."""
    names = StoredNames(
        [
            "language_model.model.layers.0.self_attn.q_proj.weight",
            "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "language_model.lm_head.weight",
        ]
    )
    assert names.of("model.language_model.layers.0.self_attn.q_proj.weight").startswith("language_model.")
    assert names.of("model.vision_tower.encoder.layers.0.self_attn.q_proj.weight").startswith("vision_tower.")
    assert names.of("lm_head.weight") == "language_model.lm_head.weight"
    assert names.of("something.else") == "something.else"
