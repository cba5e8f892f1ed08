"""Adapters on a base of 4 bits train as PEFT's own do, and export what they compute."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import ConfigError, PolicyConfig, TrainRoot
from llamahome.models import ModelError, load_model
from llamahome.models.adapters import attach_adapters
from llamahome.models.four_bits import MARK
from tests.train.engine import QUIET, engine_for, one_worker
from tests.train.test_export import IDS, export, trained
from tests.train.test_run import changed
from tests.train.test_worker import start, values

pytestmark = QUIET
POLICIES = {
    "h2o": PolicyConfig(name="h2o", budget=24, sink=2, recent=12, interval=8),
    "dense": PolicyConfig.dense(),
}


@pytest.fixture(autouse=True)
def world(tmp_path: Path) -> Iterator[None]:
    """A world of one worker."""
    with one_worker(tmp_path / "meet"):
        yield


@pytest.fixture
def alone(root: TrainRoot) -> TrainRoot:
    """A run of one worker on a base of 4 bits."""
    return on_four_bits(root, num_workers=1)


def on_four_bits(root: TrainRoot, **trainer: Any) -> TrainRoot:
    lora = replace(root.trainer.lora, base_bits=4, target_modules=["all-linear"], r=4)
    return changed(root, "trainer", method="lora", lora=lora, **trainer)


def of_peft(root: TrainRoot, config: Any) -> Any:
    """Build the model as PEFT's guide to quantisation does, with the adapters of `config`."""
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    base = AutoModelForCausalLM.from_pretrained(
        root.model.name, quantization_config=bits, device_map={"": "cpu"}, dtype=torch.float32
    )
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    HybridAttention.attach(base)
    return get_peft_model(base, copy.deepcopy(config))


def shaken(model: nn.Module) -> dict[str, nn.Parameter]:
    """Move the trained weights, and return them."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in found.items():
        torch.manual_seed(len(name))
        parameter.data += 0.1 * torch.randn_like(parameter)
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_loss_and_gradients_are_those_of_peft(alone: TrainRoot, policy: str) -> None:
    """Ours is evaluated in between, after which bitsandbytes may pass no gradient back."""
    engine, _ = engine_for(replace(alone, policy=POLICIES[policy]))
    ours = engine.module
    peft = of_peft(alone, ours.peft_config["default"])
    weights, expected = shaken(ours), shaken(peft)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():  # adapters start at random
        expected[name].data.copy_(weight.data)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    first = loss_of(ours.train(), POLICIES[policy])
    with torch.no_grad():
        evaluated = loss_of(ours.eval(), POLICIES[policy])
    loss, other = (loss_of(model.train(), POLICIES[policy]) for model in (ours, peft))
    assert first.item() == evaluated.item() == loss.item() == other.item()
    loss.backward()
    other.backward()
    for name, weight in weights.items():
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0, name
        assert torch.equal(weight.grad, expected[name].grad), name


def loss_of(model: Any, policy: PolicyConfig) -> Tensor:
    attention = HybridAttention(build_policy(policy, model), model)
    ids = torch.arange(3, 99).remainder(256).view(2, 48)
    positions = attention.position_ids(ids)
    loss: Tensor = model(
        input_ids=ids, position_ids=positions, labels=ids, use_cache=False, hybrid=attention
    ).loss
    return loss


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
def test_linear_maps_have_four_bits_and_nothing_else(alone: TrainRoot, precision: str) -> None:
    root = changed(alone, "trainer", precision=precision)
    engine, _ = engine_for(root)
    whole, _ = engine_for(changed(root, "trainer", lora=replace(root.trainer.lora, base_bits=None)))
    quantised = 0
    for name, parameter in engine.module.named_parameters():
        if type(parameter) is not nn.Parameter:
            quantised += 1
            assert parameter.numel() * 2 == whole.module.get_parameter(name).numel()
            assert parameter.dtype == torch.uint8
        else:
            assert parameter.dtype == torch.float32
    assert quantised == 2 * 7  # layers x maps; neither embeddings nor the output layer
    assert size_of(engine.module) < 0.45 * size_of(whole.module)
    kinds = {m.compute_dtype for m in engine.module.modules() if hasattr(m, "compute_dtype")}
    assert kinds == {torch.float32 if precision == "fp32" else torch.bfloat16}


def size_of(model: Any) -> int:
    """Return the bytes of the weights of a model's layers, scales of 4-bit ones counted."""
    size = 0
    for parameter in model.base_model.model.model.layers.parameters():
        size += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        tensors = state.as_dict(packed=True).values() if state is not None else ()
        size += sum(tensor.nbytes for tensor in tensors if tensor.numel() != 256)  # one table
    return size


