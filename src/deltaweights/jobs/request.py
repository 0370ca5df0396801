"""What a result is to be, as far as the user says.

Enters: options, as they are typed. Leaves: one value that goes through the whole first half of the job, checked. Never: a look at
the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltaweights.errors import UsageError
from deltaweights.hub.ids import ModelLocation, PathLike
from deltaweights.hub.locate import local_paths
from deltaweights.merge.plan import DTYPES, LAYOUTS, ORIGINAL
from deltaweights.merge.shards import CONTAINERS, TORCH
from deltaweights.util.sizes import parse_size


@dataclass(frozen=True)
class Wanted:
    """Dtypes are torch's names, None where the recipe or the inputs say; ``max_shard_size`` is bytes, or text such as "5GB".

    ``layout`` is one of ``LAYOUTS``, ``weights`` one of ``CONTAINERS``; ``vision_tower`` is None for the recipe's.
    """

    compute_dtype: str | None = None
    dtype: str | None = None
    max_shard_size: str | int = "5GB"
    layout: str = ORIGINAL
    weights: str = "safetensors"
    vision_tower: ModelLocation | None = None

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for what cannot be: a slip of the pen need not wait for the inputs."""
        for what, given, known in (
            ("dtype", self.dtype, DTYPES),
            ("layout", self.layout, LAYOUTS),
            ("format", self.weights, CONTAINERS),
        ):
            if given is not None and given not in known:
                raise UsageError(f"unknown {what}", found=given, expected=", ".join(known))
        if self.layout != ORIGINAL and self.container == TORCH:
            raise UsageError("layout transformers is written as safetensors alone", remedy="leave --format out")
        if self.layout == ORIGINAL and self.vision_tower is not None:
            remedy = "give --layout transformers, or leave --vision-tower out"
            raise UsageError("the original layout holds no vision tower", remedy=remedy)
        if isinstance(self.vision_tower, str) and not self.vision_tower:
            raise UsageError("--vision-tower is an empty path", remedy="is a variable unset?")
        parse_size(self.max_shard_size, "max shard size")

    @property
    def container(self) -> str:
        """How the weights are stored, by the name that manifests have for it."""
        return CONTAINERS[self.weights]

    @property
    def limit(self) -> int:
        """Most bytes of tensors per shard."""
        return parse_size(self.max_shard_size, "max shard size")

    @property
    def paths(self) -> list[PathLike]:
        """Paths among what is to be read besides the inputs."""
        return local_paths([] if self.vision_tower is None else [self.vision_tower])


USUAL = Wanted()
"""What one gets who says nothing."""
