"""The configuration files that current transformers reads, from those of 2023 and the sizes of the tensors.

Keys and their defaults: LlamaConfig, CLIPVisionConfig and LlavaConfig of transformers; CLIP's preprocessing: its
preprocessor_config.json.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltaweights.errors import Mismatch
from deltaweights.export.sizes import TextSizes, VisionSizes
from deltaweights.recipes.table import LINE, Table
from deltaweights.util.text import Json

USE_ORIGINAL = "keep it in the original layout, which apply writes without --layout"

MAX_SIZE, MAX_LAYERS = 1_000_000, 1_000  # far above any model's

CONTEXT = 2048
"""LLaMA-1's longest input, in tokens: the length where the files state none, or one that means "any"."""

MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
"""Of the images that CLIP was trained on, by channel."""

STEPS = ("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize")
"""CLIP's preprocessing of an image."""

MODEL_TYPES, SPECIAL = ("llama", "llava"), ("bos_token_id", "eos_token_id", "pad_token_id")

ACTIVATIONS = ("silu", "swish", "gelu", "quick_gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
"""Names in transformers (ACT2FN) that LLaMA and CLIP models have."""


@dataclass(frozen=True)
class ImageFeatures:
    """LLaVA's settings for images: the layer that features are taken from, and whether tokens surround an image's."""

    layer: int = -2
    start_and_end: bool = False


def read_image_features(config: Table) -> ImageFeatures:
    """Return what LLaVA's code of 2023 reads from config.json. Raises ``MalformedInput``, and ``Mismatch`` if unsupported."""
    feature = config.text("mm_vision_select_feature", LINE)
    if feature not in {None, "patch"}:
        problem, found = "this model uses other features of an image", f"mm_vision_select_feature {feature}"
        raise Mismatch(problem, where=config.where, found=found, expected="patch", remedy=USE_ORIGINAL)
    layer = config.number("mm_vision_select_layer", least=-MAX_SIZE)
    if layer is not None and layer != int(layer):
        raise config.unusable("mm_vision_select_layer", "a whole number")
    start_and_end = config.flag("mm_use_im_start_end", default=False)
    return ImageFeatures(ImageFeatures.layer if layer is None else int(layer), start_and_end)


def text_config(
    config: Table, sizes: TextSizes, special: dict[str, int], dtype: str, known_heads: int | None = None
) -> dict[str, Json]:
    """Return the language model's configuration, with ids ``special`` and a recipe's ``known_heads``; ``dtype`` is torch's name.

    Raises ``MalformedInput`` and ``Mismatch``.
    """
    kind = config.text("model_type", LINE)
    if kind not in {None, *MODEL_TYPES}:
        problem, remedy = "not a LLaMA: layout transformers supports no other model", USE_ORIGINAL
        found, expected = f"model_type {kind}", " or ".join(MODEL_TYPES)
        raise Mismatch(problem, where=config.where, found=found, expected=expected, remedy=remedy)
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers")
    for key, size in zip(keys, (sizes.hidden, sizes.intermediate, sizes.layers), strict=True):
        stated = config.whole(key, MAX_SIZE)
        if stated not in {None, size}:
            problem = f"config.json and the tensors disagree about {key}"
            raise Mismatch(problem, where=config.where, found=stated, expected=size, remedy="fetch config.json again")
    heads, groups = _heads(config, sizes, known_heads)
    length = config.whole("max_position_embeddings", MAX_SIZE) or config.whole("max_sequence_length", MAX_SIZE)
    epsilon, initializer_range = config.number("rms_norm_eps", least=0), config.number("initializer_range", least=0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        **special,
        "hidden_act": config.choice("hidden_act", ACTIVATIONS, "silu"),
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02 if initializer_range is None else initializer_range,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": length or CONTEXT,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": groups,
        "rms_norm_eps": 1e-06 if epsilon is None else epsilon,
        **_rotary(config),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": sizes.rows,
    }


def _heads(config: Table, sizes: TextSizes, known: int | None) -> tuple[int, int]:
    if known is None:
        config.require("num_attention_heads")  # it does not follow from the tensors
    heads = config.whole("num_attention_heads", MAX_SIZE) or known or 1
    groups = config.whole("num_key_value_heads", MAX_SIZE) or heads
    width = sizes.hidden // heads
    if sizes.hidden % heads or sizes.key_value_rows != groups * width:
        problem, remedy = "config.json and the tensors disagree about the heads", "fetch config.json again"
        found = f"{heads} of {width}, {groups} for keys"
        expected = f"{sizes.hidden} rows of q_proj and {sizes.key_value_rows} of k_proj"
        raise Mismatch(problem, where=config.where, found=found, expected=expected, remedy=remedy)
    return heads, groups


def _rotary(config: Table) -> dict[str, Json]:
    """Return the settings of rotary embeddings, in the words of transformers 4 and 5; LLaMA-1 states none."""
    theta = config.number("rope_theta", least=0)
    found: dict[str, Json] = {} if theta is None else {"rope_theta": theta}
    for key in ("rope_scaling", "rope_parameters"):
        if key in config and config.value(key) is not None:
            config.table(key)
            found[key] = config.value(key)
    return found


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision model; ``images`` are the settings of its preprocessor_config.json."""

    sizes: VisionSizes
    heads: int
    activation: str
    epsilon: float
    images: dict[str, Json]

    def config(self, dtype: str) -> dict[str, Json]:
        """Return its configuration; ``dtype`` is torch's name."""
        return {
            "attention_dropout": 0.0,
            "hidden_act": self.activation,
            "hidden_size": self.sizes.hidden,
            "image_size": self.sizes.image,
            "intermediate_size": self.sizes.intermediate,
            "layer_norm_eps": self.epsilon,
            "model_type": "clip_vision_model",
            "num_attention_heads": self.heads,
            "num_channels": self.sizes.channels,
            "num_hidden_layers": self.sizes.layers,
            "patch_size": self.sizes.patch,
            "torch_dtype": dtype,
        }

    def preprocessor(self) -> dict[str, Json]:
        """Return preprocessor_config.json: scale the shorter side to the model's, crop the centre, normalize as CLIP does."""
        side = self.sizes.image
        return {
            "crop_size": {"height": side, "width": side},
            **dict.fromkeys(STEPS, True),
            "image_mean": MEAN,
            "image_processor_type": "CLIPImageProcessor",
            "image_std": DEVIATION,
            "processor_class": "LlavaProcessor",
            "resample": 3,  # Pillow's number for bicubic
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": side},
            **self.images,
        }

    def processor(self, image_token: str) -> dict[str, Json]:
        """Return processor_config.json: the processor repeats ``image_token`` once for each feature of an image."""
        return {
            "image_token": image_token,
            "num_additional_image_tokens": 1,  # CLIP's class token, which the strategy "default" leaves out again
            "patch_size": self.sizes.patch,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        }


def read_vision(config: Table, images: Table | None) -> VisionConfig:
    """Return the vision model of a CLIP config.json, or of its own alone; ``images`` is its preprocessor_config.json, if any.

    Raises ``MalformedInput`` and ``Mismatch``.
    """
    part = config.table("vision_config") if "vision_config" in config else config

    def size(key: str, default: int) -> int:
        return part.whole(key, MAX_SIZE) or default

    sizes = VisionSizes(
        hidden=size("hidden_size", 768),
        intermediate=size("intermediate_size", 3072),
        layers=min(size("num_hidden_layers", 12), MAX_LAYERS),  # bounds the work: with more, the tensors cannot match
        image=size("image_size", 224),
        patch=size("patch_size", 32),
        channels=size("num_channels", 3),
    )
    epsilon = part.number("layer_norm_eps", least=0)
    heads = size("num_attention_heads", 12)
    if sizes.hidden % heads:
        key = "num_attention_heads" if "num_attention_heads" in part else "hidden_size"
        raise part.unusable(key, f"a hidden_size that is divisible by num_attention_heads, {heads}")
    return VisionConfig(
        sizes=sizes,
        heads=heads,
        activation=part.choice("hidden_act", ACTIVATIONS, "quick_gelu"),
        epsilon=1e-05 if epsilon is None else epsilon,
        images=_image_settings(images, sizes.image) if images is not None else {},
    )


def _image_settings(table: Table, side: int) -> dict[str, Json]:
    """Return what differs between models in preprocessor_config.json; sizes must be the model's own."""
    found: dict[str, Json] = {}
    for key in ("image_mean", "image_std"):
        if key in table:
            numbers = table.value(key)
            if not isinstance(numbers, list) or len(numbers) != 3 or any(type(x) not in {int, float} for x in numbers):
                raise table.unusable(key, "three numbers")
            found[key] = numbers
    found |= {key: table.flag(key, default=True) for key in STEPS if key in table}
    if "resample" in table:
        found["resample"] = table.whole("resample", 5) or 0
    for key in ("size", "crop_size"):
        stated = table.value(key) if key in table else side
        sides = list(stated.values()) if isinstance(stated, dict) else [stated]
        if not sides or any(each != side for each in sides):
            problem = f"the vision tower's {key} is not its image_size"
            raise Mismatch(problem, where=table.where, found=stated, expected=side, remedy="fetch it again")
    return found


def llava_config(
    text: dict[str, Json], vision: VisionConfig, features: ImageFeatures, image_token_id: int, *, projector_bias: bool
) -> dict[str, Json]:
    """Return config.json of a LLaVA with the language model ``text``."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        **{key: text[key] for key in SPECIAL},
        "image_seq_length": vision.sizes.patches,
        "image_token_index": image_token_id,
        "model_type": "llava",
        "multimodal_projector_bias": projector_bias,
        "projector_hidden_act": "linear",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": text["torch_dtype"],
        "vision_config": vision.config(text["torch_dtype"]),
        "vision_feature_layer": features.layer,
        "vision_feature_select_strategy": "default",
    }
