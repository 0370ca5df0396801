"""LLaMA in Meta's format: read as converting it would give it, whatever the number of parts, and refused where parts do not fit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from deltaweights.checkpoint.checksums import verify_checksum
from deltaweights.checkpoint.directory import LocalDirectory
from deltaweights.checkpoint.folder import Checkpoint, open_checkpoint
from deltaweights.checkpoint.meta_llama.hf_config import meta_companions
from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.jobs.apply import apply_delta
from tests.support.errors import refused
from tests.support.meta import meta_tensors, params_of, save_meta, split
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save
from tests.unit.checkpoint.test_folder import POINTER

PARTS = "consolidated.{:02d}.pth"


def tiny(heads: int = 4, kv_heads: int | None = None, head: int = 8, layers: int = 1, seed: int = 0) -> Tensors:
    """Return random tensors of a LLaMA whose sizes all differ."""
    generator = torch.Generator().manual_seed(seed)
    dim, hidden, vocabulary = heads * head, 8 * heads + 16, 16 * heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, dim)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (dim, dim) for name in "qo"}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": ((kv_heads or heads) * head, dim) for name in "kv"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (hidden, dim) for name in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (dim, hidden)}
        shapes |= {f"{prefix}{name}_layernorm.weight": (dim,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (dim,), "lm_head.weight": (vocabulary, dim)}
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy())


def read(tensor: LazyTensor, block: int) -> bytes:
    """Return a tensor's bytes, read in blocks of so many elements, after verifying its checksum on the way."""
    item = tensor.spec.item_size
    running = tensor.checksum.start() if tensor.checksum else None
    data = bytearray(tensor.spec.nbytes)
    for start in range(0, len(data), block * item):
        piece = memoryview(data)[start : start + block * item]
        tensor.source.read_into(piece, start)
        if running is not None:
            running.update(piece)
    assert running is None or running.fault() is None
    return bytes(data)


def weights_of(checkpoint: Checkpoint, block: int = 97) -> dict[str, bytes]:
    """Return all weights without Meta's buffers."""
    return {n: read(t, block) for n, t in checkpoint.tensors.items() if not n.endswith("rope.freqs")}


# The same tensors.


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_reads_what_was_split(tmp_path: Path, parts: int) -> None:
    """The tensors read from one, two and four parts are, byte for byte, those that were split."""
    tensors = tiny(layers=2)
    with open_checkpoint(save_meta(tensors, tmp_path / "meta", parts), "base") as checkpoint:
        assert checkpoint.container == "meta"
        assert checkpoint.notes == ()
        assert [weights.file.path.name for weights in checkpoint.files] == [PARTS.format(k) for k in range(parts)]
        assert {n: t.spec.shape for n, t in checkpoint.tensors.items() if n in tensors} == {
            n: tuple(t.shape) for n, t in tensors.items()
        }
        assert weights_of(checkpoint) == {name: bits(tensor) for name, tensor in tensors.items()}
        assert all(tensor.checksum is not None for tensor in checkpoint.tensors.values())
        assert not any(weights.extra_checksums for weights in checkpoint.files)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_split_converts_back(tmp_path: Path, data: st.DataObject) -> None:
    """For any heads, key heads, head size, parts and blocks, the tensors that were split are read bit for bit."""
    parts = data.draw(st.sampled_from([1, 2, 4]))
    kv_heads = parts * data.draw(st.integers(1, 2))
    heads = kv_heads * data.draw(st.integers(1, 3))
    tensors = tiny(heads, kv_heads, head := data.draw(st.sampled_from([2, 4, 6, 8])), seed=data.draw(st.integers(0, 9)))
    folder = save_meta(tensors, Path(tempfile.mkdtemp(dir=tmp_path)), parts, head)
    with open_checkpoint(folder, "base") as checkpoint:
        assert weights_of(checkpoint, data.draw(st.integers(1, 300))) == {n: bits(t) for n, t in tensors.items()}


