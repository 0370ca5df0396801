"""A small result to verify, and ways to change it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from blake3 import blake3

from deltaweights.jobs.apply import apply_delta
from deltaweights.manifest.verify_report import Problem, VerifyReport
from tests.support.pairs import make_pair

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merge a pair into a few small shards; tests must not change it."""
    folder = tmp_path_factory.mktemp("original")
    base, delta = make_pair(folder)
    return Path(apply_delta(base, delta, folder / "merged", max_shard_size=45_000).target)


@pytest.fixture
def merged(original: Path, tmp_path: Path) -> Path:
    """Return a copy of the merged checkpoint that may be changed."""
    return Path(shutil.copytree(original, tmp_path / "merged"))


def digest_of(folder: Path) -> str:
    """Return the content digest that a manifest states."""
    return str(read(folder)["result"]["content_digest"])


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder."""
    document: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return document


def write(folder: Path, document: dict[str, Any]) -> None:
    """Replace the manifest of a folder, and make SHA256SUMS consistent with it, as a careful forger does."""
    (folder / MANIFEST).write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    sums = {name: file["sha256"] for name, file in document["result"]["files"].items()}
    sums[MANIFEST] = sha256(folder / MANIFEST)
    (folder / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forge_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and its record in manifest and SHA256SUMS."""
    (folder / name).write_bytes(data)
    document = read(folder)
    document["result"]["files"][name] = {"size": len(data), "sha256": sha256(folder / name)}
    write(folder, document)


def restate_digest(document: dict[str, Any]) -> None:
    """Make a manifest's content digest follow from the tensors that it lists."""
    lines = [
        json.dumps([name, t["dtype"], t["shape"], t["digest"]], ensure_ascii=False, separators=(",", ":")) + "\n"
        for name, t in sorted(document["result"]["tensors"].items(), key=lambda item: item[0].encode())
    ]
    document["result"]["content_digest"] = f"dw1:{blake3(''.join(lines).encode()).hexdigest()}"


def only_problem(report: VerifyReport, of: int = 1) -> Problem:
    """Return the first problem of a report that has exactly ``of`` problems."""
    assert len(report.problems) == of, report.problems
    return report.problems[0]


def shards_of(folder: Path) -> list[Path]:
    """Return the weights files of a folder."""
    return sorted(folder.glob("*.safetensors"))


def cases_of(document: bytes) -> dict[str, str | None]:
    """Return the messages of failures and errors in a JUnit document by test; assert that the counts are right."""
    root = ElementTree.fromstring(document)  # noqa: S314  (our own)
    (suite,) = root
    cases = {str(case.get("name")): case for case in suite}
    assert (root.tag, suite.tag, {case.tag for case in suite}) == ("testsuites", "testsuite", {"testcase"})
    for element in (root, suite):
        assert int(str(element.get("tests"))) == len(list(suite)) == len(cases)
        assert int(str(element.get("failures"))) == sum(case.find("failure") is not None for case in suite)
        assert int(str(element.get("errors"))) == sum(case.find("error") is not None for case in suite)
    faults = {name: next(iter(case), None) for name, case in cases.items()}
    return {name: None if fault is None else fault.get("message") for name, fault in faults.items()}
