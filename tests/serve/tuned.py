"""A small model as training leaves it: an adapter of it, and a run of other weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from tests.lora import save_lora


def save_adapter(model: Path, folder: Path) -> Path:
    """Save a LoRA adapter that changes what the model says."""
    torch.manual_seed(0)
    return save_lora(LlamaForCausalLM.from_pretrained(model), folder, r=4)


def save_run(model: Path, folder: Path, *, scale: float) -> Path:
    """Save a model of other weights, as a finished run has it."""
    tuned = LlamaForCausalLM.from_pretrained(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(torch.randn_like(weight), alpha=scale * float(weight.std()))
    tuned.save_pretrained(folder)
    for file in model.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_bytes((model / "chat_template.jinja").read_bytes())
    return folder
