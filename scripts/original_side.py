"""The side of scripts/original that runs in the environment of 2023, with LLaVA-Med v1.0.0 and nothing of this project.

``python original_side.py FOLDER`` reads ``FOLDER/request.json``, and writes ``response.json`` and ``tensors.npz`` there.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from llava import LlavaLlamaForCausalLM
from llava.conversation import conv_templates
from PIL import Image
from transformers import CLIPImageProcessor, LlamaTokenizer

PATCHES = 256


def ask(question, form, image):
    """Return the prompt as llava/eval/model_vqa_med.py of v1.0.0 makes it."""
    said = question.replace("<image>", "").strip()
    if image:
        said = said + "\n" + "<im_start>" + "<im_patch>" * PATCHES + "<im_end>"
    conversation = conv_templates[form].copy()
    conversation.append_message(conversation.roles[0], said)
    return conversation.get_prompt()


def main():
    """Answer the request."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    tokenizer = LlamaTokenizer.from_pretrained(request["model"])
    tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    prompts = []
    for each in request["prompts"]:
        text = ask(each["question"], each["conversation"], each["image"])
        prompts.append({"text": text, "ids": tokenizer([text]).input_ids[0]})

    model = LlavaLlamaForCausalLM.from_pretrained(request["model"]).float().eval()
    tower = model.model.vision_tower[0]
    tower.half().float()  # it is computed in float16, in which its weights are rounded; here in float32, to compare every bit
    tower.config.use_im_start_end = True
    for name in ("im_patch", "im_start", "im_end"):
        setattr(tower.config, f"{name}_token", tokenizer.convert_tokens_to_ids(f"<{name}>"))
    images = CLIPImageProcessor.from_pretrained(model.config.mm_vision_tower)
    tensors = {}
    with torch.no_grad():
        for number in request["logits"]:
            picture = request["prompts"][number]["image"] and Image.open(request["image"])
            pixels = images.preprocess(picture, return_tensors="pt")["pixel_values"] if picture else None
            ids = torch.tensor([prompts[number]["ids"]])
            tensors[f"logits-{number}"] = model(ids, images=pixels).logits[0].numpy()
            if picture:
                tensors[f"pixels-{number}"] = pixels.numpy()
    np.savez(folder / "tensors.npz", **tensors)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    (folder / "response.json").write_text(json.dumps({"versions": versions, "prompts": prompts}), encoding="utf-8")


if __name__ == "__main__":
    main()
