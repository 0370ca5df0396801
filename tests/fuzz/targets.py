"""All readers of bytes from strangers, each as a function of bytes, with sound examples to start from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from deltaweights import recipes
from deltaweights.checkpoint.checksums import verify_checksum
from deltaweights.checkpoint.companions import read_companions
from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.file_type import detect_file_type
from deltaweights.checkpoint.files import InputFile, MemoryFile
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout_names import PARAMS
from deltaweights.checkpoint.meta_llama.params import read_params
from deltaweights.checkpoint.safetensors_file import open_safetensors
from deltaweights.checkpoint.tensors import LazyTensor, WeightsFile
from deltaweights.checkpoint.torch_format.state_dict import read_state_dict
from deltaweights.checkpoint.torch_format.torch_file import open_torch_file
from deltaweights.checkpoint.zipped_folder.directory import open_archive
from deltaweights.cluster import handoff as ending
from deltaweights.cluster.part import apply_part
from deltaweights.errors import InputOutputError
from deltaweights.export.config import read_image_features, read_vision
from deltaweights.export.sentencepiece import merges_of, read_model
from deltaweights.export.tokenizer_files import read_files
from deltaweights.hub.access import Access
from deltaweights.hub.ids import HubId, hub_id
from deltaweights.hub.list_files import list_files
from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.records import FileRecord, Fragment, TensorRecord
from deltaweights.manifest.tally import Tally
from deltaweights.recipes.recipe import parse_recipe
from deltaweights.recipes.table import Table, parse_toml
from deltaweights.report import Report
from deltaweights.signing.bundle import Bundle, pae, parse_bundle
from deltaweights.signing.statement import parse_statement, statement_bytes
from deltaweights.staging.journal import read_journal
from deltaweights.staging.location import locate_target
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.text import strict_json
from tests.support.pairs import base_tensors, delta_tensors, save
from tests.support.staged import make_staging, under_lock
from tests.support.tokenizers_2023 import SMALL, published, trained
from tests.support.zips import DEFLATED, STORED, parts_of, saved, zipped
from tests.unit.checkpoint.test_torch_file import GOOD, GOOD_FILES, GOOD_STATES
from tests.unit.checkpoint.test_torch_legacy import saved as saved_legacy

WHERE = Path("given")


@dataclass(frozen=True)
class Target:
    """A reader: ``read(data)``, and ``examples()`` that it must accept."""

    read: Callable[[bytes], object]
    examples: Callable[[], list[bytes]]


class Held(Directory):
    """Files in memory, by name."""

    path = WHERE

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def names(self) -> list[str]:
        return sorted(self._files)

    def has(self, name: str) -> bool:
        return name in self._files

    def open(self, name: str) -> InputFile:
        if name not in self._files:
            raise InputOutputError("not there", where=self.path / name)
        return MemoryFile(self.path / name, self._files[name])


@cache
def scratch() -> Path:
    """Return a folder of this process, for readers that need a path."""
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108


# Weights.


def read_all(weights: WeightsFile) -> None:
    """Read every small tensor, and compare it with its checksum."""
    for tensor in [*weights.tensors.values(), *weights.extra_checksums]:
        read_tensor(tensor)


def read_tensor(tensor: LazyTensor) -> None:
    """Read a small tensor."""
    if tensor.spec.nbytes <= 2**20:
        tensor.source.read_into(memoryview(bytearray(tensor.spec.nbytes)), 0)
        verify_checksum(tensor)


def read_safetensors(data: bytes) -> None:
    read_all(open_safetensors(MemoryFile(WHERE, data)))


def read_torch(data: bytes) -> None:
    read_all(open_torch_file(MemoryFile(WHERE, data)))


def read_archive(data: bytes) -> None:
    path, into = scratch() / "x.zip", scratch() / "unpacked"
    path.write_bytes(data)
    into.mkdir(exist_ok=True)
    for left in into.iterdir():
        left.unlink()
    with closing(open_archive(path, lambda: OpenFolder.at(into), Report())) as directory:
        for name in directory.names():
            directory.read(name, 2**20)
    assert set(scratch().iterdir()) <= {path, into, scratch() / "staged"}, "written outside of the place to unpack into"


WEIGHT = torch.arange(12, dtype=torch.float16).reshape(3, 4)
STATE = {"w": WEIGHT, "t": torch.arange(6).reshape(2, 3).t(), "e": torch.empty(0)}


def of_safetensors() -> list[bytes]:
    plain = {name: tensor.contiguous() for name, tensor in STATE.items()}
    return [save_safetensors(plain, {"format": "pt"}), save_safetensors({}), save_safetensors({"a.b": torch.ones(())})]


def of_torch() -> list[bytes]:
    states = [GOOD_STATES[name]() for name in ("row36-tied", "row36-sliced", "row36-parameter", "row36-metadata")]
    return [saved(STATE), *map(saved, states), *GOOD_FILES.values()]


def of_pickles() -> list[bytes]:
    return [GOOD[0].data, *(archive_pickle(make()) for make in list(GOOD_STATES.values())[:8])]


def archive_pickle(state: object) -> bytes:
    return next(part.data for part in parts_of(saved(state)) if part.name.endswith("data.pkl"))


@cache
def checkpoint() -> Path:
    """Make a small checkpoint in a folder."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    return save(delta_tensors(base), scratch().parent / f"{scratch().name}-delta", "safetensors", 2)


