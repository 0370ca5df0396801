"""Tests of the demo's pair: torch and transformers read it, and it is made without them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from deltaweights.errors import CheckFailed
from deltaweights.jobs import demo
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.demo import (
    FINE_TUNING_STEP,
    NEW_TOKENS,
    TOKENIZER,
    VOCABULARY,
    check_by_libraries,
    make_pair,
)
from tests.support.merging import files_of

TEXT = """
The lungs are clear. There is no pleural effusion and no pneumothorax. The heart is not enlarged. The bones are intact.
What is shown in this image? This is a chest X-ray. Is there evidence of fracture? No. Which organ is abnormal? The liver.
Hematoxylin and eosin stained section of the kidney with glomeruli and tubules, magnification times forty.
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("demo"))


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder, as torch reads them."""
    files = sorted(folder.glob("*.bin"))
    return {name: each for file in files for name, each in torch.load(file, weights_only=True).items()}


def test_torch_reads_the_pair(pair: tuple[Path, Path]) -> None:
    """All tensors of the index are where it says, in the dtypes of 2023; the delta is as small as a fine-tuned model's."""
    base, delta = map(load, pair)
    for folder, tensors in zip(pair, (base, delta), strict=True):
        index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
        assert index["weight_map"].keys() == tensors.keys()
        assert index["metadata"]["total_size"] == sum(each.nbytes for each in tensors.values())
    assert {each.dtype for name, each in base.items() if not name.endswith("inv_freq")} == {torch.float16}
    assert delta["lm_head.weight"].shape[0] == base["lm_head.weight"].shape[0] + len(NEW_TOKENS)
    spread = torch.cat([delta[name].float().flatten() for name in delta if "proj.weight" in name and name in base])
    assert spread.std().item() == pytest.approx(FINE_TUNING_STEP, rel=0.02)
    assert spread.mean().item() == pytest.approx(0, abs=FINE_TUNING_STEP / 100)


def test_the_bytes_are_the_same_everywhere(pair: tuple[Path, Path]) -> None:
    """Neither the machine nor the version of a library decides a byte: docs and users compare digests."""
    digest = hashlib.sha256()
    for folder in pair:
        for name, data in files_of(folder).items():
            digest.update(name.encode() + hashlib.sha256(data).digest())
    assert digest.hexdigest() == "32699b0034420d1a74a37c6defb748f241dfa21f27c8c5942dd6b94774a5048c"


def test_the_tokenizer_is_what_tokenizers_trains(tmp_path: Path) -> None:
    """The file that the package has is the library's own, but for what newer versions add."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106  (a token of text, not of access)
    trained.pre_tokenizer = pre_tokenizers.ByteLevel()
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(TEXT.splitlines(), trainer)
    trained.add_special_tokens(list(NEW_TOKENS))
    kept = Tokenizer.from_file(str(Path(demo.__file__).parent / TOKENIZER))
    assert kept.get_vocab() == trained.get_vocab()
    for line in (*TEXT.splitlines(), "<im_start> X-ray<im_end>", "Größe"):
        assert kept.encode(line).ids == trained.encode(line).ids


def test_libraries_confirm_the_merge(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Sums of numpy, and the reader of safetensors, agree; one changed bit is found."""
    merged = Path(apply_delta(*pair, tmp_path / "merged").target)
    assert check_by_libraries(merged) == 41
    (file,) = merged.glob("*.safetensors")
    data = np.fromfile(file, np.uint8)
    data[-1] ^= 1
    data.tofile(file)
    with pytest.raises(CheckFailed) as caught:
        check_by_libraries(merged)
    assert caught.value.tensor is not None
