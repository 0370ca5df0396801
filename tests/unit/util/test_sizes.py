"""Sizes as people write and read them."""

from __future__ import annotations

import pytest

from deltaweights.errors import UsageError
from deltaweights.util.sizes import human_bytes, parse_size
from tests.support.errors import refused


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000", 10**6),
        (1000, 1000),
        ("5GB", 5 * 10**9),
        (" 5 gb ", 5 * 10**9),
        ("2KB", 2000),
        ("512MiB", 512 * 2**20),
        ("1TiB", 2**40),
        ("7B", 7),
        ("0.2 MB", 200_000),
        ("1.5gib", 3 * 2**29),
        (".5 Gb", 5 * 10**8),
        ("5.kb", 5000),
    ],
)
def test_units(text: str | int, size: int) -> None:
    """``GB`` is 10^9 bytes, ``GiB`` is 2^30, and a large number without a unit counts bytes."""
    assert parse_size(text, "--size") == size


@pytest.mark.parametrize(
    "text", ["", "0", "0GB", "-1", "0.1B", "0.0GB", ".GB", "1,5GB", "1e3MB", "5XB", "GB", "1" * 16, "5 G B"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """The error names the option and the text."""
    with refused(UsageError, problem="--size is not a size", found=text):
        parse_size(text, "--size")


@pytest.mark.parametrize("text", ["1", "5", " 13 ", "999999", "0.2"])
def test_a_small_number_needs_a_unit(text: str) -> None:
    """Whoever writes 5 means gigabytes, and would get shards of 5 bytes; a whole number in Python counts bytes."""
    remedy = f"write {text.strip()}GB if you mean gigabytes, {text.strip()}B if you mean bytes"
    with refused(UsageError, problem="--size has no unit", found=text, remedy=remedy, code="E-NOT-A-SIZE"):
        parse_size(text, "--size")
    if text.strip().isdigit():
        assert parse_size(int(text), "--size") == int(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (13_476_851_712, "13.5 GB"),
        (10**15, "1e+03 TB"),
    ],
)
def test_three_digits_and_a_unit(count: int, text: str) -> None:
    """The unit is the one in which the number is below 1000 when it is rounded."""
    assert human_bytes(count) == text