def of_archives() -> list[bytes]:
    made = [make(checkpoint()) for make in (*list(STORED.values())[:4], *list(DEFLATED.values())[:5])]
    return [*made, zipped({"model.safetensors": of_safetensors()[0], "config.json": b"{}"})]


# Documents.


def as_json(*documents: object) -> list[bytes]:
    return [json.dumps(document).encode() for document in documents]


def read_an_index(data: bytes) -> None:
    index = read_index(Held({"x.json": data}), "x.json")
    index.check_total({})


def read_a_recipe(data: bytes) -> None:
    parse_recipe(parse_toml(data, "given"), "given")


def read_metas_params(data: bytes) -> None:
    read_params(Held({PARAMS: data}))


def read_a_config(data: bytes) -> None:
    read_companions(Held({"config.json": data}), frozenset(), "float16", "delta", "")
    table = Table(strict_json(data), "given")
    read_image_features(table)
    read_vision(table, table)


def read_a_tokenizer(data: bytes) -> None:
    """Read the files of a tokenizer, which are separated by one line, and names from contents by another."""
    files = dict(part.partition(b"\n")[::2] for part in data.split(b"\n\0\n"))
    read_files({name.decode("utf-8", "replace"): content for name, content in files.items()}, WHERE)


def read_an_ending(data: bytes) -> None:
    place = locate_target(scratch() / "staged" / "out")
    (make_staging(place).root / "ending.json").write_bytes(data)
    under_lock(place, ending.load_handoff)


def read_a_journal(data: bytes) -> None:
    place = locate_target(scratch() / "staged" / "out")
    (make_staging(place).root / "plan.json").write_text('{"identity":"plan1:test","arrivals":{}}')
    place.journal.write_bytes(data)
    under_lock(place, read_journal)


@dataclass(frozen=True)
class Told(Access):
    """A Hub with the answer ``answer``."""

    answer: bytes = b""

    def get_json(self, url: str, wanted: HubId) -> tuple[Any, dict[str, str]]:
        return strict_json(self.answer), {}

    def headers_of(self, url: str, wanted: HubId) -> dict[str, str]:
        return {}


def read_an_answer(data: bytes) -> None:
    """Read a Hub's answer about a repository."""
    list_files(Told("https://hub", None, WHERE, offline=False, answer=data), HubId("org/name"))


def read_an_id(data: bytes) -> None:
    hub_id(data.decode("utf-8", "surrogateescape"))


# Examples of documents.


def of_indexes() -> list[bytes]:
    return as_json(
        {
            "metadata": {"total_size": 24},
            "weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"},
        },
        {"weight_map": {"model.norm.weight": "pytorch_model.bin"}, "more": [1.5, None, True]},
    )


