"""Checks that processor, configuration and vision tower agree on an image's tokens."""

from __future__ import annotations

from typing import Any

from deltaweights.inference.findings import CheckFindings
from deltaweights.inference.model_folder import CONFIG, PROCESSOR_CONFIG
from deltaweights.inference.transformers_loader import LibraryError, library_errors

CLIP = "clip_vision_model"


def check_images(processor: Any, config: Any, findings: CheckFindings) -> None:
    """Check the layer that features are taken from, the image token's id, and the number of image tokens."""
    _check_layer(config, findings)
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str):
        findings.problem(PROCESSOR_CONFIG, "names no image_token")
        return
    try:
        with library_errors():
            known = processor.tokenizer.get_vocab().get(token)
            pieces = list(processor.tokenizer.encode(token, add_special_tokens=False))
    except LibraryError as error:
        findings.problem(PROCESSOR_CONFIG, "the tokenizer cannot encode image_token", found=error)
        return
    if known is None or pieces != [known]:
        found = f"{token}, encoded as {pieces}"
        findings.problem(PROCESSOR_CONFIG, "image_token is not a token of the tokenizer", found=found)
        return
    configured = getattr(config, "image_token_id", None)
    configured = getattr(config, "image_token_index", None) if configured is None else configured
    if configured != known:
        due = f"{known} ({token})"
        findings.problem(CONFIG, "image_token_index is not the processor's", found=configured, expected=due)
    _check_token_count(processor, config, known, findings)


def _check_layer(config: Any, findings: CheckFindings) -> None:
    """Check that the vision tower has the layers that features are taken from; 0 is the first layer's input."""
    layer = getattr(config, "vision_feature_layer", None)
    count = getattr(config.vision_config, "num_hidden_layers", None)
    if layer is None or not isinstance(count, int):
        return
    layers = layer if isinstance(layer, (list, tuple)) and layer else [layer]
    if any(type(number) is not int or not -count - 1 <= number <= count for number in layers):
        due = f"{-count - 1} to {count}, the layers of the vision tower"
        findings.problem(CONFIG, "vision_feature_layer does not exist", found=layer, expected=due)


def _check_token_count(processor: Any, config: Any, token_id: int, findings: CheckFindings) -> None:
    try:
        with library_errors():
            from PIL import Image  # noqa: PLC0415  (only for models with vision)

            image = Image.new("RGB", (32, 32))
            batch: Any = processor(text=[processor.image_token], images=[image], return_tensors="np")
            inserted = [int(number) for number in batch["input_ids"][0]].count(token_id)
    except LibraryError as error:
        findings.problem(PROCESSOR_CONFIG, "the processor fails on an image", found=error)
        return
    features = features_per_image(config)
    if features is not None and inserted != features:
        due = f"{features}, the features of the vision tower"
        findings.problem(PROCESSOR_CONFIG, "inserts a wrong number of image tokens", found=inserted, expected=due)
    length, expected = getattr(config, "image_seq_length", None), inserted if features is None else features
    if length is not None and length != expected:
        problem = "image_seq_length is not the number of an image's tokens"
        findings.problem(CONFIG, problem, found=length, expected=expected)


def features_per_image(config: Any) -> int | None:
    """Return how many features a CLIP tower gives: its patches, and its class token unless that is cut off; None for others."""
    tower = getattr(config, "vision_config", None)
    width, patch = (getattr(tower, name, None) for name in ("image_size", "patch_size"))
    if getattr(tower, "model_type", None) != CLIP or not isinstance(width, int) or not isinstance(patch, int):
        return None
    patches = (width // patch) ** 2
    return patches if getattr(config, "vision_feature_select_strategy", "default") == "default" else patches + 1
