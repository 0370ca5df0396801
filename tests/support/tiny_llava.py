"""Tiny real models in the form that current transformers loads, made by transformers' own classes.

Enters: a folder. Leaves: a LLaVA (CLIP tower, projector, LLaMA) with processor, tokenizer and chat template, or a plain LLaMA; or a
LLaVA as the code of 2023 saved it. Never: our own code, so that what is checked here was not made by what checks it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

Tensors = dict[str, torch.Tensor]

ADDED = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
"""Tokens that LLaVA-Med adds to LLaMA's, in the order of their ids."""

HIDDEN, FEATURES, LAYERS = 32, 24, 2

IMAGE_SIZE, PATCH = 28, 14

PATCHES = (IMAGE_SIZE // PATCH) ** 2

SAYS = "AB#"
"""An answer for ``make_llava`` and ``make_llama``: "AB", and then "#" again and again, three of which are a stop string."""

TEMPLATE = """\
{%- set form = conv_mode | default('simple') -%}
{%- if form not in ['simple', 'short'] -%}{{ raise_exception('no conversation ' + form) }}{%- endif -%}
{%- if form == 'simple' -%}{{ 'A chat.###' }}{%- endif -%}
{%- for message in messages -%}
{{ 'Human: ' if message.role == 'user' else 'Assistant: ' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- for part in message.content if part.type == 'image' -%}{{ '\\n<im_start><im_patch><im_end>' }}{%- endfor -%}
{%- endif -%}{{ '###' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"""
"""A conversation as LLaVA-Med has it: images after the question, ``###`` after each turn."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes and some merges, with LLaMA's special tokens first and LLaVA-Med's last."""
    special = ["<unk>", "<s>", "</s>"]
    made = Tokenizer(models.BPE(unk_token=special[0]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["What is shown in this image?", "A chat. Human Assistant"],
        trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    maker: Any = PreTrainedTokenizerFast
    special_names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), (*special, ADDED[0]), strict=True))
    return cast(PreTrainedTokenizerFast, maker(tokenizer_object=made, **special_names))


def id_of(token: str) -> int:
    """Return the id of a token of the tiny tokenizer."""
    return int(tokenizer().get_vocab()[token])


def text_config(rows: int) -> LlamaConfig:
    """Return the configuration of the tiny language model, with the tokenizer's ids."""
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN - 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=rows - 4,
    )


def says(tensors: Tensors, text: str, prefix: str = "") -> None:
    """Make a language model answer whatever it is asked with ``text``, whose characters differ but for the last, over and over.

    Each character of the text has an axis of its own, large in its embedding; all other tokens share one. The output has, by the
    same axes, the character that follows.
    """
    embeddings, output = (tensors[f"{prefix}{name}"] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    ids = [id_of(character) for character in text]
    embeddings[:, : len(text) + 1] = 0
    output.zero_()
    embeddings[:, len(text)] = 10
    output[ids[0], len(text)] = 10
    for axis, number in enumerate(ids):
        embeddings[number, len(text)] = 0
        embeddings[number, axis] = 10
        output[ids[min(axis + 1, len(ids) - 1)], axis] = 10


def make_llava(folder: Path, dtype: torch.dtype = torch.float32, answer: str | None = None) -> Path:
    """Save a tiny LLaVA under the names of the ``llava-hf`` repositories, two shards; without an ``answer``, of random weights."""
    torch.manual_seed(0)
    tokens = tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=FEATURES,
        intermediate_size=2 * FEATURES,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=16,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text_config(len(tokens)).to_dict(),
        image_token_index=id_of("<im_patch>"),
        image_seq_length=PATCHES,
        projector_hidden_act="linear",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        architectures=["LlavaForConditionalGeneration"],
        tie_word_embeddings=False,
    )
    config.dtype = dtype
    model = LlavaForConditionalGeneration(config)
    tensors = {stored_name(name): tensor.to(dtype).clone() for name, tensor in model.state_dict().items()}
    if answer is not None:
        says(tensors, answer, "language_model.")
    folder.mkdir(parents=True, exist_ok=True)
    save(tensors, folder, shards=2)
    config.save_pretrained(folder)
    _save_texts(tokens, folder, processor=True)
    return folder