@cache
def merged() -> Path:
    """Merge a small pair; put the fragments of its shards beside the result."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    paths = save(base, checkpoint().parent / f"{scratch().name}-base", "safetensors", 1), checkpoint()
    target = checkpoint().parent / f"{scratch().name}-merged"
    apply_delta(*paths, target, max_shard_size="1KB")
    return target


def of_manifests() -> list[bytes]:
    return [(merged() / "manifest.json").read_bytes()]


def of_fragments() -> list[bytes]:
    digest = "0" * 64
    tensors = (
        TensorRecord("w", digest, digest, digest, Tally(1, sum=0.5)),
        TensorRecord("v", digest, None, digest, Tally()),
    )
    fragment = Fragment("plan1:test", "x.safetensors", FileRecord(3, digest), tensors)
    return ["".join(fragment.pieces()).encode()]


def of_recipes() -> list[bytes]:
    data = Path(recipes.__file__).parent / "data"
    return [path.read_bytes() for path in sorted(data.glob("*.toml"))[:6]]


def of_params() -> list[bytes]:
    return as_json(
        {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1},
        {
            "dim": 64,
            "multiple_of": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "n_layers": 2,
            "norm_eps": 1e-5,
            "ffn_dim_multiplier": 1.3,
            "rope_theta": 1e6,
        },
    )


def of_configs() -> list[bytes]:
    return as_json(
        {
            "model_type": "llava",
            "torch_dtype": "float16",
            "mm_vision_tower": "a/b",
            "mm_hidden_size": 1024,
            "mm_use_im_start_end": True,
        },
        {
            "architectures": ["LlamaForCausalLM"],
            "dtype": "bfloat16",
            "image_size": 224,
            "patch_size": 14,
            "num_attention_heads": 4,
            "hidden_size": 64,
        },
    )


def of_tokenizers() -> list[bytes]:
    return [b"\n\0\n".join(name.encode() + b"\n" + content for name, content in published(trained()).items())]


def of_models() -> list[bytes]:
    return [SMALL, trained()]


def read_a_model(data: bytes) -> None:
    merges_of(read_model(data, WHERE), WHERE)


def of_answers() -> list[bytes]:
    plain = {"rfilename": "config.json", "size": 3, "blobId": "0" * 40}
    large = {
        "rfilename": "x.bin",
        "size": 9,
        "blobId": "1" * 40,
        "lfs": {"sha256": "2" * 64, "size": 9, "pointerSize": 134},
    }
    return as_json({"sha": "a" * 40, "siblings": [plain, large]})


def of_journals() -> list[bytes]:
    marks = {name: [7, 9, 1_700_000_000_000_000_000] for name in ("config.json", "model.safetensors")}
    return [
        data for old in ({}, marks) for data in as_json({"version": 2, "plan": "plan1:test", "new": marks, "old": old})
    ]


def of_statements() -> list[bytes]:
    return [statement_bytes("dw1:x", {"a": "0" * 64, "b": "1" * 64}, {".git"})]


def of_bundles() -> list[bytes]:
    return [Bundle(payload, pae(payload), "0" * 64).to_bytes() for payload in of_statements()]


@cache
def ending_of_a_part() -> bytes:
    """Return what a part of a small merge leaves for the process that finishes it."""
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    folder = checkpoint().parent
    target = folder / f"{scratch().name}-parted"
    save(base, folder / f"{scratch().name}-base", "safetensors", 1)
    apply_part(folder / f"{scratch().name}-base", checkpoint(), target, part="1/2", max_shard_size="1KB")
    return (locate_target(target).root / "ending.json").read_bytes()


TARGETS: dict[str, Target] = {
    "safetensors": Target(read_safetensors, of_safetensors),
    "torch": Target(read_torch, of_torch),
    "pickle": Target(lambda data: read_state_dict(data, "given"), of_pickles),
    "legacy": Target(read_torch, lambda: [saved_legacy(STATE), saved_legacy({"w": WEIGHT, "v": WEIGHT.t()})]),
    "archive": Target(read_archive, of_archives),
    "file type": Target(
        detect_file_type, lambda: [*of_safetensors(), *of_torch()[:2], b"version https://git-lfs.github.com/spec/v1\n"]
    ),
    "json": Target(strict_json, lambda: [*of_indexes(), *of_configs()]),
    "index": Target(read_an_index, of_indexes),
    "manifest": Target(parse_manifest, of_manifests),
    "fragment": Target(Fragment.from_bytes, of_fragments),
    "recipe": Target(read_a_recipe, of_recipes),
    "params": Target(read_metas_params, of_params),
    "config": Target(read_a_config, of_configs),
    "sentencepiece": Target(read_a_model, of_models),
    "tokenizer": Target(read_a_tokenizer, of_tokenizers),
    "hub id": Target(read_an_id, lambda: [b"org/name", b"hf://org/name@v1.0", b"hf://name", b"a/b"]),
    "hub answer": Target(read_an_answer, of_answers),
    "ending": Target(read_an_ending, lambda: [ending_of_a_part()]),
    "journal": Target(read_a_journal, of_journals),
    "statement": Target(parse_statement, of_statements),
    "bundle": Target(parse_bundle, of_bundles),
}
