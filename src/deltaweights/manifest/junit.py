"""The result of a verification as JUnit XML that GitLab and Jenkins read: https://docs.gitlab.com/ci/testing/unit_test_reports/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from deltaweights.errors import printable
from deltaweights.manifest.file_parts import WEIGHTS, part_of
from deltaweights.manifest.verify_report import CONTENT, FILE, VerifyReport

SUITE = "deltaweights verify"


def junit_bytes(report: VerifyReport, *, weights_only: bool = False) -> bytes:
    """Return a document with a test per file, and one for the content digest if it was checked; a failed one lists its problems.

    With ``weights_only`` there are tests for the weights alone.
    """
    listed = report.listed if not weights_only else filter(lambda name: part_of(name) == WEIGHTS, report.listed)
    problems: dict[str, list[str]] = {name: [] for name in listed}
    of_content: list[str] = []
    for problem in report.problems:
        if weights_only and problem.part != WEIGHTS:
            continue
        of_test = problems.setdefault(problem.file, []) if problem.about == FILE else of_content
        of_test.append(str(problem))
    tests = dict(sorted(problems.items()))
    if report.recomputed or of_content:
        tests[CONTENT] = of_content
    return _document(report.target, tests, "failure", "CheckFailed")


def junit_of_error(target: str, error: Exception) -> bytes:
    """Return a document with one test, which ended with an error."""
    return _document(target, {"verify": [str(error)]}, "error", type(error).__name__)


def _document(target: str, tests: Mapping[str, Sequence[str]], outcome: str, kind: str) -> bytes:
    counts = {"tests": len(tests), "failures": 0, "errors": 0, "skipped": 0}
    counts[f"{outcome}s"] = len([lines for lines in tests.values() if lines])
    totals = {key: str(count) for key, count in counts.items()}
    root = ElementTree.Element("testsuites", totals)
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE} | totals)
    for name, lines in tests.items():
        test = ElementTree.SubElement(suite, "testcase", {"classname": printable(target), "name": printable(name)})
        if lines:
            shown = list(map(printable, lines))
            fault = ElementTree.SubElement(test, outcome, {"message": shown[0], "type": kind})
            fault.text = "\n".join(shown)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
