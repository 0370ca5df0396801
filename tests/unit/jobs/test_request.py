"""What is checked before any input is opened, and what the pipeline is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltaweights.errors import UsageError
from deltaweights.hub.ids import HubId, ModelSource
from deltaweights.jobs.options import Options
from deltaweights.jobs.request import Request, make_request
from deltaweights.merge.operation import Operation
from tests.support.errors import refused


def request(**options: Any) -> Request:
    """Make the request of a merge of two paths that do not exist."""
    return make_request(Operation.APPLY, "base", "delta", "out", Options(**options))


def test_paths_and_hub_ids_are_told_apart_once() -> None:
    """Text becomes a path or a repository; repositories pass as they are."""
    source = ModelSource(HubId("acme/delta", "v1"))
    made = make_request(Operation.APPLY, "hf://acme/base", source, "out", Options()).inputs
    assert (made.base, made.primary) == (ModelSource(HubId("acme/base")), source)
    assert request().inputs.base == Path("base")
    assert request().paths == [Path("base"), Path("delta")]


def test_what_is_not_given_is_the_recipe_s() -> None:
    """Without base and delta, those of the recipe are meant, at its commits."""
    made = make_request(Operation.APPLY, None, None, "out", Options(recipe="llava-med-7b")).inputs
    assert isinstance(made.base, ModelSource)
    assert isinstance(made.primary, ModelSource)
    assert made.primary.id.repo == "microsoft/llava-med-7b-delta"
    with refused(UsageError, problem="--base is missing", remedy="give it, or name a recipe: deltaweights recipes"):
        make_request(Operation.APPLY, None, "delta", "out", Options())


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"compute_dtype": "float8"}, {"problem": "unknown dtype", "found": "float8"}),
        ({"dtype": "int8"}, {"problem": "unknown dtype", "found": "int8"}),
        ({"layout": "meta"}, {"problem": "unknown layout", "expected": "original, transformers"}),
        ({"weights": "gguf"}, {"problem": "unknown format", "expected": "safetensors, bin"}),
        ({"layout": "transformers", "weights": "bin"}, {"remedy": "leave --format out"}),
        ({"vision_tower": "clip"}, {"problem": "the original layout has no vision tower"}),
        ({"layout": "transformers", "vision_tower": ""}, {"problem": "--vision-tower is an empty path"}),
        ({"workers": 0}, {"problem": "no workers", "found": 0}),
        ({"recipe": "llava-med-7b", "compute_dtype": "float32"}, {"found": "float32", "expected": "float16"}),
    ],
)
def test_typos_are_refused_before_inputs_are_opened(options: dict[str, Any], fields: dict[str, Any]) -> None:
    """An option that cannot be obeyed ends with 2, though the inputs do not exist."""
    with refused(UsageError, **fields):
        request(**options)


@pytest.mark.parametrize("place", ["base", "delta", "target"])
def test_empty_paths_are_refused(place: str) -> None:
    """An empty path is mostly a variable that is unset, and never the working folder."""
    places = {"base": "b", "delta": "d", "target": "t"} | {place: ""}
    with refused(UsageError, problem=f"{place} is an empty path", remedy="is a variable unset?"):
        make_request(Operation.APPLY, places["base"], places["delta"], places["target"], Options())


def test_a_dry_run_keeps_nothing_of_the_hub() -> None:
    """Headers and samples are read by ranges, unless whole files are to be hashed."""
    for hashed in (False, True):
        made = make_request(Operation.APPLY, "b", "d", "out", Options(hash_inputs=hashed), dry_run=True)
        assert made.inputs.hub is not None
        assert made.inputs.hub.stream is not hashed
