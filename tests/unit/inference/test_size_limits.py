"""Implausible sizes in documents are found before transformers sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaweights.inference.model_folder import read_model_folder
from deltaweights.inference.size_limits import MAX_VOCABULARY_BYTES, implausible_size
from tests.support.model_changes import Change, both, document, set_text

SIZES: dict[str, tuple[Change, tuple[str, str]]] = {
    "more-layers-than-tensors": (
        set_text(num_hidden_layers=81),
        ("config.json", "num_hidden_layers is 81, and the folder has 80 tensors"),
    ),
    "a-name-for-each-of-a-billion-labels": (
        document("config.json", lambda config: config["vision_config"].update(num_labels=10**9)),
        ("config.json", "num_labels is 1,000,000,000, more than any model has"),
    ),
    "an-image-larger-than-memory": (
        document("preprocessor_config.json", lambda given: given.update(crop_size={"height": 10**9, "width": 28})),
        ("preprocessor_config.json", "height is 1,000,000,000, more than the model takes, 1,024"),
    ),
    "an-image-wider-than-the-model-takes": (
        document(
            "preprocessor_config.json", lambda given: given.update(size={"shortest_edge": 2000}, do_center_crop=False)
        ),
        ("preprocessor_config.json", "shortest_edge is 2,000, more than the model takes, 1,024"),
    ),
    "an-image-of-a-million-tokens": (
        both(
            document("preprocessor_config.json", lambda given: given.update(crop_size={"height": 1024, "width": 1024})),
            document("processor_config.json", lambda given: given.update(patch_size=1)),
        ),
        ("processor_config.json", "patch_size is 1, for images 1,024 pixels wide"),
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_implausible_numbers_are_found(name: str, llava: Path) -> None:
    """Numbers for which transformers would loop or allocate are found, with their document and key."""
    change, expected = SIZES[name]
    change(llava)
    assert implausible_size(read_model_folder(llava)) == expected


def test_a_whole_folder_has_no_implausible_size(whole: Path) -> None:
    """The numbers of a real model are within the limits."""
    assert implausible_size(read_model_folder(whole)) is None


def test_a_tokenizer_larger_than_any_is_found(llava: Path) -> None:
    """A tokenizer of more than 64 MiB is refused unread."""
    with open(llava / "tokenizer.json", "ab") as file:
        file.truncate(MAX_VOCABULARY_BYTES + 1)
    found = implausible_size(read_model_folder(llava))
    assert found == ("tokenizer.json", "67,108,865 bytes, more than any tokenizer has")
