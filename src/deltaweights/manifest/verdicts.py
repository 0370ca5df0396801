"""What a finished verification found, part by part."""

from __future__ import annotations

from collections.abc import Collection

from deltaweights.errors import printable
from deltaweights.manifest.digests import Digests
from deltaweights.manifest.file_parts import EXTRAS, LOADER_FILES, PARTS, WEIGHTS
from deltaweights.manifest.folder_check import FolderCheck
from deltaweights.manifest.records import SUMS
from deltaweights.manifest.verify_report import NOT_PINNED, PartVerdict, Problem, VerifyReport
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

BY_CONTENT = "the expected content digest"

MOST_NAMED = 5  # other files that a verdict names


def report_of(
    check: FolderCheck, digest: str | None, digests: Digests | None = None, *, recomputed: bool
) -> VerifyReport:
    """Return all that was found; ``digests`` have the sizes where nothing states them."""
    read = digests.files if digests is not None else {}
    sizes = {name: stated.size or (read[name].size if name in read else 0) for name, stated in check.stated.items()}
    parts = {name: check.part(name) for name in sizes}
    passed_over = set() if check.source.only is not None else set(check.source.entries.passed_over) - {"model.sig"}
    others = check.harmless | check.litter | passed_over
    verdicts = [
        verdict_of(
            part,
            [size for name, size in sizes.items() if parts[name] == part],
            check.problems,
            check.compared_with or (BY_CONTENT if check.content_matches and part == WEIGHTS else ""),
            others if part == EXTRAS else (),
            unread=sum(parts.get(name) == part for name in check.source.unread),
        )
        for part in PARTS
    ]
    where = check.source.where
    documents = {check.title} | ({SUMS} if check.is_result and check.manifest else set())
    notes = [
        f"{where(name)} was not looked at: another manifest counts"
        for name in sorted(check.ignored - check.kept_inside)
    ]
    notes += [f"{where(name)} is not in {check.compared_with}; no loader reads it" for name in sorted(check.harmless)]
    notes += [f"{where(name)} is no part of the checkpoint, and does no harm" for name in sorted(check.litter)]
    unread = check.unread_folders - {name.partition("/")[0] for name in check.stated if "/" in name}
    notes += [f"{where(name)} is a folder, and was not looked at" for name in sorted(unread - check.litter)]
    return VerifyReport(
        target=check.source.title,
        content_digest=digest,
        recomputed=recomputed,
        manifest_sha256=check.record.sha256 if check.record else None,
        files=len(sizes),
        bytes=sum(sizes.values()),
        weights=verdicts[0],
        loader_files=verdicts[1],
        extras=verdicts[2],
        compared_with=check.compared_with,
        unread=len(check.source.unread & set(sizes)),
        problems=tuple(check.problems),
        listed=tuple(sorted({*sizes} | (set() if check.by_hashes else documents))),
        notes=tuple(notes),
    )


def verdict_of(
    part: str,
    sizes: Collection[int],
    problems: Collection[Problem],
    compared_with: str,
    others: Collection[str] = (),
    unread: int = 0,
) -> PartVerdict:
    """Return the verdict on ``part``, given the sizes of its files and all problems; ``others`` are harmless files to name.

    ``unread`` counts the files that were not read, but only listed.
    """
    found = [problem for problem in problems if problem.part == part]
    ok, total = not found and bool(compared_with), sum(sizes)
    files = f"{counted(len(sizes), 'file')} ({human_bytes(total)})"
    if ok:
        intact = [f"{files}, compared with {compared_with}"] if sizes else []
        intact += ["all tensors, compared with " + BY_CONTENT] if compared_with == BY_CONTENT else []
        if unread:
            intact = [f"{files}; the Hub states the hashes of {compared_with}, {unread:,} not read"]
        sentence = (
            f"{'as listed' if unread else 'intact'}: {'; '.join([*intact, *_named(others)])}"
            if intact or others
            else "none"
        )
    elif not compared_with:
        sentence = "not compared: nothing here states their hashes"
    elif all(problem.is_pin for problem in found):
        sentence = f"{NOT_PINNED}: {files}"
    else:
        sentence = f"{counted(len(found), 'problem')}: {_CONSEQUENCES[part]}"
    return PartVerdict(ok, len(sizes), total, len(found), sentence)


_CONSEQUENCES = {
    WEIGHTS: "do not use these weights",
    LOADER_FILES: "a loader may not load what was recorded",
    EXTRAS: "in files that no loader reads",
}


def _named(names: Collection[str]) -> list[str]:
    """Return a phrase about files that are neither stated nor read by any loader; none if there are none."""
    if not names:
        return []
    shown = ", ".join(printable(name) for name in sorted(names)[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return [f"beside what is listed, read by no loader: {shown}{more}"]
