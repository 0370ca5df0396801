"""Responses of the loopback Hub (tests/support/hub_server.py): the real Hub's paths, headers, JSON and messages."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlencode

from tests.support.hub_content import Blob, Entry, Files, Refusal, Repository, Tree, listing
from tests.support.hub_faults import METADATA, Asked, Faults, Place
from tests.support.hub_wire import Answer, Call, Host, as_json, text

REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
ROUTES: tuple[tuple[Place, re.Pattern[str]], ...] = (
    ("files", re.compile(r"/xet-bridge/[0-9a-f]{64}")),
    ("resolve", re.compile(rf"/api/(?P<what>resolve-cache)/models/{REPO}/(?P<revision>[0-9a-f]{{40}})/(?P<path>.+)")),
    ("api", re.compile(rf"/api/models/{REPO}/(?P<what>revision|paths-info)/(?P<revision>[^/]+)")),
    ("api", re.compile(rf"/api/models/{REPO}/(?P<what>tree)/(?P<revision>[^/]+)(?:/(?P<path>.+))?")),
    ("api", re.compile(rf"/api/models/{REPO}/(?P<what>refs|auth-check)")),
    ("api", re.compile(rf"/api/models/{REPO}(?P<what>)")),
    ("api", re.compile(r"/api/(?P<what>whoami-v2)")),
    ("resolve", re.compile(rf"/{REPO}/(?P<what>resolve)/(?P<revision>[^/]+)/(?P<path>.+)")),
)
Lack = Literal["details", "tree", "lfs", "tags", "blob ids"]
"""What a mirror does not pass on: sizes and hashes of the listing (``?blobs=true``), the listing ``/tree``, what is said of LFS
files anywhere, ETags, and git's hashes."""

COMPRESSED = {".json", ".jsonl", ".md", ".py", ".txt"}
"""Small files with these suffixes are compressed, from 1 KiB on, for clients that accept it; such an answer ignores Range."""


