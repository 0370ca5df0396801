"""What makes a benchmark's delta a LLaVA: a random vision tower in CLIP's shapes, a tokenizer, and the keys of config.json.

Enters: the folder of a base and a delta with a projector. Leaves: files there, made once. Never: real weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from deltaweights.export.sizes import VisionSizes

TOWER, TOY = VisionSizes(1024, 4096, 24, 224, 14), VisionSizes(1024, 64, 1, 28, 14)
"""CLIP ViT-L/14, 1.2 GB in float32; and one whose features are as wide, for toys."""

NEW = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")


def make(folder: Path, vocabulary: int, *, toy: bool) -> None:
    """Write ``clip`` under ``folder``, and beside the delta's weights what ``--layout transformers`` needs."""
    if not (folder / "clip" / "config.json").exists():
        _tower(folder / "clip", TOY if toy else TOWER)
    config = json.loads((folder / "delta" / "config.json").read_text())
    seeing = {"model_type": "llava", "mm_vision_select_layer": -2, "mm_use_im_start_end": True}
    (folder / "delta" / "config.json").write_text(json.dumps(config | seeing))
    pieces = ["<unk>", "<s>", "</s>", *(f"piece{number}" for number in range(3, vocabulary))]
    added = [
        {"id": vocabulary + place, "content": token, "single_word": False, "lstrip": True, "rstrip": True}
        | {"normalized": False, "special": True}
        for place, token in enumerate(NEW)
    ]
    model = {"type": "WordLevel", "vocab": {piece: number for number, piece in enumerate(pieces)}, "unk_token": "<unk>"}
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    document = {"version": "1.0", **nothing, "added_tokens": added, "model": model}
    (folder / "delta" / "tokenizer.json").write_text(json.dumps(document))


def _tower(folder: Path, sizes: VisionSizes) -> None:
    import torch  # noqa: PLC0415  (so that --help is quick)
    from safetensors.torch import save_file  # noqa: PLC0415

    generator = torch.Generator().manual_seed(2)
    tensors = {name: torch.empty(shape).normal_(0, 0.02, generator=generator) for name, shape in sizes.tensors()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vision = {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": 16,
        "image_size": sizes.image,
        "patch_size": sizes.patch,
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