@pytest.mark.parametrize("asked", [{}, {"objective": "dpo"}, {"kl_weight": 1.0}])
def test_the_model_without_adapters_is_the_base_of_four_bits(
    alone: TrainRoot, asked: dict[str, Any]
) -> None:
    """Teachers and references are this model."""
    engine, _ = engine_for(changed(alone, "trainer", **asked))
    before = loss_of(engine.module.eval(), POLICIES["h2o"]).item()
    shaken(engine.module)
    with engine.module.disable_adapter():
        assert loss_of(engine.module, POLICIES["h2o"]).item() == before
    assert loss_of(engine.module, POLICIES["h2o"]).item() != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
@pytest.mark.parametrize("kind", [{}, {"dora": True}])
def test_exports_compute_what_was_trained(
    alone: TrainRoot, tmp_path: Path, kind: dict[str, bool], precision: str
) -> None:
    """Merged weights are plain; the adapter alone rounds its base again."""
    lora = replace(alone.trainer.lora, **kind)
    for form in ("merged", "adapter"):
        root = changed(alone, "trainer", export=form, lora=lora, precision=precision)
        engine, tokenizer = trained(root)
        ids = torch.tensor([IDS])
        attention = HybridAttention(build_policy(PolicyConfig.dense(), engine.module))
        with torch.no_grad():
            expected = engine(
                input_ids=ids,
                position_ids=attention.position_ids(ids),
                use_cache=False,
                hybrid=attention,
            ).logits.float()
        (tmp_path / form).mkdir()
        folder = export(root, engine, tokenizer, tmp_path / form)
        ours = load_model(replace(root.model, name=str(folder))).model(ids).logits
        close = {"rtol": 1e-4, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.1, "atol": 0.3}
        torch.testing.assert_close(ours, expected, **close)
    adapter = tmp_path / "merged" / "adapter"
    assert (adapter / MARK).read_text() == (tmp_path / "adapter" / "model" / MARK).read_text()
    with pytest.raises(ModelError, match="trained on a base of 4 bits, and requests share one"):
        attach_adapters(load_model(root.model).model, {"own": adapter})
    (adapter / MARK).write_text(json.dumps({"format": 1, "bits": 3}))
    with pytest.raises(ModelError, match="a quantisation that this version does not know"):
        load_model(replace(root.model, name=str(adapter)))


def test_a_resumed_run_goes_on_exactly(alone: TrainRoot, tmp_path: Path) -> None:
    root = changed(alone, "trainer", steps=4, eval_every=2)
    set_seed(0)
    assert start(root, tmp_path / "whole").until_done()
    for last in (2, 4):
        set_seed(last)  # adapters start elsewhere, so that the checkpoint has to bring them
        part = start(root, tmp_path / "parts") if last == 4 else seeded(root, tmp_path / "parts")
        while part.progress.step < last:
            part.step()
        part.save()
    for name in ("loss", "grad_norm"):
        assert values(tmp_path / "parts", name) == values(tmp_path / "whole", name)


def seeded(root: TrainRoot, run_dir: Path) -> Any:
    set_seed(0)
    return start(root, run_dir)


@pytest.mark.parametrize(
    ("section", "asked", "why"),
    [
        ("trainer", {"method": "full"}, "set trainer.method=lora"),
        ("trainer", {"precision": "bf16"}, "set it to mixed"),
        ("trainer", {"dense_steps": 5}, "rounded to 4 bits again"),
        ("deepspeed", {"zero_stage": 3}, "set zero_stage to 0, 1 or 2"),
    ],
)
def test_what_cannot_train_on_four_bits_is_refused(
    alone: TrainRoot, section: str, asked: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.lora\.base_bits=4 is not .*{why}"):
        changed(alone, section, **asked)
