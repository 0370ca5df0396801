"""Verifications as JUnit XML that GitLab and Jenkins read: https://docs.gitlab.com/ci/testing/unit_test_reports/."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from deltaweights.errors import DeltaweightsError, printable
from deltaweights.manifest.ci_report import CheckedModel
from deltaweights.manifest.file_parts import WEIGHTS, part_of
from deltaweights.manifest.verify_report import CONTENT, FILE, VerifyReport

SUITE = "deltaweights verify"


def junit_bytes(outcomes: Sequence[CheckedModel]) -> bytes:
    """Return a document with a suite for each model: a test per file, and one for the content digest if it was checked.

    A failed test lists its problems. Where only the weights count, there are tests for them alone. A model that could not be
    verified has one test, which ended with an error.
    """
    root = ElementTree.Element("testsuites")
    suites = [_add_suite(root, outcome) for outcome in outcomes]
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _tests_of(report: VerifyReport, *, weights_only: bool) -> dict[str, list[str]]:
    """Return the problems of each test, by its name."""
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
    return tests


def _add_suite(root: ElementTree.Element, outcome: CheckedModel) -> ElementTree.Element:
    if isinstance(outcome.result, DeltaweightsError):
        tests, fault, kind = {"verify": [str(outcome.result)]}, "error", type(outcome.result).__name__
    else:
        tests, fault, kind = _tests_of(outcome.result, weights_only=outcome.weights_only), "failure", "CheckFailed"
    counts = {"tests": len(tests), "failures": 0, "errors": 0, "skipped": 0}
    counts[f"{fault}s"] = len([lines for lines in tests.values() if lines])
    attributes = {"name": SUITE} | {key: str(count) for key, count in counts.items()}
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for name, lines in tests.items():
        about = {"classname": printable(outcome.title), "name": printable(name)}
        test = ElementTree.SubElement(suite, "testcase", about)
        if lines:
            shown = list(map(printable, lines))
            found = ElementTree.SubElement(test, fault, {"message": shown[0], "type": kind})
            found.text = "\n".join(shown)
    return suite
