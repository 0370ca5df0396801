"""Hugging Face's configuration and tokenizer files for a LLaMA in Meta's format.

The values are those of ``write_model`` and ``write_tokenizer`` in transformers' convert_llama_weights_to_hf.py.
"""

from __future__ import annotations

import json

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.meta_llama.params import read_params
from deltaweights.checkpoint.small_files import refuse_wrong_content
from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.util.text import Json

TOKENIZER, MAX_TOKENIZER = "tokenizer.model", 64 * 1024 * 1024

LLAMA_1_LENGTH, LLAMA_2_LENGTH = 2048, 4096
"""The longest input, in tokens, from the papers and common configurations; no file of Meta's states it."""

LLAMA_1_EPSILON, LLAMA_1_65B = 1e-06, (8192, 80)
"""Tell LLaMA-1 from LLaMA-2, whose epsilon is 1e-05. LLaMA-1 65B has that epsilon, too, but the LLaMA-2 with its ``dim``
and ``n_layers``, 70B, has fewer heads for keys than for queries."""

IDS: dict[str, Json] = {"bos_token_id": 1, "eos_token_id": 2}


def meta_companions(directory: Directory, specs: dict[str, TensorSpec], dtype: str) -> dict[str, bytes]:
    """Return the files by name, the tokenizer's only if there is one. Raises ``MalformedInput``, ``InputOutputError``."""
    params = read_params(directory)
    is_65b = (params.dim, params.n_layers) == LLAMA_1_65B and params.n_kv_heads == params.n_heads
    length = LLAMA_1_LENGTH if is_65b or params.norm_eps == LLAMA_1_EPSILON else LLAMA_2_LENGTH
    config = {
        "architectures": ["LlamaForCausalLM"],
        **IDS,
        "hidden_act": "silu",
        "hidden_size": params.dim,
        "initializer_range": 0.02,
        "intermediate_size": specs["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "max_position_embeddings": length,
        "model_type": "llama",
        "num_attention_heads": params.n_heads,
        "num_hidden_layers": params.n_layers,
        "num_key_value_heads": params.n_kv_heads,
        "rms_norm_eps": params.norm_eps,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": specs["model.embed_tokens.weight"].shape[0],
    }
    files: dict[str, Json] = {"config.json": config, "generation_config.json": IDS}
    tokenizer = {}
    if directory.has(TOKENIZER):
        special: dict[str, Json] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        files["special_tokens_map.json"] = special
        files["tokenizer_config.json"] = {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": length,
            "tokenizer_class": "LlamaTokenizer",
            **special,
        }
        tokenizer[TOKENIZER] = directory.read_companion(TOKENIZER, MAX_TOKENIZER)
        refuse_wrong_content(tokenizer[TOKENIZER], directory.path / TOKENIZER)
    return {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in files.items()} | tokenizer
