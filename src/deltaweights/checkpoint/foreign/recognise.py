"""What a folder without weights is, from names, sizes and the first bytes of a few files; and what to give or run instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from deltaweights.checkpoint.foreign.formats import (
    ADAPTER,
    ADAPTER_CONFIG,
    adapter,
    diffusers,
    encrypted,
    flax,
    llama_cpp,
    other_formats,
    projector,
    tensorflow,
    xor_payload,
)
from deltaweights.checkpoint.foreign.hub_cache import is_repository, recognise_cache
from deltaweights.checkpoint.foreign.listing import FolderListing, Layout, Recognised, Subject, either, some
from deltaweights.checkpoint.foreign.training import LATEST, METADATA, deepspeed, distributed, megatron
from deltaweights.checkpoint.layout_names import HF_WEIGHTS, MAIN_FILES, META_PART, STATE_SUFFIXES, SUFFIXES
from deltaweights.util.text import natural_key

MOST_HEADS = 16
"""Files of which the beginning is read, at most."""

HIDDEN_DOWNLOADS = ".cache/huggingface/download"
"""Where ``hf download --local-dir`` gathers files, below the folder."""

UNFINISHED = (
    ".incomplete",
    ".crdownload",
    ".part",
    ".partial",
    ".download",
    ".opdownload",
    ".!qb",
    ".!ut",
    *STATE_SUFFIXES,
)
"""Suffixes of files that browsers and downloaders have not finished, or keep their state in."""

_PART = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)\.[a-z]+")
_TRAINER = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*|trainer_state)\.(bin|pt|pth|pkl)"
)
RENAMED = re.compile(
    r"(.+?)(?: ?\([0-9]+\)| - Copy| copy)?(\.safetensors|\.bin|\.pth|\.pt|\.json)(?:\.[0-9]+|\.txt|\.bak|\.old|~)?"
)
"""A name that a browser, wget or an editor may have given a file; the groups are what it was before."""

_ZIP, _PACKED = (
    (".zip",),
    (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar", ".gz", ".xz", ".zst"),
)
_DATA = re.compile(r".+\.(parquet|arrow|jsonl|csv|tsv|tfrecord)|dataset_(info|dict)s?\.json", re.IGNORECASE)
_CONFIGURATION = re.compile(
    r"(generation_)?config\.json|params\.json|checklist\.chk|(tokenizer|vocab|merges|special_tokens).*"
)
_WORDS = re.compile(r"\..*|README.*|LICEN[CS]E.*|NOTICE.*|USE_POLICY.*", re.IGNORECASE)

Rule = Callable[[Subject], Recognised | None]


def wanted_heads(listing: FolderListing) -> list[str]:
    """Return the paths of the files in a folder whose beginnings ``recognise`` needs."""
    paths = [name for name in (ADAPTER_CONFIG, LATEST) if name in listing.files]
    for path, folder in listing.walk():
        prefix = f"{path}/" if path else ""
        if is_repository(folder):
            paths.append(f"{prefix}refs/main")
        if METADATA in folder.files and prefix.count("/") < 2:
            paths.append(f"{prefix}{METADATA}")
        if prefix.count("/") < 2 and folder.has_checkpoint:
            paths += [prefix + name for name in sorted(folder.files) if name.endswith(".json")][:4]
    # GGML, EasyLM: files of any name.
    odd = [name for name in listing.files if "." not in name or name.endswith(".bin")]
    paths += sorted(odd, key=lambda name: -listing.files[name])[:4]
    return list(dict.fromkeys(paths))[:MOST_HEADS]


def recognise(subject: Subject) -> Recognised:
    """Return what a folder is that has no weights of ours, or none that can be read."""
    return next(filter(None, (rule(subject) for rule in _RULES)), None) or _unknown(subject)


def recognise_file(subject: Subject, name: str) -> Recognised | None:
    """Return what the file ``name`` of a folder is if it is in a format that is not read; None when nothing is known."""
    kept = set(ADAPTER) if name in ADAPTER else {name}
    files = {path: size for path, size in subject.files.items() if path in kept}
    heads = {path: head for path, head in subject.heads.items() if path in {name, ADAPTER_CONFIG, METADATA}}
    alone = Subject(subject.where, FolderListing(files), heads)
    return next(filter(None, (rule(alone) for rule in _FILE_RULES)), None)


def _below(subject: Subject) -> Recognised | None:
    paths = [p for p, listing in subject.listing.walk() if p and not p.startswith(".") and listing.has_checkpoint]
    if not paths:
        return None
    if len(paths) == 1:
        names = [n for n in subject.listing.at(paths[0]).files if n in MAIN_FILES or META_PART.fullmatch(n)]
        found = f"weights in {paths[0]}/ ({some(sorted(names), 2)})"
        return Recognised(Layout.CHECKPOINT_BELOW, found, f"give {subject.path(paths[0])}")
    found = f"weights in {some([f'{path}/' for path in paths], 6)}"
    return Recognised(
        Layout.CHECKPOINT_BELOW, found, f"give the one you mean: {either([subject.path(p) for p in paths], 6)}"
    )


def _unfinished(subject: Subject) -> Recognised | None:
    names = subject.ending(*UNFINISHED)
    names += [name for name in subject.listing.at(HIDDEN_DOWNLOADS).files if name.endswith(UNFINISHED)]
    if not names:
        return None
    found = f"a download that is not finished ({some(names, 2)})"
    return Recognised(Layout.UNFINISHED, found, "run the same download again, and wait for its end")


def _no_index(subject: Subject) -> Recognised | None:
    parts = [match for name in subject.files if name.endswith(SUFFIXES) and (match := _PART.fullmatch(name))]
    if not parts:
        return None
    first = min(parts, key=lambda match: natural_key(match[0]))
    stem, total = first[1], int(first[3])
    suffix = first[0].rpartition(".")[2]
    here = {int(match[2]) for match in parts if match[1] == stem and match[3] == first[3]}
    index = f"{stem}.{suffix}.index.json"
    if index in subject.files and len(here) == total:
        return Recognised(Layout.OTHER_NAMES, f"weights under other names ({index})", f"give {subject.path(index)}")
    if index in subject.files:
        found = f"{len(here)} of {total} shards ({first[0]})"
        return Recognised(Layout.OTHER_NAMES, found, f"fetch the other shards that {index} names, and give that")
    found = f"{len(here)} of {total} shards ({first[0]}), without {index}"
    rest = "and the other shards, " if len(here) < total else ""
    return Recognised(Layout.NO_INDEX, found, f"fetch {index}, {rest}from where the shards are from")


def _other_names(subject: Subject) -> Recognised | None:
    names = [
        name for name in subject.ending(*SUFFIXES) if not _TRAINER.fullmatch(name) and not HF_WEIGHTS.fullmatch(name)
    ]
    if not names:
        return None
    which = "the file itself" if len(names) == 1 else "the file that you mean"
    remedy = f"give {which}: {either([subject.path(name) for name in names])}"
    return Recognised(Layout.OTHER_NAMES, f"weights under other names ({some(names)})", remedy)


def original_name(name: str) -> str:
    """Return the name that a weights file or an index likely had."""
    found = RENAMED.fullmatch(name)
    return found[1] + found[2] if found else name


def _is_renamed(subject: Subject, name: str) -> bool:
    original = original_name(name)
    known = original in MAIN_FILES or HF_WEIGHTS.fullmatch(original) or META_PART.fullmatch(original)
    return bool(known) and original not in subject.files


def _renamed(subject: Subject) -> Recognised | None:
    """Recognise what downloaders and editors make of a name: a second copy, a suffix of their own."""
    found = sorted((name for name in subject.files if _is_renamed(subject, name)), key=natural_key)
    if not found:
        return None
    rest = ", and the others like it" if len(found) > 1 else ""
    remedy = f"rename {subject.quoted(found[0])} to {shlex.quote(original_name(found[0]))}{rest}"
    return Recognised(Layout.OTHER_NAMES, f"weights that were renamed ({some(found, 2)})", remedy)


def lone_shard(subject: Subject, name: str) -> Recognised | None:
    """Return what the file ``name`` of a folder is if it is one of several shards, and what to give in its place."""
    part = _PART.fullmatch(name)
    if part is None or not name.endswith(SUFFIXES) or int(part[3]) < 2:
        return None
    index = f"{part[1]}.{name.rpartition('.')[2]}.index.json"
    found = f"shard {int(part[2])} of {int(part[3])}"
    if index not in subject.files:
        fetch = f"fetch {index} and the other shards from where it is from, and give their folder"
        return Recognised(Layout.NO_INDEX, found, fetch)
    is_only = index in MAIN_FILES and sum(each in MAIN_FILES for each in subject.files) == 1
    return Recognised(Layout.OTHER_NAMES, found, f"give {subject.where if is_only else subject.path(index)}")


def _archive(subject: Subject) -> Recognised | None:
    zips, packed = subject.ending(*_ZIP), subject.ending(*_PACKED)
    if zips:
        remedy = f"give the archive itself: {either([subject.path(name) for name in zips])}"
        return Recognised(Layout.ARCHIVE, f"an archive ({some(zips, 2)})", remedy)
    if packed:
        return Recognised(Layout.ARCHIVE, f"an archive ({some(packed, 2)})", "unpack it, and give the folder in it")
    return None


def _only_folder(subject: Subject) -> Recognised | None:
    folders = [name for name in subject.listing.folders if not name.startswith(".")]
    if len(folders) != 1 or any(not _WORDS.fullmatch(name) for name in subject.files):
        return None
    inner = recognise(subject.below(folders[0]))
    if inner.layout in {Layout.EMPTY, Layout.UNKNOWN}:
        return None
    return Recognised(inner.layout, f"in {folders[0]}/, {inner.found}", inner.remedy)


def _documents(subject: Subject) -> Recognised | None:
    configuration, data = subject.matching(_CONFIGURATION), subject.matching(_DATA)
    code = [name for name in subject.files if name.endswith(".py") or name in {"pyproject.toml", "requirements.txt"}]
    if configuration:
        found = f"configuration and tokenizer, without weights ({some(configuration)})"
        return Recognised(Layout.CONFIGURATION, found, "fetch the weights into it, or give the folder that holds them")
    if data:
        return Recognised(Layout.DATASET, f"a dataset ({some(data, 2)})", "give the folder of a model")
    if code:
        return Recognised(Layout.SOURCE_CODE, f"source code ({some(sorted(code), 2)})", "give the folder of the model")
    if ".git" in subject.listing.folders and not any(not _WORDS.fullmatch(name) for name in subject.files):
        found = "a git clone without weights (.git)"
        remedy = f"run git -C {subject.quoted()} checkout HEAD -- . and git -C {subject.quoted()} lfs pull"
        return Recognised(Layout.NO_CHECKOUT, found, remedy)
    return None


def _unknown(subject: Subject) -> Recognised:
    names = subject.listing.names
    return Recognised(Layout.UNKNOWN if names else Layout.EMPTY, some(names, 5) if names else "an empty folder")


_FORMATS: tuple[Rule, ...] = (encrypted, llama_cpp, flax, tensorflow, distributed, deepspeed, megatron, other_formats)
_FILE_RULES: tuple[Rule, ...] = (_unfinished, adapter, *_FORMATS)
_RULES: tuple[Rule, ...] = (
    recognise_cache, xor_payload, diffusers, adapter, _below, *_FORMATS, projector, _unfinished, _renamed, _no_index,
    _other_names, _archive, _only_folder, _documents,
)  # fmt: skip
"""The first that knows the folder says what it is. What can be given as it is comes before what must be converted."""
