"""Random checkpoints for the benchmark, in the shapes of LLaMA-7B and in shapes that are hard.

Enters: sizes and a folder. Leaves: a base and a delta there, made once. Never: real weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Model:
    """What to make: "llama" has LLaMA-7B's shapes, ``layers`` of them; "huge" one tensor of as many bytes; "small" 10,000 tensors.

    With ``projector`` the delta has four more rows of vocabulary, a projector and float32 buffers, as LLaVA-Med's. ``toy`` is the
    same with everything tiny, to try the benchmark itself.
    """

    shape: str = "llama"
    layers: int = 4
    container: str = "safetensors"
    projector: bool = False
    toy: bool = False

    @property
    def name(self) -> str:
        """A name for folders."""
        parts = [self.shape, str(self.layers), self.container, "med" * self.projector, "toy" * self.toy]
        return "-".join(part for part in parts if part)

    @property
    def hidden(self) -> int:
        """LLaMA-7B's, or a toy's."""
        return 64 if self.toy else 4096

    @property
    def intermediate(self) -> int:
        """LLaMA-7B's, or a toy's."""
        return 172 if self.toy else 11008

    @property
    def vocabulary(self) -> int:
        """LLaMA-7B's, or a toy's; its 32 layers are 13.5 GB in float16."""
        return 320 if self.toy else 32000


def make(model: Model, folder: Path) -> None:
    """Write ``base`` and ``delta`` of ``model`` under ``folder``, unless they are there."""
    import torch  # noqa: PLC0415  (so that --help is quick)
    from safetensors.torch import save_file  # noqa: PLC0415

    for role in ("base", "delta"):
        path = folder / role
        if (path / "config.json").exists():
            continue
        path.mkdir(parents=True, exist_ok=True)
        generators = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        weight_map: dict[str, str] = {}
        grown = model.projector and role == "delta"
        parts = zip(_parts(model, grown=False), _parts(model, grown=grown), strict=True)
        for number, (base_shapes, shapes) in enumerate(parts, start=1):
            tensors = {
                name: _tensor(role, base_shapes.get(name, (0, *shape[1:])), shape, generators)
                for name, shape in shapes.items()
            }
            if grown and number == 1:
                layers = range(model.layers)
                tensors |= {f"model.layers.{k}.self_attn.rotary_emb.inv_freq": torch.zeros(64) for k in layers}
            stem, suffix = ("model", ".safetensors") if model.container == "safetensors" else ("pytorch_model", ".bin")
            file = f"{stem}-{number:05d}-of-{len(_parts(model, grown=grown)):05d}{suffix}"
            if model.container == "safetensors":
                save_file(tensors, path / file, metadata={"format": "pt"})
            else:
                torch.save(tensors, path / file)
            weight_map |= dict.fromkeys(tensors, file)
        index = "model.safetensors.index.json" if model.container == "safetensors" else "pytorch_model.bin.index.json"
        (path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (path / "config.json").write_text(json.dumps(_config(model, grown=grown)))


def _tensor(
    role: str, base_shape: tuple[int, ...], shape: tuple[int, ...], generators: tuple[torch.Generator, torch.Generator]
) -> torch.Tensor:
    """Return a base of normal weights, or a delta as it is computed: a tuned base less the base, in float16, and new rows."""
    import torch  # noqa: PLC0415  (see above)

    base = torch.empty(base_shape).normal_(0, 0.02, generator=generators[0]).half()
    if role == "base":
        return base
    step = torch.empty(base_shape).normal_(0, 0.0004, generator=generators[1])
    delta = (base.float() + step).half() - base
    if base_shape == shape:
        return delta
    rows = torch.empty(shape[0] - base_shape[0], *shape[1:]).normal_(0, 0.02, generator=generators[1]).half()
    return torch.cat([delta, rows])


def _config(model: Model, *, grown: bool) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_attention_heads": 4 if model.toy else 32,
        "num_hidden_layers": model.layers,
        "vocab_size": model.vocabulary + 4 * grown,
        "torch_dtype": "float16",
    }


def _parts(model: Model, *, grown: bool) -> list[Shapes]:
    """Return names and shapes, about 4 GB to a shard."""
    bytes_of_all = model.layers * 405_000_000 // (1000 if model.toy else 1)
    if model.shape == "huge":
        return [{"model.norm.weight": (bytes_of_all // 2 // model.hidden, model.hidden)}]
    if model.shape == "small":
        rows = bytes_of_all // 2 // 10_000 // model.hidden or 1
        return [{f"model.layers.{number}.w.weight": (rows, model.hidden) for number in range(10_000)}]
    vocabulary, hidden, intermediate = model.vocabulary + 4 * grown, model.hidden, model.intermediate
    parts: list[Shapes] = [{"model.embed_tokens.weight": (vocabulary, hidden)}]
    for layer in range(model.layers):
        if layer and layer % 10 == 0:
            parts.append({})
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            parts[-1][f"{prefix}self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name, shape in (
            ("gate", (intermediate, hidden)),
            ("up", (intermediate, hidden)),
            ("down", (hidden, intermediate)),
        ):
            parts[-1][f"{prefix}mlp.{name}_proj.weight"] = shape
        for name in ("input", "post_attention"):
            parts[-1][f"{prefix}{name}_layernorm.weight"] = (hidden,)
    parts[-1] |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    if grown:
        parts[-1] |= {"model.mm_projector.weight": (hidden, 1024), "model.mm_projector.bias": (hidden,)}
    return parts
