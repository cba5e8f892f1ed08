"""LoRA adapters, configured by llama-recipes and added by PEFT."""

from __future__ import annotations

from typing import cast

from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from llamahome.config import ConfigError, LoraConfig
from train.recipes import quiet_recipes

ALL_LINEAR = "all-linear"


def add_adapters(model: PreTrainedModel, lora: LoraConfig, base: str) -> PeftModel:
    """Freeze the weights of `model` and add adapters to train.

    Args:
        base: name of the model, written into the adapter so that it finds its base again.

    Raises:
        ConfigError: for a target module that the model does not have.
    """
    check_targets(model, lora)
    with quiet_recipes():
        from llama_recipes.configs import train_config
        from llama_recipes.utils.config_utils import generate_peft_config
    config = generate_peft_config(
        train_config(use_peft=True, peft_method="lora"),
        {
            "r": lora.r,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": list(lora.target_modules),
        },
    )
    if lora.target_modules == [ALL_LINEAR]:
        config.target_modules = ALL_LINEAR
    config.use_rslora, config.use_dora = lora.rslora, lora.dora
    if lora.train_norms:
        config.modules_to_save = norms(model)
    # DeepSpeed holds weights and adapters in one precision; on 4 bits PEFT takes that of products.
    fp32 = lora.base_bits is not None
    adapted = cast(PeftModel, get_peft_model(model, config, autocast_adapter_dtype=fp32))
    # PEFT writes the folder of the weights, which for an adapter on an adapter is not the base.
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def check_targets(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Compare the targets of adapters with the model's linear maps.

    Raises:
        ConfigError: for a target module that the model does not have.
    """
    if lora.target_modules == [ALL_LINEAR]:
        return
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"trainer.lora.target_modules={list(lora.target_modules)}: the model has no "
                f"{target!r}; choose among {', '.join(known)}"
            )


def norms(model: PreTrainedModel) -> list[str]:
    """Return the names of the decoder's norms as PEFT matches them: the last part, each once.

    A norm is a module with one vector of weights whose name ends in "norm", as in every Llama-like
    model.
    """
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name.endswith("norm") and [weight.dim() for weight in module.parameters()] == [1]
    }
    return sorted(found)