def meta_logits(tensors: Tensors, tokens: torch.Tensor, heads: int, epsilon: float) -> torch.Tensor:
    """Run a LLaMA as Meta's model.py does, rotating neighbours by complex numbers. ``tensors`` have Meta's names; float32."""

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight

    def rotated(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[:, None, :]).flatten(2)

    layers = sum(name.endswith("ffn_norm.weight") for name in tensors)
    length, dim = len(tokens), tensors["norm.weight"].shape[0]
    head = dim // heads
    angles = torch.outer(torch.arange(length).float(), 1.0 / 10000 ** (torch.arange(0, head, 2).float() / head))
    turns = torch.polar(torch.ones_like(angles), angles)
    mask = torch.full((length, length), float("-inf")).triu(1)
    x = tensors["tok_embeddings.weight"][tokens]
    for layer in range(layers):
        w = {n.removeprefix(f"layers.{layer}."): t for n, t in tensors.items() if n.startswith(f"layers.{layer}.")}
        h = normed(x, w["attention_norm.weight"])
        q, k, v = ((h @ w[f"attention.w{name}.weight"].T).view(length, heads, head) for name in "qkv")
        q, k, v = (part.transpose(0, 1) for part in (rotated(q), rotated(k), v))
        scores = (q @ k.transpose(1, 2) / head**0.5 + mask).softmax(-1)
        x = x + (scores @ v).transpose(0, 1).reshape(length, dim) @ w["attention.wo.weight"].T
        h = normed(x, w["ffn_norm.weight"])
        gate, up = (h @ w[f"feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (functional.silu(gate) * up) @ w["feed_forward.w2.weight"].T
    return normed(x, tensors["norm.weight"]) @ tensors["output.weight"].T


def test_the_order_of_rows_is_the_models_own(tmp_path: Path) -> None:
    """Meta's model on Meta's tensors and transformers' model on the tensors read here give the same logits."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=84,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        rms_norm_eps=1e-06,
    )
    model = LlamaForCausalLM(config).train(False)
    original = {name: tensor.float() * 8 for name, tensor in model.state_dict().items()}
    metas = {name: tensor for name, (tensor, _) in meta_tensors(original, 8).items()}
    tokens = torch.tensor([1, 7, 3, 39, 0, 12])
    with open_checkpoint(save_meta(original, tmp_path / "meta", 2), "base") as checkpoint:
        found = {
            name: torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(checkpoint.tensors[name].spec.shape)
            for name, data in weights_of(checkpoint).items()
        }
    model.load_state_dict(found)
    with torch.no_grad():
        ours = model(tokens[None]).logits[0]
        theirs = meta_logits(metas, tokens, 4, 1e-06)
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    assert theirs.abs().max() > 1  # so that agreement says something


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_merged_weights_have_the_same_bytes(tmp_path: Path, parts: int) -> None:
    """A base in Meta's format gives the same weights files as in torch's and safetensors."""
    base = base_tensors(hidden=32)
    delta = save(delta_tensors(base), tmp_path / "delta")
    bases = {
        "torch": save(base, tmp_path / "torch"),
        "safetensors": save(base, tmp_path / "safetensors", "safetensors"),
        "meta": save_meta(base, tmp_path / "meta", parts),
        "part": save_meta(base, tmp_path / "again", parts) / "consolidated.00.pth",
    }
    sums = {}
    for name, path in bases.items():
        result = apply_delta(path, delta, tmp_path / f"merged-{name}", max_shard_size=20_000)
        sums[name] = [
            line
            for line in (Path(result.target) / "SHA256SUMS").read_text().splitlines()
            if "manifest.json" not in line
        ]
    assert sums["meta"] == sums["torch"] == sums["safetensors"] == sums["part"]
    assert len(sums["meta"]) > 5


# Damage.


def damage(tensor: LazyTensor) -> str | None:
    """Return the error about a tensor whose stored bytes are damaged."""
    try:
        verify_checksum(tensor)
    except MalformedInput as error:
        return str(error)
    return None


@pytest.mark.parametrize("parts", [1, 2])
def test_a_flipped_bit_of_any_tensor_is_noticed(tmp_path: Path, parts: int) -> None:
    """A flipped bit in any tensor of the last part is found by the checksum while the whole tensor is read."""
    tensors = tiny()
    folder = save_meta(tensors, tmp_path / "meta", parts)
    path = folder / PARTS.format(parts - 1)
    sound = path.read_bytes()
    for name, tensor in split(tensors, parts, 8)[-1].items():
        if name.endswith("norm.weight") and parts > 1:
            continue  # compared with the other part's copy
        data = bytearray(sound)
        at = sound.index(bits(tensor)) + tensor.nbytes // 2
        data[at] ^= 4
        path.write_bytes(data)
        with open_checkpoint(folder, "base") as checkpoint:
            messages = [message for tensor in checkpoint.tensors.values() if (message := damage(tensor))]
        if name == "rope.freqs" and parts > 1:
            assert messages == []  # only the first part's is read at all
        else:
            (message,) = messages
            assert "stored bytes are damaged: found CRC-32 " in message
            assert path.name in message
    path.write_bytes(sound)


def test_copies_that_disagree(tmp_path: Path) -> None:
    """A norm that differs between parts is refused with part and tensor."""
    tensors = tiny()
    folder = save_meta(tensors, tmp_path / "meta", 2)
    parts = split(tensors, 2, 8)
    parts[1]["layers.0.ffn_norm.weight"] += 1
    torch.save(parts[1], folder / PARTS.format(1))
    where, name, expected = folder / PARTS.format(1), "layers.0.ffn_norm.weight", "those of consolidated.00.pth"
    with refused(MalformedInput, where=where, tensor=name, found="other values", expected=expected):
        open_checkpoint(folder, "base")


# Parts and parameters that do not fit.


def edited(change: Callable[[list[Tensors]], object]) -> Callable[[Path], None]:
    """Return a function that rewrites the parts of a tiny model after ``change``."""

    def write(folder: Path) -> None:
        parts = split(tiny(), 2, 8)
        change(parts)
        for number, part in enumerate(parts):
            torch.save(part, folder / PARTS.format(number))

    return write


def with_params(**changes: object) -> Callable[[Path], None]:
    """Return a function that rewrites params.json with some values changed, or removed if None."""

    def write(folder: Path) -> None:
        params = params_of(tiny(), 8) | changes
        (folder / "params.json").write_text(json.dumps({k: v for k, v in params.items() if v is not None}))

    return write


WQ, INNER = "layers.0.attention.wq.weight", "layers.0.attention.inner_attention.rope.freqs"

MISFITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing-first-part": (
        lambda folder: (folder / PARTS.format(0)).unlink(),
        "consolidated.00.pth: part is missing: found consolidated.01.pth",
    ),
    "missing-middle-part": (
        lambda folder: (folder / PARTS.format(1)).rename(folder / PARTS.format(2)),
        "consolidated.01.pth: part is missing: found consolidated.02.pth",
    ),
    "missing-last-part": (
        lambda folder: (folder / PARTS.format(1)).unlink(),
        "consolidated.00.pth: tensor layers.0.feed_forward.w1.weight: does not fit params.json: found 24 rows in 1 parts",
    ),
    "truncated-part": (
        lambda folder: (folder / PARTS.format(1)).write_bytes((folder / PARTS.format(1)).read_bytes()[:-99]),
        "consolidated.01.pth: truncated: the zip has no end record",
    ),
    "missing-tensor": (
        edited(lambda parts: parts[1].pop(WQ)),
        f"consolidated.01.pth: tensor {WQ}: is missing",
    ),
    "missing-first-tensor": (
        edited(lambda parts: parts[0].pop("tok_embeddings.weight")),
        "consolidated.00.pth: tensor tok_embeddings.weight: is missing",
    ),
    "unknown-tensor": (
        edited(lambda parts: parts[0].update({"layers.1.attention.wq.weight": torch.ones(2)})),
        "tensor layers.1.attention.wq.weight: is not a tensor of a LLaMA of 1 layers",
    ),
    "part-of-another-shape": (
        edited(lambda parts: parts[1].update({WQ: torch.ones(8, 32).half()})),
        f"tensor {WQ}: has another shape: found [8, 32], expected [16, 32], one of 2 parts of [32, 32] according to params.json",
    ),
    "part-of-another-dtype": (
        edited(lambda parts: parts[1].update({WQ: torch.ones(16, 32)})),
        f"consolidated.*.pth: tensor {WQ}: parts disagree: found F16 and F32",
    ),
    "scalar": (
        edited(lambda parts: parts[0].update({"tok_embeddings.weight": torch.tensor(1.0)})),
        "tensor tok_embeddings.weight: is a single number",
    ),
    "params-other-dim": (with_params(dim=64, multiple_of=None), "has another shape: found [64, 16], expected [64, 32]"),
    "params-other-layers": (with_params(n_layers=2), "tensor layers.1.attention.wq.weight: is missing"),
    "params-other-vocabulary": (with_params(vocab_size=50), "tensor tok_embeddings.weight: has another shape"),
    "params-other-heads": (with_params(n_heads=16, n_kv_heads=1), "tensor layers.0.attention.wk.weight: has another shape"),
    "params-heads-over-parts": (
        with_params(n_heads=1),
        f"tensor {WQ}: has another shape: found [16, 32], expected [16, 32], one of 2",
    ),
    "params-other-width": (with_params(multiple_of=256), "does not fit params.json: found 48 rows in 2 parts, expected 256"),
    "params-more-heads": (
        with_params(n_heads=8),
        "params.json: n_heads does not fit the weights: found 2 rotary frequencies by n_heads 8, expected 4, as rope.freqs of",
    ),
    "params-fewer-heads": (
        with_params(n_heads=2),
        "found 8 rotary frequencies by n_heads 2, expected 4, as rope.freqs of consolidated.00.pth has",
    ),
    "params-heads-by-a-buffer-of-a-layer": (
        edited(lambda parts: (parts[0].pop("rope.freqs"), parts[1].update({INNER: torch.ones(2)}))),
        f"found 4 rotary frequencies by n_heads 4, expected 2, as {INNER} of consolidated.01.pth has",
    ),
    "params-uneven-heads": (with_params(n_heads=3), "n_heads is not usable: found 3, expected an even part of dim 32"),
    "params-no-dim": (with_params(dim=None), "params.json: dim is not usable: found nothing, expected a whole number"),
    "params-bool": (with_params(n_layers=True), "n_layers is not usable: found True"),
    "params-zero": (with_params(n_layers=0), "n_layers is not usable: found 0"),
    "params-huge": (with_params(n_layers=10**7), "n_layers is not usable: found 10000000"),
    "params-no-epsilon": (with_params(norm_eps=None), "norm_eps is not usable: found nothing"),
    "params-text": (with_params(dim="32"), "dim is not usable: found 32, expected a whole number"),
    "params-multiplier": (with_params(ffn_dim_multiplier=-1), "ffn_dim_multiplier is not usable: found -1"),
    "params-not-json": (
        lambda folder: (folder / "params.json").write_text("{"),
        "params.json: not strict JSON: found",
    ),
    "row18-params-pointer": (
        lambda folder: (folder / "params.json").write_text(POINTER),
        "params.json: not what its name says: found a git-LFS pointer",
    ),
    "row18-params-page": (
        lambda folder: (folder / "params.json").write_text("<!DOCTYPE html>"),
        "params.json: not what its name says: found an HTML page",
    ),
    "params-list": (lambda folder: (folder / "params.json").write_text("[]"), "params.json: not a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "part"), MISFITS.values(), ids=MISFITS)
def test_parts_that_do_not_fit(tmp_path: Path, change: Callable[[Path], object], part: str) -> None:
    """Parts that are missing, cut, or of other shapes than params.json says are refused with file and tensor."""
    folder = save_meta(tiny(), tmp_path / "meta", 2)
    change(folder)
    with refused(MalformedInput) as caught:
        open_checkpoint(folder, "base")
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert message.isprintable()
    assert part in message


def test_without_params(tmp_path: Path) -> None:
    """Meta's weights without params.json are an input error (5) that names it, also when a part is given."""
    folder = save_meta(tiny(), tmp_path / "meta", 1)
    (folder / "params.json").unlink()
    for path in (folder, folder / PARTS.format(0)):
        with refused(InputOutputError, where=folder / "params.json"):
            open_checkpoint(path, "base")


def test_without_frequencies(tmp_path: Path) -> None:
    """Parts without rotary frequencies, as in later models, are read."""
    folder = save_meta(tiny(), tmp_path / "meta", 2)
    edited(lambda parts: [part.pop("rope.freqs") for part in parts])(folder)
    with open_checkpoint(folder, "base") as checkpoint:
        assert weights_of(checkpoint) == {name: bits(tensor) for name, tensor in tiny().items()}


# The configuration.

PUBLISHED = {
    "llama-1-7b": ({"dim": 4096, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06}, 2048),
    "llama-1-65b": ({"dim": 8192, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05}, 2048),
    "llama-2-7b": ({"dim": 4096, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05}, 4096),
    "llama-2-70b": ({"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05}, 4096),
}
SPECS = {
    name: TensorSpec(name, "F16", (32, 32))
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.embed_tokens.weight")
}


@pytest.mark.parametrize(("params", "length"), PUBLISHED.values(), ids=PUBLISHED)
def test_longest_input(tmp_path: Path, params: dict[str, float], length: int) -> None:
    """LLaMA-1 takes 2048 tokens and LLaMA-2 4096; they are told apart by the epsilon, or else by sizes."""
    (tmp_path / "params.json").write_text(json.dumps(params))
    config = json.loads(meta_companions(LocalDirectory(tmp_path), SPECS, "float16")["config.json"])
    assert (config["max_position_embeddings"], config["rms_norm_eps"]) == (length, params["norm_eps"])


@pytest.mark.parametrize(
    ("content", "found"),
    [(POINTER, "a git-LFS pointer"), ("<html>", "an HTML page"), ("", "an empty file"), ('{"error": 1}', "a text document")],
    ids=["row18-pointer", "row18-page", "row18-empty", "row18-error"],
)  # fmt: skip
def test_a_replaced_tokenizer_is_refused(tmp_path: Path, content: str, found: str) -> None:
    """A pointer or page in place of a tokenizer.model is refused with what it is, not copied."""
    (tmp_path / "params.json").write_text(json.dumps(PUBLISHED["llama-1-7b"][0]))
    (tmp_path / "tokenizer.model").write_text(content)
    with refused(MalformedInput, where=tmp_path / "tokenizer.model", found=found):
        meta_companions(LocalDirectory(tmp_path), SPECS, "float16")
