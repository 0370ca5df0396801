"""Errors about one malformed file, without its path and remedy at every check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import MalformedInput


@dataclass(frozen=True)
class MalformedAt:
    """Makes ``MalformedInput`` errors about the file ``where``; ``remedy`` is for those without their own."""

    where: str | Path
    remedy: str

    def __call__(
        self,
        problem: str,
        found: object = None,
        expected: object = None,
        remedy: str = "",
        tensor: str | None = None,
        code: ErrorCode | None = None,
    ) -> MalformedInput:
        return MalformedInput(
            problem,
            where=self.where,
            tensor=tensor,
            found=found,
            expected=expected,
            remedy=remedy or self.remedy,
            code=code,
        )
