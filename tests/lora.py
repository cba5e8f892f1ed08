"""LoRA adapters of small models, as PEFT saves them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from llamahome.models.adapter_chain import ADAPTER_CONFIG


def save_lora(base: PreTrainedModel, folder: Path, **changes: Any) -> Path:
    """Save an adapter of `base` whose effect is not zero; `changes` go to its LoraConfig."""
    lora = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **changes}
    get_peft_model(copy.deepcopy(base), LoraConfig(**lora)).save_pretrained(folder)
    return folder


def change_lora(folder: Path, **changes: Any) -> None:
    """Change fields of a saved adapter's config."""
    file = folder / ADAPTER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
