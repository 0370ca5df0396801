"""Fuzzing by atheris (libFuzzer), which keeps inputs that reach new code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import resource
import shutil
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from random import Random

import atheris

with (
    contextlib.redirect_stderr(io.StringIO()),  # a line for each module
    atheris.instrument_imports(include=["deltaweights"], enable_loader_override=False),
):
    from tests.fuzz.law import hold
    from tests.fuzz.mutate import mutated
    from tests.fuzz.targets import TARGETS

MEBIBYTES = 250
"""More than the process has at the start: 200 that a reader may use, and what libFuzzer keeps."""

LONGEST = 65_536


@dataclass(frozen=True)
class Fuzzed:
    """The outcome: ``findings`` are files with inputs that broke the law; ``said`` is then the end of libFuzzer's report."""

    name: str
    executions: int
    findings: tuple[Path, ...]
    said: str


def start(name: str, work: Path, seconds: int, seed: int) -> int:
    """Fuzz a target in a forked process, in the folder ``work``; return its id."""
    process = os.fork()
    if process:
        return process
    work.mkdir(parents=True, exist_ok=True)
    log = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        _fuzz(name, work, seconds, seed)
    except BaseException:  # noqa: BLE001  (the parent process reads the log)
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _fuzz(name: str, work: Path, seconds: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    target, corpus = TARGETS[name], work / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, example in enumerate(target.examples()):
        (corpus / f"example-{number}").write_bytes(example)
        hold(target, example)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + MEBIBYTES

    def once(data: bytes) -> None:
        try:
            hold(target, data)
        except BaseException:
            (work / f"finding-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise

    def mutate(data: bytes, most_bytes: int, number: int) -> bytes:
        return mutated(data, most_bytes, Random(number), lambda given: bytes(atheris.Mutate(given, most_bytes)))  # noqa: S311

    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={LONGEST}",
        f"-rss_limit_mb={most}",
        "-timeout=60",
    ]
    arguments = [sys.argv[0], str(corpus), *options, f"-artifact_prefix={work}/finding-", "-print_final_stats=1"]
    atheris.Setup(arguments, once, custom_mutator=mutate)
    atheris.Fuzz()


def finished(name: str, work: Path, status: int) -> Fuzzed:
    """Return the outcome of a target whose process ended with ``status``."""
    log = (work / "log").read_text(errors="replace")
    runs = re.findall(r"(?:number_of_executed_units: *|Done |^#)(\d+)", log, re.MULTILINE)
    findings = tuple(sorted(work.glob("finding-*")))
    executions = int(runs[-1]) if runs else 0
    failed = status != 0 or bool(findings) or not executions
    if not failed:
        shutil.rmtree(work)
    return Fuzzed(name, executions, findings, f"{log[-4000:]}\n{name}: ended with {status}" if failed else "")