def stored_name(name: str) -> str:
    """Return the name that the ``llava-hf`` repositories have for what transformers 5 calls ``name``."""
    for now, stored in {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }.items():
        if name.startswith(now):
            return stored + name.removeprefix(now)
    raise ValueError(name)


def make_llama(folder: Path, answer: str | None = None, *, tied: bool = False) -> Path:
    """Save a tiny plain LLaMA with the same tokenizer, in one file; ``tied`` leaves its output to its embeddings."""
    torch.manual_seed(1)
    tokens = tokenizer()
    config = text_config(len(tokens))
    config.tie_word_embeddings = tied
    config.architectures = ["LlamaForCausalLM"]
    tensors = {name: tensor.clone() for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    if tied:
        del tensors["lm_head.weight"]
    if answer is not None:
        says(tensors, answer)
    folder.mkdir(parents=True, exist_ok=True)
    save(tensors, folder)
    config.save_pretrained(folder)
    _save_texts(tokens, folder, processor=False)
    return folder


def make_images(folder: Path) -> tuple[Path, Path]:
    """Make two images that differ, one of them with a palette and wider than high."""
    one, other = folder / "one.png", folder / "other.gif"
    Image.radial_gradient("L").convert("RGB").save(one)
    Image.linear_gradient("L").resize((60, 40)).convert("P").save(other)
    return one, other


def make_original(folder: Path, container: str = "safetensors") -> Path:
    """Save a tiny LLaVA as the code of 2023 did: a flat configuration with the published ids, and one linear projector."""
    torch.manual_seed(2)
    tokens = tokenizer()
    tensors = {name: tensor.clone() for name, tensor in LlamaForCausalLM(text_config(len(tokens))).state_dict().items()}
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.mm_projector.weight"] = torch.randn(HIDDEN, FEATURES)
    tensors["model.mm_projector.bias"] = torch.randn(HIDDEN)
    folder.mkdir(parents=True, exist_ok=True)
    if container == "safetensors":
        save(tensors, folder)
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "vocab_size": len(tokens),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN - 4,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "hidden_act": "silu",
        "max_sequence_length": 512,
        "rms_norm_eps": 1e-06,
        "torch_dtype": "float16",
        "tie_word_embeddings": False,
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "mm_hidden_size": FEATURES,
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": True,
        "use_mm_proj": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": -1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}')
    _save_tokenizer(tokens, folder)
    return folder


def published_ids() -> list[tuple[str, str, str, str]]:
    """Return file, key, id and the tokenizer's id of the wrong special ids in ``make_original``'s documents."""
    padding = f"{id_of('[PAD]')} ([PAD])"
    return [
        ("config.json", "bos_token_id", "0", "1 (<s>)"),
        ("generation_config.json", "bos_token_id", "0", "1 (<s>)"),
        ("config.json", "eos_token_id", "1", "2 (</s>)"),
        ("generation_config.json", "eos_token_id", "1", "2 (</s>)"),
        ("config.json", "pad_token_id", "-1", padding),
        ("generation_config.json", "pad_token_id", "0", padding),
    ]


def save(tensors: Tensors, folder: Path, shards: int = 1) -> None:
    """Save safetensors files, with an index where there are several."""
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    document = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def _save_texts(tokens: PreTrainedTokenizerFast, folder: Path, *, processor: bool) -> None:
    _save_tokenizer(tokens, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": len(tokens) - 4}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    if processor:
        preprocessor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": IMAGE_SIZE},
            "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        llava = {
            "processor_class": "LlavaProcessor",
            "image_token": "<im_patch>",
            "patch_size": PATCH,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        }
        (folder / "processor_config.json").write_text(json.dumps(llava))


def _save_tokenizer(tokens: PreTrainedTokenizerFast, folder: Path) -> None:
    tokens.save_pretrained(folder)
    # Under the name of the class that every version of transformers has.
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "stop_strings": ["###"]}
    edit(folder / "tokenizer_config.json", lambda document: document.update(stated))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON document in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=2))


def edit_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of a folder of safetensors; afterwards they stand in one file."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    change(tensors)
    save(tensors, folder)
