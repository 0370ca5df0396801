"""Open LLaMA in Meta's format (``params.json`` and ``consolidated.NN.pth``) as if it were in Hugging Face's.

Nothing is converted on disk: lazy tensors under Hugging Face's names deliver the bytes that converting would give. Rows of wq
and wk are in the order of Hugging Face's rotary embedding, and parts are joined on the axis that Meta split.

Names, split axes and the order of rows: Meta's ``llama/model.py`` (fairscale's ``ColumnParallelLinear`` splits rows,
``RowParallelLinear`` and ``ParallelEmbedding`` columns) and transformers' ``convert_llama_weights_to_hf.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from deltaweights.checkpoint.checksums import Crc32
from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.layout_names import META_PART, PARAMS
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.meta_llama.joined import (
    JoinedChecksum,
    RotaryRows,
    RotaryRowsChecksum,
    SideBySide,
    Stacked,
)
from deltaweights.checkpoint.meta_llama.params import Params, read_params
from deltaweights.checkpoint.tensors import LazyTensor, Storage, TensorSpec, WeightsFile, row_major
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.errors import MalformedInput

CONTAINER = "meta"
FETCH_AGAIN = "parts and params.json are of different downloads, or incomplete: fetch them again"

ROPE_FREQS = "rope.freqs"
"""The suffix of the rotary frequencies' names: a buffer, which loaders recompute."""


class Split(Enum):
    """How a tensor is distributed over the parts."""

    ROWS = "rows"
    ROTARY_ROWS = "rows that are reordered"
    COLUMNS = "columns"
    COPIES = "copies"


@dataclass(frozen=True)
class _MetaTensor:
    """Meta's name of a tensor, Hugging Face's, how it is split, and its whole shape."""

    meta: str
    name: str
    split: Split
    shape: tuple[int, ...]


def open_meta(directory: Directory) -> tuple[list[WeightsFile], dict[str, LazyTensor]]:
    """Open all parts; return them and the tensors of the whole. Raises ``MalformedInput``, ``InputOutputError``."""
    params = read_params(directory)
    names = [name for name in directory.names() if META_PART.fullmatch(name)]
    for number, name in enumerate(names):
        expected = f"consolidated.{number:02d}.pth"
        if name != expected:
            raise MalformedAt(directory.path / expected, "finish the download")("part is missing", name)
    files: list[WeightsFile] = []
    try:
        for name in names:
            files.append(replace(open_torch_file(directory.open(name)), container=CONTAINER))
        return files, dict(_tensors(directory, files, params))
    except BaseException:
        for weights in files:
            weights.file.close()
        raise


def _tensors(directory: Directory, files: Sequence[WeightsFile], params: Params) -> Iterator[tuple[str, LazyTensor]]:
    expected = list(_expected_tensors(files, params))
    known = {tensor.meta for tensor in expected}
    for weights in files:
        for name in weights.tensors:
            if name not in known and not name.endswith(ROPE_FREQS):
                raise _misfit(weights, name, f"is not a tensor of a LLaMA of {params.n_layers} layers")
    path = files[0].file.path if len(files) == 1 else directory.path / "consolidated.*.pth"
    for tensor in expected:
        parts = [_part_of(weights, tensor, len(files), params.head_dim) for weights in files]
        yield tensor.name, _whole(tensor, parts, params.head_dim, path)
    for weights in files:
        for name, frequencies in weights.tensors.items():
            if name not in known:
                _check_heads(directory, params, frequencies)
                if weights is files[0]:
                    yield name, frequencies


def _check_heads(directory: Directory, params: Params, frequencies: LazyTensor) -> None:
    """Raise ``MalformedInput`` unless there are half as many rotary frequencies as rows in a head.

    If queries and keys have as many heads, nothing else shows a wrong ``n_heads``, by which rows of wq and wk are put in order.
    """
    if frequencies.spec.count != params.head_dim // 2:
        found = f"{params.head_dim // 2} rotary frequencies by n_heads {params.n_heads}"
        expected = f"{frequencies.spec.count}, as {frequencies.spec.name} of {frequencies.file} has"
        raise MalformedAt(directory.path / PARAMS, FETCH_AGAIN)("n_heads does not fit the weights", found, expected)


