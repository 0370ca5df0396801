"""README and docs tell the truth: every command that they show is run, or it is said here why not."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from deltaweights import apply_delta
from deltaweights.jobs.demo import make_pair
from deltaweights.recipes.catalogue import load
from deltaweights.recipes.models import model
from tests.support.hub_server import HubServer
from tests.support.llava_2023 import make_tower
from tests.support.pages import PAGES, TEXTS, commands, words
from tests.support.shell import OUR_PATH, run_script

NOT_RUN = {
    "pip install": "needs a registry",
    "git clone": "needs the network",
    "scripts/bench": "takes minutes; tests/cli/test_bench.py runs it on small checkpoints",
    "scripts/slurm/submit": "needs Slurm; tests/unit/cluster runs it on a stand-in, and on a real one",
    "torchrun": "tests/unit/cluster/test_launch.py runs it",
    "python llava/eval": "is the code of 2023",
    "python3.11 -m venv 2023": "is for the code of 2023",
    "2023/bin/pip": "is for the code of 2023",
    "./scripts/original": "needs the code of 2023; tests/unit/test_fidelity has its results",
    "deltaweights sign OUT --sigstore": "needs a login; tests/unit/signing runs it on an instance of Sigstore here",
    "deltaweights verify OUT --identity": "needs such a signature; likewise",
    "python -m model_signing verify sigstore": "needs such a signature; likewise",
    "deltaweights apply --base LLAMA --delta MERGED": "ends with an error; tests/diagnosis has that code",
    "deltaweights apply --base BASE --delta DELTA --target OUT --device cuda": "needs a GPU; tests marked gpu run it",
}
"""Commands that no test of this file runs, by how they begin, with the reason."""

TINY = """\
format = "deltaweights-recipe"
version = 1
[shapes]
hidden_size = 128
intermediate_size = 344
layers = 4
heads = 4
base_rows = 320
delta_rows = 324
[transformers]
tokens = { "[PAD]" = 320, "<im_patch>" = 321, "<im_start>" = 322, "<im_end>" = 323 }
"""
"""Laid over the recipe of LLaVA-Med: the sizes of the demo's pair, which stands in for the real one."""

SERVED = {
    "huggyllama/llama-7b": "llama-7b",
    "microsoft/llava-med-7b-delta": "llava-med-7b-delta",
    "ORG/NAME": "llama-7b",
    "ORG/MERGED": "pinned",
}

EXEMPT = {
    "bad-inputs.md": "a table of proof, a row for each bad input",
    "errors.md": "a table, a row for each code",
    "design.md": "one page on purpose, of 2,500 words at most",
}
"""Pages that may be longer than 1,500 words."""


def to_run(page: str) -> list[str]:
    """Return the commands of a page that are run here; those of jq where that is installed."""
    others = () if shutil.which("jq") else ("jq ",)
    return [line for line in commands(page) if not line.startswith((*NOT_RUN, *others))]


def make_scene(folder: Path) -> str:
    """Make what the pages name, of the demo's pair; return the content digest of its merge."""
    base, delta = make_pair(folder)
    base.rename(folder / "llama-7b")
    delta.rename(folder / "llava-med-7b-delta")
    merged = apply_delta(folder / "llama-7b", folder / "llava-med-7b-delta", folder / "pinned")
    for name, kind in {
        "BASE": "llama-7b",
        "DELTA": "llava-med-7b-delta",
        "TUNED": "pinned",
        "MERGED": "pinned",
    }.items():
        (folder / name).symlink_to(kind)
    for name in ("OUT", "MODEL", "models/tuned"):
        shutil.copytree(folder / "pinned", folder / name)
    make_tower(folder / "CLIP", hidden_size=1024, num_hidden_layers=2)
    Image.new("RGB", (80, 60), "gray").save(folder / "cell.png")
    (folder / "tiny.toml").write_text(TINY)
    for line in (line for line in commands("signing.md") if line.startswith("openssl ")):
        assert run_script(line, folder, PATH=OUR_PATH).returncode == 0
    return merged.content_digest


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)])
def test_every_command_runs(page: str, tmp_path: Path) -> None:
    """Each command that a page shows ends with 0, run in order where BASE and DELTA are a real pair.

    The models of the Hub are that pair, too, on a Hub of this machine, at the commits that the recipe pins.
    """
    digest = make_scene(tmp_path)
    with HubServer({repo: tmp_path / name for repo, name in SERVED.items()}) as hub:
        hub.tag("huggyllama/llama-7b", str(model("llama-1-7b").revision))
        hub.tag("microsoft/llava-med-7b-delta", str(load("llava-med-7b").delta.revision))
        hub.tag("ORG/NAME", "REVISION")
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
        for line in to_run(page):
            run_line(line, tmp_path, digest, variables)


def run_line(line: str, folder: Path, digest: str, variables: dict[str, str]) -> None:
    """Run one command; several make the same folder, each from its beginning."""
    made = re.search(r"\b(?:apply|apply-delta|export|convert) .*--target (\S+)", line)
    if made is not None and not (folder / made[1]).is_symlink():
        shutil.rmtree(folder / made[1], ignore_errors=True)
    here = line
    if "llava-med" in line:  # the recipe of the package, with the sizes of the pair that is here
        here = re.sub(
            r"deltaweights apply (llava-med-7b )?", "deltaweights apply llava-med-7b --recipe tiny.toml ", line
        )
    if "--layout transformers" in line or " export " in line:
        here += " --vision-tower CLIP"  # that which the recipe names cannot be had here
    here = re.sub(r"dw1:[0-9a-f]+\.\.\.", digest, here.replace("--sample 0.05", "--sample 0.5"))
    manifest = folder / "OUT" / "manifest.json"  # says where the inputs are from, so each way to OUT has its own
    pin = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ""
    here = re.sub(r"--expect-manifest \S+", f"--expect-manifest {pin}", here)
    done = run_script(here, folder, PATH=OUR_PATH, **variables)
    assert (line, done.returncode, done.stderr if done.returncode else "") == (line, 0, "")


def test_reasons_are_for_commands_that_are_shown() -> None:
    """No reason stands for a command that no page shows any longer, and most commands are run."""
    shown = [line for page in PAGES for line in commands(page)]
    assert {start for start in NOT_RUN if not any(line.startswith(start) for line in shown)} == set()
    assert sum(len(to_run(page)) for page in PAGES) >= 50


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_short(page: str) -> None:
    """README has 700 words at most, a page 1,500, and the design page 2,500."""
    limit = {"README.md": 700, "design.md": 2500}.get(page)
    if limit is None and page in EXEMPT:
        prose = [line for line in TEXTS[page].splitlines() if not line.startswith("|")]
        assert len(" ".join(prose).split()) <= 1500
        return
    assert words(page) <= (limit or 1500)
