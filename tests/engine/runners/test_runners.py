"""Rows of a step in every runner: torch's, and the C++ kernels'."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import build_policy
from llamahome.config import ConfigError, EngineConfig, PolicyConfig
from llamahome.engine.runners.build import build_runner
from llamahome.engine.runners.contract import RowInput, Runner
from llamahome.engine.runners.native import NativeRunner
from llamahome.engine.runners.torch import TorchRunner
from llamahome.models.adapters import attach_adapters, merge_adapter
from tests.engine.random_models import native, random_llama, tokens_of

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

H2O = PolicyConfig(budget=40, sink=4, recent=20, interval=16)
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NORMS = ["input_layernorm", "norm", "post_attention_layernorm"]

Build = Callable[..., Runner]


def _torch(model: PreTrainedModel, policy: Any, **options: Any) -> TorchRunner:
    return TorchRunner(model, policy, num_slots=3, max_length=2048, **options)


@pytest.fixture(params=["torch", "native"])
def build(request: pytest.FixtureRequest) -> Build:
    return _torch if request.param == "torch" else native


def _lora(base: PreTrainedModel, folder: Path, seed: int, **changes: Any) -> Path:
    """Save an adapter of random numbers that change the answer."""
    torch.manual_seed(seed)
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(init_lora_weights=False, **changes))
    for name, weight in adapted.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Adapters of different ranks and scales: everywhere, on one of three, with norms."""
    base = random_llama()
    few = ["k_proj", "up_proj"]
    return {
        "all": _lora(base, tmp_path / "all", 1, r=4, lora_alpha=8, target_modules=EVERYWHERE),
        "few": _lora(base, tmp_path / "few", 2, r=3, lora_alpha=2, target_modules=few),
        "norms": _lora(
            base, tmp_path / "norms", 3, r=2, target_modules=EVERYWHERE, modules_to_save=NORMS
        ),
    }


def _text_of(slot: int) -> list[int]:
    return tokens_of(60, seed=slot)


def _walk(runner: Runner, adapters: dict[int, str | None]) -> dict[int, Tensor]:
    """Return logits of every token of each slot's text, in steps that mix chunks and tokens."""
    done = dict.fromkeys(adapters, 0)
    found: dict[int, list[Tensor]] = {slot: [] for slot in adapters}
    step = 0
    while any(done[slot] < 60 for slot in adapters):
        rows = []
        for slot in adapters:
            count = 1 if (step + slot) % 2 else min(runner.slots.room(slot), 7)
            tokens = _text_of(slot)[done[slot] : done[slot] + count]
            if tokens:
                rows.append(
                    RowInput(slot=slot, tokens=tokens, adapter=adapters[slot], every="logits")
                )
        output = runner.forward(rows)
        for i, row in enumerate(rows):
            found[row.slot].append(output.every[i])
            done[row.slot] += len(row.tokens)
        step += 1
    return {slot: torch.cat(chunks) for slot, chunks in found.items()}


@pytest.mark.parametrize(
    "adapters",
    [{0: None, 1: "all", 2: "few"}, {0: "norms", 1: None, 2: "norms"}, {0: "few", 2: "norms"}],
)
def test_rows_answer_with_the_adapter_they_name(
    build: Build, folders: dict[str, Path], adapters: dict[int, str | None]
) -> None:
    policy = build_policy(H2O)
    used = {name: folders[name] for name in folders if name in adapters.values()}
    found = _walk(build(attach_adapters(random_llama(), used), policy), adapters)
    for slot, name in adapters.items():
        merged = random_llama() if name is None else merge_adapter(random_llama(), folders[name])
        alone = _walk(_torch(merged, policy), {slot: None})[slot]
        torch.testing.assert_close(found[slot], alone, rtol=0, atol=1e-3)
        if name is not None:
            plain = _walk(_torch(random_llama(), policy), {slot: None})[slot]
            assert (alone - plain).abs().max() > 0.1


def test_an_adapter_of_int8_weights_stays_exact(folders: dict[str, Path]) -> None:
    """The low-rank part is computed in float32, so it adds no error to that of int8."""
    policy = build_policy(PolicyConfig.dense(interval=16))
    adapted = attach_adapters(random_llama(), {"all": folders["all"]})
    exact = _walk(_torch(merge_adapter(random_llama(), folders["all"]), policy), {0: None})[0]
    rounded = _walk(native(adapted, policy, int8=True), {0: "all"})[0]
    plain = _walk(_torch(random_llama(), policy), {0: None})[0]
    assert (rounded - exact).abs().mean() < 0.25 * (plain - exact).abs().mean()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_a_row_that_breaks_breaks_alone(int8: bool, kv_dtype: torch.dtype, threads: int) -> None:
    poison = 17
    broken = random_llama()
    broken.model.embed_tokens.weight.data[poison] = float("nan")
    options = {"int8": int8, "kv_dtype": kv_dtype, "threads": threads}
    runners = [native(model, build_policy(H2O), **options) for model in (random_llama(), broken)]
    for step, lengths in enumerate([(1, 16, 9), (1, 16, 7), *[(1, 1, 1)] * 6]):
        texts = [tokens_of(n, seed=3 * step + slot) for slot, n in enumerate(lengths)]
        texts = [[3 if token == poison else token for token in text] for text in texts]
        clean = [RowInput(slot=slot, tokens=text) for slot, text in enumerate(texts)]
        poisoned = [clean[0], RowInput(slot=1, tokens=[*texts[1][:-1], poison]), clean[2]]
        expected = runners[0].forward(clean).logits
        logits = runners[1].forward(poisoned if step == 0 else clean).logits
        assert torch.equal(logits[[0, 2]], expected[[0, 2]])
        assert not logits[1].isfinite().any()
    for runner in runners:
        runner.slots.reset(1)
    again = [r.forward([RowInput(slot=1, tokens=[5, 6, 7])]).logits for r in runners]
    assert torch.equal(*again)


