"""What ``hf`` 2 keeps of the Hub's listing of a commit, in ``models--ORG--NAME/trees/COMMIT.json``.

Where a snapshot has files in place of links, this is the only place in the cache that tells their hashes.
"""

from __future__ import annotations

from pathlib import Path

from deltaweights.checkpoint.small_files import read_small
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.hub.repo_listing import HubFile, parse_files
from deltaweights.util.text import strict_json

FORMAT_VERSION = 1

MAX_TREE_BYTES = 32 * 1024 * 1024  # as of the Hub's own listing


def cached_tree(repository: Path, commit: str) -> dict[str, HubFile]:
    """Return the files of a commit as ``hf`` recorded them; none where there is no record that can be read."""
    path = repository / "trees" / f"{commit}.json"
    try:
        record = strict_json(read_small(path, MAX_TREE_BYTES))
        if record["format_version"] != FORMAT_VERSION:
            return {}
        siblings = [
            {
                "rfilename": name,
                "size": file["size"],
                "blobId": file["blob_id"],
                "lfs": {"sha256": file["lfs_sha256"], "size": file["lfs_size"]} if "lfs_sha256" in file else None,
            }
            for name, file in record["files"].items()
        ]
        return parse_files(siblings)
    except (InputOutputError, MalformedInput, ValueError, LookupError, TypeError, AttributeError):
        return {}
