"""Compares this project with LLaVA-Med v1.0.0 as it is, on a tiny pair: merged weights, prompts, pixel values, logits.

docs/original.md says what must be installed. Ends with 0 when everything is equal, 1 when something differs, 2 when the environment
of 2023 is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for tests.support, which makes the pair

TRANSFORMERS = "4.28.1"

PROBE = "import transformers, llava.model.apply_delta as a; print(transformers.__version__, hasattr(a, 'LlavaLlamaForCausalLM'))"

FIXTURE = HERE.parent / "tests" / "fixtures" / "prompts-2023.json"

RECIPE = """\
format = "deltaweights-recipe"
version = 1
name = "tiny-llava-med"
[arithmetic]
compute_dtype = "float16"
[transformers]
conversation = "llava-med"
"""


def main() -> int:
    """Run the comparison and print a line for each part of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help=f"Python with transformers {TRANSFORMERS} and LLaVA-Med v1.0.0")
    options = parser.parse_args()
    missing = missing_environment(options.python)
    if missing is not None:
        print(
            f"scripts/original: {options.python}: {missing}; docs/original.md says how to install it", file=sys.stderr
        )
        return 2
    from transformers.utils import logging  # noqa: PLC0415  (takes a second)

    told: Any = logging
    told.set_verbosity_error()
    told.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="deltaweights-original-") as folder:
        equal = [print_line(*result) for result in compare(options.python, Path(folder))]
    return 0 if all(equal) else 1


def missing_environment(python: str) -> str | None:
    """Return what the environment of 2023 lacks, on one line; None if it is whole."""
    try:
        done = run([python, "-c", PROBE])
    except OSError as error:
        return f"cannot be run ({error.strerror})"
    if done.returncode != 0:
        return f"not the environment of 2023 ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"
    version, whole = done.stdout.split()[-2:]
    if version != TRANSFORMERS:
        return f"transformers {version}, not {TRANSFORMERS}"
    return None if whole == "True" else "llava is another package than LLaVA-Med v1.0.0's"


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command, without its output."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def print_line(what: str, equal: int, of: int) -> bool:
    """Print how many of what are equal; return whether all are."""
    print(f"{what}: {equal} of {of} equal", flush=True)
    return equal == of


def compare(python: str, folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield a part of the comparison, how many of it are equal, and how many there are."""
    import torch  # noqa: PLC0415
    from tests.support.llava_2023 import publish  # noqa: PLC0415
    from tests.support.pairs import load  # noqa: PLC0415

    from deltaweights import apply_delta  # noqa: PLC0415

    pair = publish(folder / "pair", hidden=64, features=1024, image=224)
    (folder / "own.toml").write_text(RECIPE)
    ours, theirs, exported = folder / "ours", folder / "theirs", folder / "exported"
    apply_delta(pair.base, pair.delta, ours)
    recipe: dict[str, Any] = {"recipe_file": folder / "own.toml", "allow_unproved_base": True}
    apply_delta(pair.base, pair.delta, exported, layout="transformers", vision_tower=pair.tower, **recipe)
    arguments = ["--base-model-path", pair.base, "--target-model-path", theirs, "--delta-path", pair.delta]
    done = run([python, "-m", "llava.model.apply_delta", *map(str, arguments)])
    if done.returncode != 0:
        raise SystemExit(f"scripts/original: the original apply_delta failed: {done.stderr.strip().splitlines()[-1]}")
    merged: dict[str, Any] = {}
    for path in sorted(theirs.glob("*.bin")):
        merged |= torch.load(path, weights_only=True)
    yield count("merged tensors", [same(merged.pop(name, None), tensor) for name, tensor in load(ours).items()])
    left = [name for name in merged if not name.endswith("inv_freq")]  # a buffer, which loaders recompute
    if left:
        raise SystemExit(f"scripts/original: only the original has {left[0]}")
    yield from prompts_and_logits(python, folder, theirs, exported)


def prompts_and_logits(python: str, folder: Path, theirs: Path, exported: Path) -> Iterator[tuple[str, int, int]]:
    """Compare the prompts of the tests' 60 questions, and for every third of them pixels and float32 logits."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415
    from transformers import AutoProcessor, LlavaForConditionalGeneration  # noqa: PLC0415

    prompts = json.loads(FIXTURE.read_text(encoding="utf-8"))["prompts"]
    chosen = list(range(0, len(prompts), 3))
    noise = torch.randint(0, 256, (70, 90, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    picture.save(folder / "image.png")
    request = {"model": str(theirs), "prompts": prompts, "logits": chosen, "image": str(folder / "image.png")}
    (folder / "request.json").write_text(json.dumps(request))
    done = run([python, str(HERE / "original_side.py"), str(folder)])
    if done.returncode != 0:
        raise SystemExit(f"scripts/original: the original code failed: {done.stderr.strip().splitlines()[-1]}")
    answer = json.loads((folder / "response.json").read_text(encoding="utf-8"))
    print(
        f"transformers {answer['versions']['transformers']}, torch {answer['versions']['torch']}; here {torch.__version__}"
    )

    loader: Any = AutoProcessor
    processor = loader.from_pretrained(exported)
    inputs = [asked(processor, each, picture) for each in prompts]
    said = [each["text"].replace(256 * "<im_patch>", "<im_patch>") for each in answer["prompts"]]
    yield count("prompts", [ours == other for (ours, _), other in zip(inputs, said, strict=True)])
    ids = [made["input_ids"][0].tolist() for _, made in inputs]
    yield count("their ids", [ours == other["ids"] for ours, other in zip(ids, answer["prompts"], strict=True)])

    tensors = np.load(folder / "tensors.npz")
    with_image = [number for number in chosen if prompts[number]["image"]]
    yield count(
        "pixel values",
        [same(torch.from_numpy(tensors[f"pixels-{n}"]), inputs[n][1]["pixel_values"]) for n in with_image],
    )
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    model: Any = LlavaForConditionalGeneration.from_pretrained(exported, **options)
    model.eval()
    with torch.no_grad():
        logits = {number: model(**inputs[number][1]).logits[0] for number in chosen}
    yield count(
        "float32 logits", [same(torch.from_numpy(tensors[f"logits-{n}"]), found) for n, found in logits.items()]
    )


def asked(processor: Any, entry: dict[str, Any], picture: Any) -> tuple[str, Any]:
    """Return the prompt of an export for a question, and what its model gets."""
    content = [*([{"type": "image"}] if entry["image"] else []), {"type": "text", "text": entry["question"]}]
    turns = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(turns, conv_mode=entry["conversation"], tokenize=False)
    if entry["image"]:
        return text, processor(text=[text], images=[picture], return_tensors="pt")
    made = processor.tokenizer([text], return_tensors="pt")
    return text, {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}


def count(what: str, equal: list[bool]) -> tuple[str, int, int]:
    """Return how many are equal."""
    return what, sum(equal), len(equal)


def same(one: Any, other: Any) -> bool:
    """Return whether two tensors have the same dtype, shape and numbers."""
    return one is not None and one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


if __name__ == "__main__":
    sys.exit(main())
