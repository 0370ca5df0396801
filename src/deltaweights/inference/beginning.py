"""Checks that tokenizer, special_tokens_map.json and chat template agree on the token that begins a text.

A model gets it as the first id of every prompt; with another one than in its training, its answers are others.
"""

from __future__ import annotations

from typing import Any

from deltaweights.export.special_tokens import BOS, EOS
from deltaweights.inference import transformers_loader as loader
from deltaweights.inference.findings import CheckFindings
from deltaweights.inference.model_folder import SPECIAL_TOKENS, TOKENIZER_CONFIG, ModelFolder
from deltaweights.inference.prompts import QUESTION

ROLES = ("bos_token", "eos_token")


def check_beginning(tokenizer: Any, folder: ModelFolder, findings: CheckFindings) -> None:
    """Check the first id that ``tokenizer`` gives a text, and what special_tokens_map.json of ``folder`` says of it.

    That file decided in the code of 2023; current transformers obeys tokenizer_config.json.
    """
    for role in ROLES:
        stated = (folder.special_tokens_map or {}).get(role)
        stated = stated.get("content") if isinstance(stated, dict) else stated
        own = getattr(tokenizer, role)
        if stated and own is not None and stated != own:
            findings.doubt(SPECIAL_TOKENS, f"{role} is not the tokenizer's", found=stated, expected=own)
    try:
        with loader.transformers_errors():
            ids = list(tokenizer(QUESTION).input_ids)
            bare = list(tokenizer(QUESTION, add_special_tokens=False).input_ids)
            token = tokenizer.convert_ids_to_tokens(ids[0]) if ids else None
    except loader.LibraryError as error:
        findings.doubt(TOKENIZER_CONFIG, "the tokenizer cannot encode a text", found=error)
        return
    number = tokenizer.bos_token_id
    due = f"{number} ({tokenizer.bos_token})"
    if ids[:1] == bare[:1]:
        if number is not None and ids[:1] != [number] and tokenizer.init_kwargs.get("add_bos_token") is True:
            findings.doubt(TOKENIZER_CONFIG, "no bos_token begins a text, although add_bos_token is true", expected=due)
    elif number is not None and ids[:1] not in ([number], [tokenizer.cls_token_id]):
        problem = "a text begins with another token than bos_token"
        findings.doubt(TOKENIZER_CONFIG, problem, found=f"{ids[0]} ({token})", expected=due)


def check_template_beginning(text: str, tokenizer: Any, file: str, findings: CheckFindings) -> None:
    """Check that the prompt ``text``, of the template in ``file``, does not begin with the token of another LLaMA."""
    for token in (BOS, EOS):
        if tokenizer.bos_token not in (None, token) and text.startswith(token):
            problem = "begins a prompt with another token than bos_token"
            findings.doubt(file, problem, found=token, expected=tokenizer.bos_token)
