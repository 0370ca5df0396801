"""Images: whether processor, configuration and vision tower agree on their place in a prompt.

Enters: the library's processor and configuration. Leaves: findings. Never: weights; the only image is a black one made here.
"""

from __future__ import annotations

from typing import Any

from deltaweights.inference.findings import Findings
from deltaweights.inference.folder import CONFIG
from deltaweights.inference.loading import Refusal, refusals

DOCUMENT = "processor_config.json"

CLIP = "clip_vision_model"


def check_images(processor: Any, config: Any, found: Findings) -> None:
    """Check which layer features come from, the image token's id, and how many of them stand for one image."""
    _check_layer(config, found)
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str):
        found.problem(DOCUMENT, "names no image_token")
        return
    try:
        with refusals():
            known = processor.tokenizer.get_vocab().get(token)
            pieces = list(processor.tokenizer.encode(token, add_special_tokens=False))
    except Refusal as refusal:
        found.problem(DOCUMENT, "the tokenizer does not take image_token", found=refusal)
        return
    if known is None or pieces != [known]:
        found.problem(DOCUMENT, "image_token is not a token of the tokenizer", found=f"{token}, which becomes {pieces}")
        return
    configured = getattr(config, "image_token_id", None)
    configured = getattr(config, "image_token_index", None) if configured is None else configured
    if configured != known:
        found.problem(
            CONFIG, "image_token_index is not the processor's", found=configured, expected=f"{known} ({token})"
        )
    _check_count(processor, config, token, known, found)


def _check_layer(config: Any, found: Findings) -> None:
    """Check that the vision tower has the layers whose features are taken; 0 is what enters the first one."""
    layer = getattr(config, "vision_feature_layer", None)
    layers = getattr(config.vision_config, "num_hidden_layers", None)
    if layer is None or not isinstance(layers, int):
        return
    several = layer if isinstance(layer, (list, tuple)) and layer else [layer]
    if any(type(number) is not int or not -layers - 1 <= number <= layers for number in several):
        due = f"{-layers - 1} to {layers}, as many as the vision tower has"
        found.problem(CONFIG, "vision_feature_layer is no layer", found=layer, expected=due)


def _check_count(processor: Any, config: Any, token: str, number: int, found: Findings) -> None:
    try:
        inserted = tokens_per_image(processor, token, number)
    except Refusal as refusal:
        found.problem(DOCUMENT, "does not take an image", found=refusal)
        return
    given = features_per_image(config)
    if given is not None and inserted != given:
        due = f"{given}, as many features as the vision tower gives"
        found.problem(DOCUMENT, "inserts another number of image tokens", found=inserted, expected=due)
    length, expected = getattr(config, "image_seq_length", None), inserted if given is None else given
    if length is not None and length != expected:
        found.problem(
            CONFIG, "image_seq_length is not the number of an image's tokens", found=length, expected=expected
        )


def tokens_per_image(processor: Any, token: str, number: int) -> int:
    """Return how many image tokens, whose id is ``number``, the processor puts in place of one. Raises ``Refusal``."""
    with refusals():
        from PIL import Image  # noqa: PLC0415  (only where there are images)

        row: Any = processor(text=[token], images=[Image.new("RGB", (32, 32))], return_tensors="np")["input_ids"][0]
        return len([each for each in row if int(each) == number])


def features_per_image(config: Any) -> int | None:
    """Return how many features a CLIP tower gives: its patches, and its class token unless it is cut off; None for another."""
    tower = getattr(config, "vision_config", None)
    width, patch = (getattr(tower, name, None) for name in ("image_size", "patch_size"))
    if getattr(tower, "model_type", None) != CLIP or not isinstance(width, int) or not isinstance(patch, int):
        return None
    cut = getattr(config, "vision_feature_select_strategy", "default") == "default"
    return int((width // patch) ** 2) + (0 if cut else 1)
