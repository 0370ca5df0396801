"""JUnit reports of verifications."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from deltaweights.errors import InputOutputError
from deltaweights.manifest.ci_report import CheckedModel
from deltaweights.manifest.junit import junit_bytes
from deltaweights.manifest.verify import verify
from deltaweights.manifest.verify_report import VerifyReport
from tests.support.results import cases_of, digest_of, merged, original, shards_of

__all__ = ["merged", "original"]  # fixtures


def junit_of(report: VerifyReport) -> bytes:
    """Return the document of one report."""
    return junit_bytes([CheckedModel(report.target, report)])


def test_junit_has_a_test_for_each_file(merged: Path) -> None:
    """Each file is a test that passes, including manifest and sums; with a pin, so is the content digest."""
    names = {path.name for path in merged.iterdir()}
    assert cases_of(junit_of(verify(merged))) == dict.fromkeys(names)
    pinned = verify(merged, expect=digest_of(merged))
    assert cases_of(junit_of(pinned)) == dict.fromkeys({*names, "content digest"})


def test_junit_says_what_failed(merged: Path) -> None:
    """A failed test has the printed line as its message; extra files are tests too, with escaped names."""
    expect = digest_of(merged)
    (merged / "config.json").write_text("{}")
    (merged / "e\x1b[31m<x>&\ufffe.py").write_text("?")
    data = bytearray(shards_of(merged)[0].read_bytes())
    data[-1] ^= 1
    shards_of(merged)[0].write_bytes(data)
    report = verify(merged, expect=expect)
    document = junit_of(report)
    tests = cases_of(document)
    assert {name for name, message in tests.items() if message} == {
        "config.json", shards_of(merged)[0].name, "content digest", r"e\x1b[31m<x>&\ufffe.py",
    }  # fmt: skip
    lines = list(map(str, report.problems))
    assert {message for message in tests.values() if message} <= set(lines)
    assert len([message for message in tests.values() if message]) == 4
    assert not {chr(code) for code in range(32) if code != 10} & set(document.decode())
    text = "".join(ElementTree.fromstring(document).itertext())  # noqa: S314  (our own)
    assert all(line in text for line in lines)


def test_junit_of_an_error_is_an_error() -> None:
    """An error is one test that ends with the error."""
    outcome = CheckedModel("a\x00b", InputOutputError("cannot list", where="a"))
    assert cases_of(junit_bytes([outcome])) == {"verify": "a: cannot list"}


def test_several_models_are_several_suites(merged: Path) -> None:
    """Each model has a suite; the counts of the document are their sums."""
    (merged / "config.json").write_text("{}")
    report = verify(merged)
    error = InputOutputError("cannot list", where="a")
    root = ElementTree.fromstring(junit_bytes([CheckedModel("one", report), CheckedModel("two", error)]))  # noqa: S314
    assert [suite.get("failures") for suite in root] == ["1", "0"]
    assert [suite.get("errors") for suite in root] == ["0", "1"]
    assert (root.get("failures"), root.get("errors")) == ("1", "1")
    assert root.get("tests") == str(len(report.listed) + 1)
    assert {test.get("classname") for test in root.iter("testcase")} == {"one", "two"}
