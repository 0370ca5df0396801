"""Asks a Hub, or a mirror of one, which files a repository has, with sizes and hashes.

The Hub's listing states both. Mirrors such as olah and aimirror pass its names on and drop the rest; most of them still answer
``/tree``, which ``hf`` asks, and the headers of a file state them, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from urllib.parse import quote, urljoin, urlsplit

from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError
from deltaweights.hub.access import CHECK_ENDPOINT, Access, NoSuchPage
from deltaweights.hub.ids import HubId
from deltaweights.hub.repo_listing import (
    COMMIT,
    MAX_FILE_BYTES,
    SHA256,
    HubFile,
    RepoListing,
    at_top,
    in_folders,
    names_only,
    parse_files,
    parse_tree,
    parse_unusable,
    without_details,
)
from deltaweights.util.interruption import run_in_side_thread
from deltaweights.util.text import Json

LARGEST_IN_GIT = 10_000_000
"""Bytes. The Hub takes larger files by LFS or Xet only: who states nothing but git's hash of one has the hash of its pointer.

https://huggingface.co/docs/hub/repositories-getting-started
"""

TEXTS = (".json", ".jsonl", ".md", ".py", ".txt", ".gitattributes", "LICENSE")
"""Endings of files that the Hub keeps in git."""

MOST_PAGES, MOST_ASKED = 200, 500
"""Of ``/tree``, a thousand files each, and of files whose headers are asked for."""


def list_files(access: Access, wanted: HubId) -> RepoListing:
    """Return the commit of ``wanted`` and its files. Raises ``InputOutputError``."""
    return run_in_side_thread(lambda: _list_files(access, wanted))


def _list_files(access: Access, wanted: HubId) -> RepoListing:
    revision = quote(wanted.revision or "main", safe="")
    try:
        answer, _ = access.get_json(
            f"{access.endpoint}/api/models/{wanted.repo}/revision/{revision}?blobs=true", wanted
        )
        commit, siblings = answer["sha"], answer["siblings"]
        files, unusable, bare = parse_files(siblings), parse_unusable(siblings), without_details(siblings)
    except (LookupError, TypeError, AttributeError) as error:
        raise access.not_a_hub() from error
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise InputOutputError("the Hub named no valid commit", where=str(wanted), found=commit, remedy="try again")
    at = HubId(wanted.repo, commit)
    if bare:
        named = {name: HubFile(name, -1, None, "") for name in names_only(siblings)}
        files = named | files | _tree(access, at)
    lfs_is_stated = any(file.sha256 for file in files.values())
    doubtful = {name: file for name, file in files.items() if _is_doubtful(file, lfs_is_stated=lfs_is_stated)}
    for file in list(at_top(doubtful).values())[:MOST_ASKED]:
        files[file.name] = _with_headers(access, at, file)
    top = {name: file for name, file in at_top(files).items() if file.size >= 0}
    if at_top(files) and not top:
        problem, remedy = "states the size of no file", f"{CHECK_ENDPOINT}: use the Hub, or another mirror"
        raise InputOutputError(problem, where=f"{access.endpoint}/{at}", remedy=remedy, code=ErrorCode.NETWORK)
    return RepoListing(wanted.repo, commit, top, in_folders(files), frozenset(in_folders(doubtful)), unusable)


def _is_doubtful(file: HubFile, *, lfs_is_stated: bool) -> bool:
    """Return whether the size is unknown, or the hash may be that of an LFS pointer."""
    if file.sha256 is not None and file.size >= 0:
        return False
    may_be_pointer = not lfs_is_stated and not file.name.endswith(TEXTS)
    return file.size < 0 or not file.git_sha1 or file.size > LARGEST_IN_GIT or may_be_pointer


def _tree(access: Access, at: HubId) -> dict[str, HubFile]:
    """Return the files of ``/tree``, page by page; none where the server does not have it."""
    files: dict[str, HubFile] = {}
    url = f"{access.endpoint}/api/models/{at.repo}/tree/{at.revision}?recursive=true"
    for _ in range(MOST_PAGES):
        try:
            entries, headers = access.get_json(url, at)
            files |= parse_tree(entries)
        except NoSuchPage:
            break
        except (LookupError, TypeError, AttributeError) as error:
            raise access.not_a_hub() from error
        following = _next_page(headers)
        if following is None:
            break
        # A mirror may pass on the address of the Hub itself: whoever set HF_ENDPOINT wants to ask the mirror.
        parts = urlsplit(urljoin(url, following))
        url = f"{access.endpoint}/api/models/{at.repo}/tree/{at.revision}?{parts.query}"
    return files


def _next_page(headers: Mapping[str, str]) -> str | None:
    """Return the address of the next page (RFC 8288), None on the last one."""
    found = re.search(r'<([^<>]*)>\s*;[^,]*\brel="?next"?', headers.get("link", ""))
    return found.group(1) if found else None


def _with_headers(access: Access, at: HubId, file: HubFile) -> HubFile:
    """Return a file with the size and the hash that its headers state; without a hash where they state none."""
    url = f"{access.endpoint}/{at.repo}/resolve/{at.revision}/{quote(file.name)}"
    try:
        headers = access.headers_of(url, at)
    except NoSuchPage:
        headers = {}
    tag = headers.get("x-linked-etag") or headers.get("etag", "")
    digits = tag.removeprefix("W/").strip('"')
    size = _size(headers.get("x-linked-size")) if "x-linked-size" in headers else _size(headers.get("content-length"))
    if file.size >= 0 and size != file.size and "x-linked-size" not in headers:
        size = file.size
    key = f"unstated-{sha256(f'{at}/{file.name}'.encode()).hexdigest()[:40]}"
    is_sha256, is_git = SHA256.fullmatch(digits), COMMIT.fullmatch(digits)
    return replace(
        file,
        size=size,
        sha256=digits if is_sha256 else None,
        git_sha1=digits if is_git else "",
        unstated_key="" if is_sha256 or is_git else key,
    )


def with_size(access: Access, at: HubId, file: HubFile) -> HubFile:
    """Return the same of a file that is needed. Raises ``InputOutputError`` where the headers do not state its size."""
    found = _with_headers(access, at, file)
    if found.size < 0:
        problem, remedy = (
            "the server does not state the size of this file",
            f"{CHECK_ENDPOINT}: use the Hub, or another mirror",
        )
        raise InputOutputError(problem, where=f"{at}/{file.name}", remedy=remedy, code=ErrorCode.NETWORK)
    return found


def _size(value: Json) -> int:
    """Return the number of bytes that a header states; -1 where it states none."""
    text = str(value)
    return int(text) if re.fullmatch(r"\d{1,15}", text) and int(text) < MAX_FILE_BYTES else -1