class Hub:
    """Repositories, who may access them, and the correct responses."""

    def __init__(
        self,
        page_size: int,
        gated: Collection[str],
        private: Collection[str],
        tokens: Mapping[str, Collection[str]],
    ) -> None:
        self.page_size, self.gated, self.private, self.tokens = page_size, set(gated), set(private), dict(tokens)
        self.faults = Faults()
        self.lacks = set[Lack]()
        self.refuses_ranges = False
        self.origins: dict[Host, str] = {}
        self._repositories: dict[str, Repository] = {}
        self._signed: dict[str, tuple[str, str, Blob]] = {}

    def push(self, name: str, files: Files, branch: str = "main") -> str:
        """Move a branch of a repository to these files, creating either if needed; return the commit."""
        return self._repositories.setdefault(name, Repository(name)).push(files, branch)

    def tag(self, name: str, tag: str, revision: str = "main") -> None:
        """Tag a revision."""
        repository = self._repositories[name]
        repository.tags[tag] = repository.resolve(revision)

    def expire(self) -> None:
        """Invalidate all addresses of the file host handed out so far."""
        self._signed.clear()

    def asked(self, call: Call) -> tuple[Asked, dict[str, str]]:
        """Return the request as faults match it, and the parts of its path; none for an unknown path."""
        for place, pattern in ROUTES:
            found = pattern.fullmatch(call.path)
            if found and call.host in {"elsewhere", "files" if place == "files" else "hub"}:
                parts = {"what": place} | {name: unquote(value or "") for name, value in found.groupdict().items()}
                if place == "files":
                    repo, subject, _ = self._signed.get(_signature(call), ("", "", None))
                    return Asked(call.method, place, repo, subject), parts
                subject = parts["path"] if place == "resolve" else call.path[1:]
                return Asked(call.method, place, parts.get("repo", ""), subject), parts
        return Asked(call.method, "files" if call.host == "files" else "api", "", call.path[1:]), {}

    def truth(self, call: Call, asked: Asked, parts: Mapping[str, str]) -> Answer:
        """Return the answer to a request. Raises Refusal."""
        what = parts.get("what")
        if what is None:
            raise Refusal(404, "", "Sorry, we can't find the page you are looking for.")
        if what == "files":
            return self._file(call, asked)
        if what == "whoami-v2":
            return self._whoami(call)
        repository = self._repository(call, asked.repo, read=asked.on == "resolve" or what == "auth-check")
        if what in {"refs", "auth-check"}:
            return as_json(repository.refs() if what == "refs" else {})
        commit = repository.resolve(parts.get("revision", "main"))
        tree = repository.commits[commit]
        if asked.on == "resolve":
            return self._resolve(call, asked, commit, tree)
        stated = {path: self._stated(replace(asked, subject=path), blob) for path, blob in tree.items()}
        if what == "tree" and "tree" in self.lacks:
            raise Refusal(404, "", "Not Found")
        if what == "tree":
            return self._tree(call, list(listing(stated, parts["path"], recursive=call.says("recursive"))))
        if what == "paths-info":
            paths = _paths(call)
            return as_json([entry for entry in listing(stated, "", recursive=True) if entry["path"] in paths])
        return self._info(call, asked.repo, commit, stated)

    # Who may see what.

    def _whoami(self, call: Call) -> Answer:
        if call.token is None:
            raise Refusal(401, "", "Invalid username or password.")
        self._allowed(call)
        token = {"displayName": "loopback", "role": "read"}
        user = {"type": "user", "id": "0" * 24, "name": "tester", "fullname": "Tester", "orgs": []}
        return as_json(user | {"auth": {"type": "access_token", "accessToken": token}})

    def _allowed(self, call: Call) -> Collection[str]:
        """Return what the token may read. An unknown token is refused even where none is needed."""
        if call.token is not None and call.token not in self.tokens:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return self.tokens.get(call.token or "", ())

    def _repository(self, call: Call, name: str, *, read: bool) -> Repository:
        """Return a repository that the token may see and, with ``read``, read. Anybody may list a gated one."""
        found = self._repositories.get(name)
        allowed = call.host == "elsewhere" or name in self._allowed(call)
        if found is None or (name in self.private and not allowed):
            if call.token is None:
                raise Refusal(401, "RepoNotFound", "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if read and name in self.gated and not allowed:
            if call.token is None:
                why = ". You must have access to it and be authenticated to access it. Please log in."
                raise Refusal(401, "GatedRepo", f"Access to model {name} is restricted{why}")
            why = f" and you are not in the authorized list. Visit https://huggingface.co/{name} to ask for access."
            raise Refusal(403, "GatedRepo", f"Access to model {name} is restricted{why}")
        return found

    # The Hub.

    def _info(self, call: Call, name: str, commit: str, tree: Tree) -> Answer:
        detailed = call.says("blobs") and "details" not in self.lacks
        siblings = [blob.sibling(path) if detailed else {"rfilename": path} for path, blob in tree.items()]
        siblings = [self._passed_on(entry) for entry in siblings]
        known: Entry = {"_id": "0" * 24, "id": name, "modelId": name, "author": name.rpartition("/")[0], "sha": commit}
        known |= {"lastModified": "2023-03-03T00:00:00.000Z", "createdAt": "2023-03-03T00:00:00.000Z"}
        known |= {"private": name in self.private, "gated": "manual" if name in self.gated else False}
        known |= {"disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
        return as_json(known)

    def _tree(self, call: Call, entries: list[Entry]) -> Answer:
        size = min(self.page_size, int(call.query.get("limit", [str(self.page_size)])[0]))
        start = int(base64.urlsafe_b64decode(call.query["cursor"][0])) if "cursor" in call.query else 0
        headers = {}
        if start + size < len(entries):
            cursor = base64.urlsafe_b64encode(b"%d" % (start + size)).decode()
            query = {name: values[-1] for name, values in call.query.items()} | {"limit": size, "cursor": cursor}
            headers["Link"] = f'<{self.origins[call.host]}{call.path}?{urlencode(query)}>; rel="next"'
        return as_json([self._passed_on(entry) for entry in entries[start : start + size]], headers)

    def _passed_on(self, entry: Entry) -> Entry:
        """Return what a mirror leaves of an entry."""
        dropped = {"lfs"} if "lfs" in self.lacks else set()
        dropped |= {"blobId", "oid"} if "blob ids" in self.lacks else set()
        return {key: value for key, value in entry.items() if key not in dropped}

    def _resolve(self, call: Call, asked: Asked, commit: str, tree: Tree) -> Answer:
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        blob = tree.get(asked.subject)
        if blob is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", headers)
        stated = self._stated(asked, blob)
        tag = f'"{stated.sha256 if blob.lfs else stated.oid}"'
        if not blob.lfs and call.path.startswith("/api/resolve-cache/"):
            return self._content(call, asked, blob, headers | {"ETag": tag})
        if (not blob.lfs or stated.sha256) and "tags" not in self.lacks:
            headers["X-Linked-ETag"] = tag
        headers["X-Linked-Size"] = str(stated.size)
        if blob.lfs:
            location = self._sign(asked, blob)
            return text(302, f"Found. Redirecting to {location}", headers | {"Location": location})
        query = f"{quote(call.path, safe='')}=&etag={quote(tag)}"
        location = f"/api/resolve-cache/models/{asked.repo}/{commit}/{quote(asked.subject)}?{query}"
        return text(307, f"Temporary Redirect. Redirecting to {location}", headers | {"Location": location})

    def _stated(self, asked: Asked, blob: Blob) -> Blob:
        """Return a blob as the metadata state it, which faults can falsify."""
        for fault in self.faults.take(asked, *METADATA):
            if fault.kind == "size":
                blob = replace(blob, size=blob.size + 1 if fault.value is None else int(fault.value))
            elif blob.lfs:
                blob = replace(
                    blob, sha256=None if fault.kind == "no-sha256" else str(fault.value or _other(blob.sha256))
                )
            elif fault.kind == "hash":
                blob = replace(blob, oid=str(fault.value or _other(blob.oid)))
        return blob

    # The file host, and what the Hub sends itself.

    def _sign(self, asked: Asked, blob: Blob) -> str:
        """Return a signed address of a file."""
        signature = secrets.token_hex(32)
        self._signed[signature] = (asked.repo, asked.subject, blob)
        query = {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Expires": "3600", "X-Amz-SignedHeaders": "host"}
        query |= {"X-Amz-Signature": signature, "response-content-disposition": _disposition(asked.subject)}
        return f"{self.origins['files']}/xet-bridge/{_xet_hash(blob)}?{urlencode(query)}&x-id=GetObject"

    def revoke(self, call: Call) -> None:
        """Invalidate an address of the file host."""
        self._signed.pop(_signature(call), None)

    def _file(self, call: Call, asked: Asked) -> Answer:
        _, _, blob = self._signed.get(_signature(call), ("", "", None))
        if blob is None:
            return text(403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        if call.host == "files" and "Authorization" in call.headers:  # beside a signature, a token is one too many
            return text(
                400, "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"
            )
        if self.refuses_ranges and "Range" in call.headers:
            return text(403, "<Error><Code>AccessDenied</Code></Error>")
        return self._content(call, asked, blob, {"Accept-Ranges": "bytes", "ETag": f'"{_xet_hash(blob)}"'})

    def _content(self, call: Call, asked: Asked, blob: Blob, headers: dict[str, str]) -> Answer:
        """Return the bytes of a file, or of the range that was asked for."""
        headers |= {"Content-Type": "application/octet-stream", "Content-Disposition": _disposition(asked.subject)}
        compressible = not blob.lfs and blob.size >= 1024 and PurePosixPath(asked.subject).suffix in COMPRESSED
        compress = compressible and call.method == "GET" and "gzip" in str(call.headers["Accept-Encoding"])
        span = None if compress else _span(call.headers["Range"], blob.size)
        if span is None or self.faults.take(asked, "no-range"):
            return Answer(200, headers, blob.path, 0, blob.size, may_compress=compress)
        shift = len(self.faults.take(asked, "content-range"))
        headers["Content-Range"] = f"bytes {span.start + shift}-{span.stop - 1 + shift}/{blob.size}"
        return Answer(206, headers, blob.path, span.start, span.stop)


def _paths(call: Call) -> set[str]:
    """Return the paths requested from /paths-info, by a form or by JSON."""
    if "json" in str(call.headers["Content-Type"]):
        given: dict[str, Any] = json.loads(call.body)
        return set(given["paths"])
    return set(parse_qs(call.body.decode()).get("paths", []))


def _span(header: str | None, size: int) -> range | None:
    """Return the offsets of a Range header; None for all. Raises Refusal: 416."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not found or not any(found.groups()):  # also several ranges at once, which file hosts need not serve
        return None
    first, last = found.groups()
    span = range(int(first), min(int(last or size), size - 1) + 1) if first else range(max(size - int(last), 0), size)
    if not span:
        raise Refusal(416, "", "The requested range is not satisfiable", {"Content-Range": f"bytes */{size}"})
    return span


def _signature(call: Call) -> str:
    return call.query.get("X-Amz-Signature", [""])[0]


def _disposition(path: str) -> str:
    name = quote(path.rsplit("/", 1)[-1])
    return f"inline; filename*=UTF-8''{name}; filename=\"{name}\";"


def _xet_hash(blob: Blob) -> str:
    """Return the file host's name of a file: as on the real one, 64 digits that are not its sha256."""
    return hashlib.sha256(f"xet {blob.sha256}".encode()).hexdigest()


def _other(digits: str | None) -> str:
    """Return a hash that differs in its last digit."""
    return f"{(digits or '0')[:-1]}{'1' if (digits or '0')[-1] == '0' else '0'}"
