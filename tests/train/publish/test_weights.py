"""Merged weights and adapters, as transformers and PEFT compute them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llamahome.config import ModelConfig
from llamahome.models import ModelManager, load_model, read_policy
from llamahome.models.four_bits import MARK
from tests.train.engine import QUIET
from tests.train.publish.conftest import POLICY, adapted_in_four_bits, logits, save_run
from train.errors import ExportError
from train.publish.source import Source, find_source
from train.publish.weights import check_gap, write_adapter, write_merged
from train.runs.folder import ADAPTER, MODEL

pytestmark = QUIET


def adapted(base: Path, run: Path) -> torch.Tensor:
    """Return the logits that PEFT computes with the adapter on."""
    model = AutoModelForCausalLM.from_pretrained(base)
    return logits(PeftModel.from_pretrained(model, run / ADAPTER))


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["lm_head"]])
def test_merged_weights_compute_what_the_adapter_does(
    base: Path, tmp_path: Path, manager: ModelManager, targets: list[str]
) -> None:
    """The base's embeddings are tied; an adapter of `lm_head` changes one end alone."""
    run = save_run(tmp_path / "runs", base, targets=targets)
    folder = tmp_path / "out"
    folder.mkdir()
    assert write_merged(find_source("small", run.parent, manager), "float32", folder) < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(plain), adapted(base, run), rtol=1e-4, atol=1e-4)
    assert read_policy(folder) == POLICY


def test_an_adapter_of_four_bits_is_merged_into_what_they_hold(
    base: Path, run: Path, four_bits: Source, tmp_path: Path
) -> None:
    assert write_merged(four_bits, "float32", tmp_path) < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = adapted_in_four_bits(base, run)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-3)
    assert (adapted(base, run) - expected).abs().max() > 0.1  # the original weights are others
    assert not (tmp_path / MARK).exists()  # merged weights are plain


def test_an_adapter_of_four_bits_says_which_base_it_needs(
    base: Path, run: Path, four_bits: Source, tmp_path: Path
) -> None:
    write_adapter(four_bits, str(base), tmp_path)
    assert (tmp_path / MARK).read_text() == (run / ADAPTER / MARK).read_text()
    ours = load_model(ModelConfig(name=str(tmp_path))).model
    expected = adapted_in_four_bits(base, run)
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=1e-3)


def test_merging_comes_before_rounding(base: Path, source: Source, tmp_path: Path) -> None:
    """Each bfloat16 weight is the nearest to W + scale B A in float32."""
    assert source.run is not None
    assert 1e-5 < write_merged(source, "bfloat16", tmp_path) < 0.2
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), source.run.directory / ADAPTER
    )
    expected = model.merge_and_unload().state_dict()
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(weight, expected[name].bfloat16())


def test_plain_peft_loads_the_adapter(base: Path, source: Source, tmp_path: Path) -> None:
    assert source.run is not None
    write_adapter(source, "owner/base", tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path)
    assert model.peft_config["default"].base_model_name_or_path == "owner/base"
    torch.testing.assert_close(logits(model), adapted(base, source.run.directory))


def test_a_model_without_an_adapter(source: Source, tmp_path: Path, manager: ModelManager) -> None:
    """A run of full fine-tuning has no `adapter`; its model is what is exported."""
    assert source.run is not None
    directory = source.run.directory
    shutil.rmtree(directory / ADAPTER)
    shutil.copyfile(source.found.chain[-1] / "tokenizer.json", directory / MODEL / "tokenizer.json")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source.found.chain[-1] / name, directory / MODEL / name)
    whole = find_source("small", directory.parent, manager)
    assert whole.adapter is None
    write_merged(whole, "float32", tmp_path)
    ours = load_model(ModelConfig(name=str(tmp_path))).model
    expected = AutoModelForCausalLM.from_pretrained(directory / MODEL)
    torch.testing.assert_close(logits(ours), logits(expected), rtol=1e-4, atol=1e-4)


def test_weights_that_rounding_ruins_are_no_export(
    base: Path, tmp_path: Path, manager: ModelManager
) -> None:
    """1e5 is infinite in float16."""
    folder = shutil.copytree(base, tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    source = find_source(str(folder), tmp_path, manager)
    with pytest.raises(ExportError, match=r"the folder predicts something else .* so nothing"):
        write_merged(source, "float16", tmp_path)


def test_a_difference_that_is_no_number_is_refused() -> None:
    with pytest.raises(ExportError, match="off by nan"):
        check_gap(torch.tensor([torch.nan]), torch.zeros(1), torch.float32, "this", "that")