@pytest.mark.parametrize("inf", [False, True])
def test_one_weight_that_is_no_number_fails_the_request_in_int8_too(inf: bool) -> None:
    """Rounding to 8 bits must not hide a NaN, wherever in a group it is."""
    for neuron in (0, 17, 63, 70):
        broken = random_llama()
        value = float("inf") if inf else float("nan")
        broken.model.layers[0].mlp.up_proj.weight.data[neuron, 5] = value
        for int8 in (False, True):
            runner = native(broken, build_policy(H2O), int8=int8)
            assert not runner.forward([RowInput(slot=0, tokens=[5])]).logits.isfinite().any()


def test_every_gives_logits_or_hidden_states_of_a_rows_tokens(build: Build) -> None:
    dense = random_llama()
    dense.set_attn_implementation("eager")
    policy = build_policy(PolicyConfig.dense(interval=16))
    runner = build(random_llama(), policy)
    texts = [tokens_of(n, seed=n) for n in (5, 1, 7)]
    for wishes in (
        ("hidden", None, "logits"),
        (None, "logits", "hidden"),
        ("logits", "hidden", "logits"),
        (None, None, "hidden"),
    ):
        for slot in range(3):
            runner.slots.reset(slot)
        rows = [
            RowInput(slot=slot, tokens=text, every=every)
            for slot, (text, every) in enumerate(zip(texts, wishes, strict=True))
        ]
        output = runner.forward(rows)
        assert set(output.every) == {i for i, every in enumerate(wishes) if every}
        for i, (text, every) in enumerate(zip(texts, wishes, strict=True)):
            with torch.no_grad():
                whole = dense(torch.tensor([text]), output_hidden_states=True)
            torch.testing.assert_close(output.logits[i], whole.logits[0, -1], rtol=0, atol=1e-3)
            if every is not None:
                expected = whole.logits[0] if every == "logits" else whole.hidden_states[-1][0]
                assert output.every[i].dtype == torch.float32
                torch.testing.assert_close(output.every[i], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"weights": "fp32"}, r"native .*, float32 weights, float32 KV"),
        ({}, r"native .*, int8 weights, float16 KV"),
        ({"kv_dtype": "int8"}, r"native .*, int8 weights, int8 KV"),
        ({"runner": "torch"}, r"torch, float32 weights, float32 KV"),
        ({"runner": "torch", "kv_dtype": "bf16"}, r"torch, float32 weights, bfloat16 KV"),
        ({"runner": "torch", "weights": "int8"}, r"torch, int8 weights, float32 KV"),
    ],
)
def test_a_config_names_its_runner(config: dict[str, Any], name: str) -> None:
    runner = build_runner(random_llama(), build_policy(H2O), EngineConfig(slots=1, **config))
    assert re.fullmatch(name, runner.name)


def test_what_a_runner_cannot_do_is_an_error_and_auto_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rolling = build_policy(PolicyConfig(positions="rolling"))
    with pytest.raises(ConfigError, match=r"runner='native': policy\.positions='rolling'"):
        build_runner(random_llama(), rolling, EngineConfig(slots=1, runner="native"))
    with pytest.raises(ConfigError, match=r"kv_dtype='int8' needs engine\.runner=native"):
        build_runner(random_llama(), rolling, EngineConfig(slots=1, kv_dtype="int8"))
    with pytest.raises(ConfigError, match="kv_dtype='bf16' is for GPUs"):
        build_runner(random_llama(), build_policy(H2O), EngineConfig(slots=1, kv_dtype="bf16"))
    caplog.clear()
    runner = build_runner(random_llama(), rolling, EngineConfig(slots=1))
    assert isinstance(runner, TorchRunner)
    assert runner.name == "torch, int8 weights, float32 KV"
    assert [r.message for r in caplog.records] == [
        "decoding on the slow path of torch: policy.positions='rolling' rotates keys at every step"
    ]
    assert isinstance(
        build_runner(random_llama(), build_policy(H2O), EngineConfig(slots=1)), NativeRunner
    )
