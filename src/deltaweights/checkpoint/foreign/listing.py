"""What is in a folder and below it, as values: names, sizes, and the first bytes of a few files."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from deltaweights.checkpoint.layout_names import MAIN_FILES, META_PART
from deltaweights.util.text import natural_key

HEAD_BYTES = 64 * 1024
"""How much of a file is looked at, at most."""


@dataclass(frozen=True)
class FolderListing:
    """Sizes of files in bytes by name, and subfolders that were looked into; litter (``util.litter``) is left out."""

    files: Mapping[str, int] = field(default_factory=dict)
    folders: Mapping[str, FolderListing] = field(default_factory=dict)

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> FolderListing:
        """Return the listing of a folder with the files at these paths, given their sizes."""
        files = {path: size for path, size in sizes.items() if "/" not in path}
        below: dict[str, dict[str, int]] = {}
        for path, size in sizes.items():
            folder, slash, rest = path.partition("/")
            if slash and rest:
                below.setdefault(folder, {})[rest] = size
        return cls(files, {folder: cls.of(inner) for folder, inner in below.items()})

    @property
    def names(self) -> list[str]:
        """The names of all files and folders, folders with a slash, in natural order."""
        return sorted([*self.files, *(f"{name}/" for name in self.folders)], key=natural_key)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there are weights as this program reads them: an index, an only weights file, or Meta's."""
        return any(name in MAIN_FILES or META_PART.fullmatch(name) for name in self.files)

    def at(self, path: str) -> FolderListing:
        """Return the listing of the folder ``path`` below, empty when there is none."""
        found = self
        for name in path.split("/") if path else ():
            found = found.folders.get(name, FolderListing())
        return found

    def walk(self, path: str = "") -> Iterator[tuple[str, FolderListing]]:
        """Yield every folder with its path: this one first, then those below, in natural order."""
        yield path, self
        for name in sorted(self.folders, key=natural_key):
            yield from self.folders[name].walk(posixpath.join(path, name))


class Layout(Enum):
    """What a folder or a file is that holds no weights as this program reads them."""

    CHECKPOINT_BELOW = "a checkpoint one or two folders down"
    HUB_REPOSITORY = "a repository in the Hub's cache"
    HUB_CACHE = "the Hub's cache"
    ADAPTER = "a LoRA or other PEFT adapter"
    PROJECTOR = "LLaVA's projector"
    XOR = "an XOR payload"
    ENCRYPTED = "files encrypted with Meta's weights"
    GGUF = "GGUF"
    GGML = "GGML"
    FLAX = "flax"
    EASYLM = "EasyLM's stream of msgpack"
    ORBAX = "Orbax"
    TENSORFLOW = "TensorFlow"
    ONNX = "ONNX"
    NUMPY = "NumPy"
    DEEPSPEED = "DeepSpeed"
    DISTRIBUTED = "torch.distributed.checkpoint"
    MEGATRON = "Megatron"
    DIFFUSERS = "Diffusers"
    UNFINISHED = "an unfinished download"
    ARCHIVE = "an archive that was not unpacked"
    OTHER_NAMES = "weights under other names"
    NO_INDEX = "shards without their index"
    DATASET = "a dataset"
    SOURCE_CODE = "source code"
    NO_CHECKOUT = "a git clone without its files"
    CONFIGURATION = "configuration and tokenizer"
    EMPTY = "an empty folder"
    UNKNOWN = "none that is known"


@dataclass(frozen=True)
class Recognised:
    """A layout, what was found (with the names that tell), and what to give or run; ``remedy`` is empty when nothing is known."""

    layout: Layout
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Subject:
    """What is to be recognised: the folder at ``where``, its listing, and first bytes of files by their paths below it."""

    where: str
    listing: FolderListing
    heads: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def files(self) -> Mapping[str, int]:
        """The files directly in the folder."""
        return self.listing.files

    @property
    def name(self) -> str:
        """The folder's own name."""
        return posixpath.basename(posixpath.normpath(self.where))

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        """Return the names of the files that match as a whole, in natural order."""
        return sorted(filter(pattern.fullmatch, self.files), key=natural_key)

    def ending(self, *suffixes: str) -> list[str]:
        """Return the names of the files with one of the suffixes, in either case, in natural order."""
        return sorted((name for name in self.files if name.lower().endswith(suffixes)), key=natural_key)

    def starting(self, *magic: bytes) -> list[str]:
        """Return the names of the files that start with one of the given bytes, in natural order."""
        return [name for name in sorted(self.files, key=natural_key) if self.heads.get(name, b"").startswith(magic)]

    def path(self, *below: str) -> str:
        """Return the path of something below the folder."""
        return posixpath.normpath(posixpath.join(self.where, *below))

    def quoted(self, *below: str) -> str:
        """Return the path as a shell takes it."""
        return shlex.quote(self.path(*below))

    def below(self, path: str) -> Subject:
        """Return the folder ``path`` below as a subject of its own."""
        prefix = f"{path}/"
        heads = {name.removeprefix(prefix): head for name, head in self.heads.items() if name.startswith(prefix)}
        return Subject(self.path(path), self.listing.at(path), heads)


def some(names: list[str], most: int = 4) -> str:
    """Return the first of ``names``, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def either(paths: list[str], most: int = 4) -> str:
    """Return the first of ``paths`` as alternatives."""
    shown = paths[:most]
    return f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]
