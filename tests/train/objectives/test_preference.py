"""DPO and ORPO: TRL's loss and gradients, the paper's formula, and pairs that share rows."""

from __future__ import annotations

import copy
import importlib
import math
import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import LoraConfig, PolicyConfig
from llamahome.data import IGNORED, Row
from tests.policies import built, policy_case
from tests.train.objectives.rows import Wrapped, trainable
from tests.train.test_packing import packed
from train.data import collate
from train.lora import add_adapters
from train.model import bare_model
from train.objectives import DPO, ORPO
from train.objectives.preference import answer_log_probs, count_pairs

pytestmark = [
    # from TRL, PEFT and accelerate
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
# Neither is typed, and a folder of ours has the name of one.
datasets, trl = (importlib.import_module(name) for name in ("datasets", "trl"))
PROMPT, CHOSEN, REJECTED = [5, 9, 30, 41], [77, 12, 200], [8, 60]


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> Row:
    """Return a pair as the encoder makes it."""
    answers = (chosen, rejected)
    return {
        "input_ids": [token for answer in answers for token in [*prompt, *answer]],
        "attention_mask": [1] * (2 * len(prompt) + len(chosen) + len(rejected)),
        "labels": [label for answer in answers for label in [*[IGNORED] * len(prompt), *answer]],
        "documents": [n for n, answer in enumerate(answers) for _ in [*prompt, *answer]],
    }


def pairs(count: int) -> list[Row]:
    draw = random.Random(count)

    def some(least: int, most: int) -> list[int]:
        return [draw.randrange(3, 250) for _ in range(draw.randint(least, most))]

    return [pair(some(2, 30), some(1, 20), some(1, 20)) for _ in range(count)]


def adapted(model: LlamaForCausalLM) -> PeftModel:
    """Return the model with adapters that have learned something."""
    model.name_or_path = "tiny"
    peft = add_adapters(model, LoraConfig(r=4, train_norms=False), "tiny")
    learn_something(peft)
    return peft


def learn_something(model: PeftModel) -> None:
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def gradients(model: PeftModel) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_dpo_has_the_loss_and_gradients_of_trl(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lora = PeftLora(r=4, target_modules=["q_proj", "v_proj"])
    ours = get_peft_model(copy.deepcopy(tiny_llama), copy.deepcopy(lora))
    rows = [{"prompt": "How?", "chosen": " Like this.", "rejected": " No"}]
    settings = trl.DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = trl.DPOTrainer(
        model=tiny_llama,
        peft_config=lora,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=byte_tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    learn_something(trainer.model.train())
    ours.train().load_state_dict(trainer.model.state_dict())
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()

    trainable(bare_model(ours))
    half = len(inputs["input_ids"]) // 2
    chosen, rejected = (
        (ids[mask.bool()].tolist(), learned[mask.bool()].bool().tolist())
        for ids, mask, learned in (
            (inputs[key][at] for key in ("input_ids", "attention_mask", "completion_mask"))
            for at in (0, half)
        )
    )
    row = pair([], chosen[0], rejected[0])
    learned = [*chosen[1], *rejected[1]]
    row["labels"] = [
        token if is_learned else IGNORED
        for token, is_learned in zip(row["input_ids"], learned, strict=True)
    ]
    full = HybridAttention(build_policy(PolicyConfig.dense()))
    loss = DPO(0.3)(Wrapped(ours), collate([row], 0), full)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(float(expected.detach()), rel=1e-5)
    mine, other = gradients(ours), gradients(trainer.model)
    assert mine.keys() == other.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-3, atol=1e-6)


def test_an_answers_log_probability_is_that_of_the_model_alone(
    tiny_llama: LlamaForCausalLM,
) -> None:
    model = tiny_llama.double()
    row = pair(PROMPT, CHOSEN, REJECTED)
    expected = []
    for answer in (CHOSEN, REJECTED):
        logits = model(torch.tensor([[*PROMPT, *answer]])).logits[0].log_softmax(-1)
        places = range(len(PROMPT) - 1, len(PROMPT) + len(answer) - 1)
        expected.append(sum(float(logits[p, t]) for p, t in zip(places, answer, strict=True)))
    trainable(model)
    full = HybridAttention(build_policy(PolicyConfig.dense()))
    found, tokens = answer_log_probs(model, collate([row], 0), full)
    assert found.tolist() == pytest.approx(expected)
    assert tokens.tolist() == [3, 2]


def test_orpo_is_the_papers_formula(tiny_llama: LlamaForCausalLM) -> None:
    model = tiny_llama.double()
    trainable(model)
    full = HybridAttention(build_policy(PolicyConfig.dense()))
    batch = collate([pair(PROMPT, CHOSEN, REJECTED)], 0)
    sums, tokens = answer_log_probs(model, batch, full)
    won, lost = (math.exp(float(s) / float(n)) for s, n in zip(sums, tokens, strict=True))
    ratio = math.log(won / (1 - won)) - math.log(lost / (1 - lost))
    expected = -math.log(won) + 0.5 * math.log(1 + math.exp(-ratio))
    found = ORPO(0.5)(model, batch, full)
    assert float(found["loss"].detach()) == pytest.approx(expected)
    assert float(found["margin"]) == pytest.approx(ratio)


@pytest.mark.parametrize("objective", [DPO(0.2), ORPO(0.2)])
def test_packed_pairs_have_the_loss_and_gradients_of_pairs_alone(
    tiny_llama: LlamaForCausalLM, objective: DPO | ORPO
) -> None:
    trainable(tiny_llama)
    model = adapted(tiny_llama).double()
    attention = HybridAttention(built(policy_case("h2o"), tiny_llama), tiny_llama)
    rows = pairs(7)
    found = []
    for batch in (collate(packed(rows, 128), 0), collate(rows, 0)):
        model.zero_grad()
        assert count_pairs(batch) == 7
        sums = objective(Wrapped(model), batch, attention)
        sums["loss"].backward()
        found.append(([float(sums[name].detach()) for name in sums], gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-8, atol=1e-8)
