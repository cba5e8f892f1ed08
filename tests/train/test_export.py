"""The exported folder computes what was trained, or there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llamahome.config import DeepSpeedConfig, LoraConfig, TrainRoot
from llamahome.models import load_model
from tests.train.engine import QUIET, engine_for, one_worker
from train.errors import ExportError

pytestmark = QUIET
LINEAR = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}  # no lm_head
IDS = list(range(40, 60))


@pytest.fixture(autouse=True)
def worker(tmp_path: Path) -> Iterator[None]:
    """A world of one worker."""
    with one_worker(tmp_path / "meet"):
        yield


def with_lora(root: TrainRoot, export: str, *targets: str, **trainer: Any) -> TrainRoot:
    lora = LoraConfig(target_modules=list(targets))
    return replace(
        root, trainer=replace(root.trainer, method="lora", export=export, lora=lora, **trainer)
    )


def trained(root: TrainRoot) -> tuple[Any, Any]:
    """Return an engine in eval mode whose trained weights have moved, and the tokenizer."""
    engine, tokenizer = engine_for(root)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            torch.manual_seed(len(name))
            parameter.data += 0.05 * torch.randn_like(parameter)
    engine.eval()
    return engine, tokenizer


def export(root: TrainRoot, engine: Any, tokenizer: Any, folder: Path) -> Path:
    from train.export import export_model

    export_model(engine, tokenizer, root, folder, IDS)
    return folder / "model"


@pytest.mark.parametrize("kind", ["merged", "adapter"])
@pytest.mark.parametrize("targets", [["q_proj"], ["lm_head"], ["lm_head", "down_proj"]])
def test_adapters_export_what_they_compute(
    root: TrainRoot, tmp_path: Path, kind: str, targets: list[str]
) -> None:
    """The model's embeddings are tied; an adapter of `lm_head` changes one end alone."""
    root = with_lora(root, kind, *targets)
    engine, tokenizer = trained(root)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        from train.export import _DENSE

        expected = engine(
            input_ids=ids, position_ids=_DENSE.position_ids(ids), use_cache=False, hybrid=_DENSE
        ).logits
    folder = export(root, engine, tokenizer, tmp_path)
    ours = load_model(replace(root.model, name=str(folder))).model(ids).logits
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    if kind == "merged":
        plain = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [{"rslora": True}, {"dora": True}])
def test_every_kind_of_adapter_exports(
    root: TrainRoot, tmp_path: Path, kind: dict[str, bool]
) -> None:
    root = with_lora(root, "merged", "all-linear")
    lora = replace(root.trainer.lora, r=4, **kind)
    root = replace(root, trainer=replace(root.trainer, lora=lora))
    engine, tokenizer = trained(root)
    config = engine.module.peft_config["default"]
    assert {name.rpartition(".")[2] for name in config.target_modules} == LINEAR
    assert (config.use_rslora, config.use_dora) == ("rslora" in kind, "dora" in kind)
    assert export(root, engine, tokenizer, tmp_path).is_dir()


@pytest.mark.parametrize("precision", ["fp32", "mixed", "bf16"])
@pytest.mark.parametrize("stage", [2, 3])
def test_every_precision_and_stage_exports(
    root: TrainRoot, tmp_path: Path, precision: str, stage: int
) -> None:
    trainer = replace(root.trainer, precision=precision)
    root = replace(root, trainer=trainer, deepspeed=DeepSpeedConfig(zero_stage=stage))
    engine, tokenizer = engine_for(root)
    assert (export(root, engine, tokenizer, tmp_path) / "model.safetensors").exists()


def test_a_model_that_predicts_something_else_is_no_export(
    root: TrainRoot, model_dir: Path, tmp_path: Path
) -> None:
    """The base changes while an adapter is trained, so merging gives another model."""
    base = shutil.copytree(model_dir, tmp_path / "base")
    root = with_lora(replace(root, model=replace(root.model, name=str(base))), "merged", "q_proj")
    engine, tokenizer = trained(root)
    other = AutoModelForCausalLM.from_pretrained(base)
    other.model.layers[0].mlp.down_proj.weight.data *= 2
    other.save_pretrained(base)
    with pytest.raises(ExportError, match=r"off by .* nats\), so nothing was exported"):
        export(root, engine, tokenizer, tmp_path)
    assert not (tmp_path / "model").exists()