def _expected_tensors(files: Sequence[WeightsFile], params: Params) -> Iterator[_MetaTensor]:
    """Yield all tensors that a LLaMA of these parameters has, in the order of its layers."""
    dim, vocabulary = params.dim, params.vocab_size
    if vocabulary is None:  # -1 in the files of LLaMA-1: the tokenizer's
        vocabulary = _rows_of(files[0], "tok_embeddings.weight")
    hidden = _rows_of(files[0], "layers.0.feed_forward.w1.weight") * len(files)
    if params.hidden_dim not in {None, hidden}:
        found = f"{hidden} rows in {len(files)} parts"
        raise _misfit(files[0], "layers.0.feed_forward.w1.weight", "does not fit params.json", found, params.hidden_dim)
    queries, keys = params.n_heads * params.head_dim, params.n_kv_heads * params.head_dim
    yield _MetaTensor("tok_embeddings.weight", "model.embed_tokens.weight", Split.COLUMNS, (vocabulary, dim))
    for layer in range(params.n_layers):
        for meta, name, split, shape in (
            ("attention.wq", "self_attn.q_proj", Split.ROTARY_ROWS, (queries, dim)),
            ("attention.wk", "self_attn.k_proj", Split.ROTARY_ROWS, (keys, dim)),
            ("attention.wv", "self_attn.v_proj", Split.ROWS, (keys, dim)),
            ("attention.wo", "self_attn.o_proj", Split.COLUMNS, (dim, queries)),
            ("feed_forward.w1", "mlp.gate_proj", Split.ROWS, (hidden, dim)),
            ("feed_forward.w2", "mlp.down_proj", Split.COLUMNS, (dim, hidden)),
            ("feed_forward.w3", "mlp.up_proj", Split.ROWS, (hidden, dim)),
            ("attention_norm", "input_layernorm", Split.COPIES, (dim,)),
            ("ffn_norm", "post_attention_layernorm", Split.COPIES, (dim,)),
        ):
            yield _MetaTensor(f"layers.{layer}.{meta}.weight", f"model.layers.{layer}.{name}.weight", split, shape)
    yield _MetaTensor("norm.weight", "model.norm.weight", Split.COPIES, (dim,))
    yield _MetaTensor("output.weight", "lm_head.weight", Split.ROWS, (vocabulary, dim))


def _rows_of(weights: WeightsFile, name: str) -> int:
    tensor = weights.tensors.get(name)
    if tensor is None or not tensor.spec.shape:
        raise _misfit(weights, name, "is missing" if tensor is None else "is a single number")
    return tensor.spec.shape[0]


def _part_of(weights: WeightsFile, whole: _MetaTensor, parts: int, head: int) -> LazyTensor:
    tensor = weights.tensors.get(whole.meta)
    if tensor is None:
        raise _misfit(weights, whole.meta, "is missing")
    axis = {Split.COPIES: None, Split.COLUMNS: 1}.get(whole.split, 0)
    expected = tuple(size // parts if k == axis else size for k, size in enumerate(whole.shape))
    unit = head if whole.split is Split.ROTARY_ROWS else 1  # a head must not be split
    if tensor.spec.shape != expected or (axis is not None and whole.shape[axis] % (parts * unit)):
        shape = f"{list(expected)}, one of {parts} parts of {list(whole.shape)} according to {PARAMS}"
        raise _misfit(weights, whole.meta, "has another shape", list(tensor.spec.shape), shape)
    return tensor


def _whole(whole: _MetaTensor, parts: Sequence[LazyTensor], head: int, path: Path) -> LazyTensor:
    dtypes = {part.spec.dtype for part in parts}
    if len(dtypes) > 1:
        raise MalformedAt(path, FETCH_AGAIN)("parts disagree", " and ".join(sorted(dtypes)), tensor=whole.meta)
    spec = TensorSpec(whole.name, parts[0].spec.dtype, whole.shape)
    if whole.split is Split.ROTARY_ROWS:
        parts = [_in_rotary_order(part, head) for part in parts]
    if len(parts) == 1 or whole.split is Split.COPIES:
        _refuse_different_copies(parts)
        return replace(parts[0], spec=spec)
    sources, first = tuple(part.source for part in parts), parts[0].spec
    columns = whole.split is Split.COLUMNS
    joined = SideBySide(sources, first.shape[1] * first.item_size) if columns else Stacked(sources, first.nbytes)
    checksums = tuple(part.checksum for part in parts if part.checksum is not None)
    names = tuple(part.file for part in parts)
    checksum = JoinedChecksum(checksums, names, joined) if len(checksums) == len(parts) else None
    return LazyTensor(spec, joined, path, Storage(path.name, whole.meta, 0, row_major(whole.shape)), checksum)


def _in_rotary_order(part: LazyTensor, head: int) -> LazyTensor:
    width = part.spec.shape[1] * part.spec.item_size
    checksum = RotaryRowsChecksum(part.checksum, head, width) if isinstance(part.checksum, Crc32) else None
    storage = replace(part.storage, key=f"{part.storage.key} in rotary order")
    return replace(part, source=RotaryRows(part.source, head, width), storage=storage, checksum=checksum)


def _refuse_different_copies(parts: Sequence[LazyTensor]) -> None:
    """Compare a tensor of which every part has a copy: some kilobytes of norms."""
    first, *others = parts
    for part in others:
        if _content(part) != _content(first):
            malformed = MalformedAt(part.path, FETCH_AGAIN)
            raise malformed("parts disagree", "other values", f"those of {first.file}", tensor=part.spec.name)


def _content(tensor: LazyTensor) -> bytes:
    data = bytearray(tensor.spec.nbytes)
    tensor.source.read_into(memoryview(data), 0)
    return bytes(data)


def _misfit(
    weights: WeightsFile, tensor: str, problem: str, found: object = None, expected: object = None
) -> MalformedInput:
    return MalformedAt(weights.file.path, FETCH_AGAIN)(problem, found, expected, tensor=tensor)
