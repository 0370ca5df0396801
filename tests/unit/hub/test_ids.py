"""Ids of the Hub: what is one, what is a path, and what ``hf://`` forces; by the Hub's own rules for names."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from deltaweights.errors import UsageError
from deltaweights.hub.ids import HubId, ModelSource, hub_id, model_source
from deltaweights.hub.repo_cache import RepoCache
from deltaweights.hub.snapshot import snapshot_at, stated_sha256
from tests.support.errors import refused

COMMIT = "8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16"

IDS: dict[str, HubId] = {
    "acme/base": HubId("acme/base"),
    "acme/base@main": HubId("acme/base", "main"),
    f"acme/base@{COMMIT}": HubId("acme/base", COMMIT),
    "acme/base@refs/pr/1": HubId("acme/base", "refs/pr/1"),
    "acme/base@v1.0+cu": HubId("acme/base", "v1.0+cu"),
    "acme/LLaMA-7B_hf.v2": HubId("acme/LLaMA-7B_hf.v2"),
    "hf://acme/base": HubId("acme/base"),
    "hf://acme/base@v1": HubId("acme/base", "v1"),
    "hf://gpt2": HubId("gpt2"),
    "hf://gpt2@main": HubId("gpt2", "main"),
    "a/" + 96 * "b": HubId("a/" + 96 * "b"),
    "_a_/_b_": HubId("_a_/_b_"),
    "https://huggingface.co/acme/base": HubId("acme/base"),
    "https://huggingface.co/acme/base/": HubId("acme/base"),
    "https://huggingface.co/acme/base/tree/main": HubId("acme/base", "main"),
    f"https://huggingface.co/acme/base/commit/{COMMIT}": HubId("acme/base", COMMIT),
    "https://huggingface.co/acme/base/tree/refs%2Fpr%2F1": HubId("acme/base", "refs/pr/1"),
    "https://huggingface.co/acme/base?library=transformers#usage": HubId("acme/base"),
    "https://huggingface.co/acme/base@v1": HubId("acme/base", "v1"),
    "https://huggingface.co/gpt2": HubId("gpt2"),
    "HTTPS://HuggingFace.co/acme/base": HubId("acme/base"),
    "https://hf.co/acme/base": HubId("acme/base"),
    "huggingface.co/acme/base": HubId("acme/base"),
    "hf.co/acme/base/tree/main": HubId("acme/base", "main"),
    "https://www.huggingface.co/acme/base": HubId("acme/base"),
}

PATHS = [
    "base",
    "base@main",
    "./base",
    "../base",
    "/acme/base",
    "acme/base/",
    "acme/base/x",
    "acme//base",
    "~/base",
    "acme/.hidden",
    "acme/base.git",
    "acme/base-",
    "acme/base.",
    "acme/a--b",
    "acme/a..b",
    "acme/a b",
    "acme/b\u00e4se",
    "acme/base@",
    "acme/base@-x",
    "acme/base@a b",
    "acme/base@../x",
    "acme/base@a..b",
    "acme/base@a//b",
    "acme/base\n",
    "a/" + 97 * "b",
    97 * "a" + "/b",
    "acme./base",
    "-acme/base",
    "",
]
"""What begins with no ``hf://`` and is no id is a path, whether it exists or not."""


@pytest.mark.parametrize(("text", "expected"), IDS.items())
def test_ids(text: str, expected: HubId) -> None:
    """ORG/NAME, with or without @REVISION, is an id; after hf:// so is a name without an organisation."""
    assert hub_id(text) == expected
    assert model_source(text) == ModelSource(expected)


@pytest.mark.parametrize("text", PATHS)
def test_paths(text: str) -> None:
    """Everything else is a path."""
    assert hub_id(text) is None


@pytest.mark.parametrize(
    "text", ["", "/", "a/b/c", "a/b@", "a/b@..", "/a/b", "a//b", "a/b c", "../b", "a/b@x y", "a/" + 97 * "b"]
)
def test_what_hf_forces_must_be_an_id(text: str) -> None:
    """After hf://, anything but an id is refused."""
    with refused(UsageError, found=f"hf://{text}", expected="hf://ORG/NAME or hf://ORG/NAME@REVISION"):
        hub_id(f"hf://{text}")


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing path, even a dangling link, is a path; hf:// forces the id."""
    monkeypatch.chdir(tmp_path)
    Path("acme").mkdir()
    Path("acme/base").mkdir()
    Path("acme/gone").symlink_to("nowhere")
    assert [hub_id(text) for text in ("acme/base", "acme/gone")] == [None, None]
    assert hub_id("hf://acme/base") == HubId("acme/base")
    assert hub_id("acme/other") == HubId("acme/other")


