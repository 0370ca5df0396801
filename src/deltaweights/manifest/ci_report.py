"""What CI shows of verifications: a job summary in Markdown, and annotations as GitHub's workflow commands.

Names come from strangers' files: they stand in code spans, and as data of a command they are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltaweights.errors import DeltaweightsError, printable
from deltaweights.manifest.verify_report import VerifyReport
from deltaweights.util.text import counted

MOST_SHOWN = 50  # problems of one model; GitHub shows ten annotations of a step

_PLAIN = re.compile(r"(?:[A-Za-z0-9 ,;:()'-]|\.(?=\d))*")  # nothing that Markdown makes a link or a mark of


@dataclass(frozen=True)
class CheckedModel:
    """What became of one model: a report, or the error that kept it from being verified."""

    title: str
    result: VerifyReport | DeltaweightsError
    weights_only: bool = False

    @property
    def ok(self) -> bool:
        """Whether all that counts holds."""
        if isinstance(self.result, DeltaweightsError):
            return False
        return self.result.weights.ok if self.weights_only else self.result.ok

    @property
    def problems(self) -> list[str]:
        """A line for each problem."""
        return (
            [str(self.result)] if isinstance(self.result, DeltaweightsError) else list(map(str, self.result.problems))
        )


def summary(outcomes: Sequence[CheckedModel]) -> str:
    """Return the job summary."""
    failed = sum(not outcome.ok for outcome in outcomes)
    verdict = f"{failed} of {counted(len(outcomes), 'model')} failed" if failed else "all holds"
    return "\n".join(
        [f"## deltaweights verify: {verdict}", *(line for each in outcomes for line in _section(each)), ""]
    )


def _section(outcome: CheckedModel) -> Iterator[str]:
    yield from ("", f"### {'Verified' if outcome.ok else 'FAILED'}: {code_span(outcome.title)}", "")
    if isinstance(outcome.result, VerifyReport):
        for part, verdict in outcome.result.verdicts():
            yield f"- **{part}**: {'' if verdict.ok else 'FAILED: '}{_text(verdict.sentence)}"
        if outcome.ok and outcome.result.base is not None:
            yield f"- **base**: {_text(outcome.result.base.text)}"
        if outcome.ok and outcome.result.content_digest is not None:
            yield f"- **content digest**: {code_span(outcome.result.content_digest)}"
    problems = outcome.problems
    if problems:
        yield from ("", f"{counted(len(problems), 'problem')}:", "")
        yield from (f"- {code_span(problem)}" for problem in problems[:MOST_SHOWN])
    if len(problems) > MOST_SHOWN:
        yield f"- and {len(problems) - MOST_SHOWN:,} more"


def workflow_commands(outcomes: Sequence[CheckedModel]) -> Iterator[str]:
    """Yield a workflow command for each problem."""
    for outcome in outcomes:
        problems = outcome.problems
        shown = [*problems[:MOST_SHOWN]]
        if len(problems) > MOST_SHOWN:
            shown.append(f"and {len(problems) - MOST_SHOWN:,} more problems")
        title = _property(f"deltaweights verify {outcome.title}")
        yield from (f"::error title={title}::{_data(problem)}" for problem in shown)


def code_span(text: str) -> str:
    """Return ``text`` as a code span of Markdown, whatever is in it."""
    text = printable(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _text(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else code_span(text)


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
