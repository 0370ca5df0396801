"""A merged model of transformers that was never on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from deltaweights import apply_delta, load_merged
from deltaweights.errors import Mismatch
from tests.support.pairs import base_tensors, delta_tensors, save