def test_a_path_object_is_a_path() -> None:
    """A ``Path`` is never an id."""
    assert hub_id(Path("acme/base")) is None
    assert hub_id(os.fsencode("acme/base")) is None  # type: ignore[arg-type]


names = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True) | st.just("n" * 96) | st.just("n" * 97)
revisions = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,10}(/[A-Za-z0-9][A-Za-z0-9_-]{0,10}){0,2}", fullmatch=True)


def is_valid(repo: str) -> bool:
    """Tell whether the Hub's client takes a name."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return True


@given(names, names)
def test_the_names_are_those_of_the_hub(organisation: str, name: str) -> None:
    """Exactly the names that the Hub's own client accepts are accepted."""
    repo = f"{organisation}/{name}"
    assert (hub_id(repo) is not None) == is_valid(repo)


@given(names, names, st.none() | revisions)
def test_an_id_is_written_as_it_is_read(organisation: str, name: str, revision: str | None) -> None:
    """An id's text is read as that id."""
    repo = f"{organisation}/{name}"
    if is_valid(repo) and (revision is None or ".." not in revision):
        wanted = HubId(repo, revision)
        assert hub_id(str(wanted)) == hub_id(str(wanted).removeprefix("hf://")) == wanted


@given(st.text(st.sampled_from(string.ascii_letters + "/@.:-_ ~\n\0\u00e4"), max_size=30))
def test_any_text_is_an_id_or_none(text: str) -> None:
    """An id never contains a step up, an absolute path, or anything unprintable."""
    for given_text in (text, f"hf://{text}"):
        try:
            found = hub_id(given_text)
        except UsageError:
            assert given_text.startswith("hf://")
            continue
        if found is not None:
            for part in (found.repo, found.revision or "main"):
                assert part.isprintable()
                assert ".." not in part
                assert not part.startswith(("/", "-", "."))


@given(st.text(max_size=20).filter(lambda text: not is_valid(text)))
def test_whatever_is_no_id_is_said_in_one_line(text: str) -> None:
    """The error for an invalid id is one printable line."""
    if "@" not in text:
        with pytest.raises(UsageError) as caught:
            hub_id(f"hf://{text}")
        assert str(caught.value).isprintable()


@given(names, names, st.none() | revisions)
def test_the_cache_of_an_id_stays_in_the_cache(organisation: str, name: str, revision: str | None) -> None:
    """Folder, snapshot and ref of any id are inside the cache, and the folder's name gives the id."""
    wanted = (
        hub_id(f"hf://{organisation}/{name}" + (f"@{revision}" if revision else ""))
        if is_valid(f"{organisation}/{name}")
        else None
    )
    if wanted is None:
        return
    store = RepoCache.of(Path("/cache"), wanted.repo)
    ref = Path(os.path.normpath(store.root / "refs" / (wanted.revision or "main")))
    assert ref.is_relative_to(store.root / "refs")
    assert store.root.parent == Path("/cache")
    found = snapshot_at(store.snapshot(COMMIT) / "config.json")
    assert found is not None
    assert (found.repo, found.commit) == (wanted.repo, COMMIT)
    assert stated_sha256(store.snapshot(COMMIT) / "config.json") is None


def test_the_address_of_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the mirror in ``HF_ENDPOINT`` is an id, below its path if it has one; a page of another host is none."""
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/hf/")
    assert hub_id("http://mirror.example:8080/hf/acme/base/tree/v1") == HubId("acme/base", "v1")
    assert hub_id("https://huggingface.co/acme/base") == HubId("acme/base")
    for address in ("http://mirror.example:8080/acme/base", "http://mirror.example/hf/acme/base"):
        with pytest.raises(UsageError, match="not an address of the Hub"):
            hub_id(address)


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/acme/base",
        "https://huggingface.co.example.com/acme/base",
        "http://huggingface.co/acme/base",
        "https://huggingface.co",
        "https://huggingface.co/",
        "https://huggingface.co/datasets/acme/base",
        "https://huggingface.co/spaces/acme",
        "https://huggingface.co/acme/base/blob/main/config.json",
        "https://huggingface.co/acme/base/tree/main/folder",
        "https://huggingface.co/acme/base/tree",
        "https://huggingface.co/acme/base/tree/..%2Fx",
        "https://huggingface.co/acme/a--b",
    ],
)
def test_other_pages_are_refused(address: str) -> None:
    """What begins as an address and is not that of a model is never taken for a path."""
    with pytest.raises(UsageError):
        hub_id(address)
