"""N workers compute what one process would: the loss of the global batch and its gradient."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import PeftModel
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import LoraConfig, PolicyConfig
from train.lora import add_adapters
from train.loss import count_tokens, distillation_losses, gradient_scale, label_loss

# from PEFT
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
REPOSITORY = Path(__file__).parents[2]
EVICTING = PolicyConfig(name="h2o", budget=16, sink=2, recent=8, interval=8)


def batch(lengths: list[int], labelled: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows of random tokens, padded on the right, with labels at the given positions."""
    torch.manual_seed(1)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(3, 256, shape)
    labels = torch.full(shape, -100)
    for row, positions in enumerate(labelled):
        labels[row, positions] = ids[row, positions]
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("policy", [EVICTING, PolicyConfig(name="full", budget=None)])
def test_only_labels_count_and_padding_does_not(
    tiny_llama: LlamaForCausalLM, policy: PolicyConfig
) -> None:
    attention = HybridAttention(build_policy(policy))
    attention.attach(tiny_llama)
    padded = batch([40, 25], [[5, 20, 39], [10, 24]])
    expected = torch.zeros(())
    for row, length in enumerate((40, 25)):
        ids = padded["input_ids"][row : row + 1, :length]
        logits = tiny_llama(ids, use_cache=False, hybrid=attention).logits[0]
        for position in (padded["labels"][row] != -100).nonzero().flatten().tolist():
            target = padded["labels"][row, position]
            expected = expected + F.cross_entropy(logits[position - 1], target)
    assert label_loss(tiny_llama, padded, attention).item() == pytest.approx(expected.item())


def test_a_batch_without_labels_has_no_loss_and_no_gradient(tiny_llama: LlamaForCausalLM) -> None:
    attention = HybridAttention(build_policy(EVICTING))
    attention.attach(tiny_llama)
    loss = label_loss(tiny_llama, batch([30], [[]]), attention)
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in tiny_llama.parameters() if p.grad is not None]
    assert all(not gradient.any() for gradient in gradients)


def micro_batch(length: int, labelled: list[int]) -> dict[str, torch.Tensor]:
    labels = torch.full((1, length), -100)
    labels[0, labelled] = 7
    return {"labels": labels, "attention_mask": torch.ones(1, length)}


OTHER_WORKER = """
import sys
import torch
import torch.distributed as dist
from tests.train.test_loss import micro_batch
from train.loss import count_tokens
dist.init_process_group("gloo", f"file://{sys.argv[1]}", rank=1, world_size=2)
count_tokens([micro_batch(6, [1, 2, 3, 4, 5])], torch.device("cpu"))
dist.destroy_process_group()
"""


def test_counts_span_workers_and_micro_batches(tmp_path: Path) -> None:
    meet = tmp_path / "meet"
    other = subprocess.Popen([sys.executable, "-c", OTHER_WORKER, str(meet)], cwd=REPOSITORY)
    dist.init_process_group("gloo", f"file://{meet}", rank=0, world_size=2)
    try:
        mine = [micro_batch(8, [0, 3, 4]), micro_batch(4, [2])]  # nothing predicts a first label
        assert count_tokens(mine, torch.device("cpu")) == (8, 18)
        # Averaged over two workers, each label's gradient then weighs one part in eight.
        assert gradient_scale(8) == 2 / 8
        assert gradient_scale(0) == 2
    finally:
        dist.destroy_process_group()
    assert other.wait(timeout=60) == 0


class Wrapped:
    """What DeepSpeed's engine is to a loss: callable, with the model inside."""

    def __init__(self, module: PeftModel) -> None:
        self.module = module

    def __call__(self, **arguments: object) -> object:
        return self.module(**arguments)


def adapted(model: LlamaForCausalLM, *, trained: bool) -> PeftModel:
    HybridAttention.attach(model)
    model.name_or_path = "tiny"
    peft = add_adapters(model, LoraConfig(r=4), "tiny")
    torch.manual_seed(3)
    if trained:
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return peft


def test_distillation_is_cross_entropy_and_divergence_from_the_dense_base(
    tiny_llama: LlamaForCausalLM,
) -> None:
    plain = copy.deepcopy(tiny_llama).double()
    peft = adapted(tiny_llama, trained=True).double()
    attention = HybridAttention(build_policy(EVICTING), tiny_llama)
    rows = batch([40, 25], [[5, 20, 39], [10, 24]])
    ce, kl = distillation_losses(Wrapped(peft), rows, attention)
    assert ce.item() == pytest.approx(label_loss(peft, rows, attention).item())
    plain.set_attn_implementation("eager")
    expected = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate((40, 25)):
        ids = rows["input_ids"][row : row + 1, :length]
        dense = plain(ids).logits[0].log_softmax(-1)
        own = peft(input_ids=ids, use_cache=False, hybrid=attention).logits[0].log_softmax(-1)
        for position in (rows["labels"][row] != -100).nonzero().flatten().tolist():
            p, q = dense[position - 1], own[position - 1]
            expected = expected + (p.exp() * (p - q)).sum()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-5)
    assert kl.item() > 0


def test_fresh_adapters_diverge_from_the_dense_model_by_eviction_alone(
    tiny_llama: LlamaForCausalLM,
) -> None:
    engine = Wrapped(adapted(tiny_llama, trained=False))
    rows = batch([40], [[20, 39]])
    full = HybridAttention(build_policy(PolicyConfig(name="full", budget=None)))
    assert distillation_losses(engine, rows, full)[1].item() == pytest.approx(0, abs=1e-5)
    evicting = HybridAttention(build_policy(EVICTING), tiny_llama)
    assert distillation_losses(engine, rows, evicting)[1].item() > 1e-3


def test_only_adapters_and_norms_learn_and_the_teacher_stays_the_base(
    tiny_llama: LlamaForCausalLM,
) -> None:
    tiny_llama.set_attn_implementation("eager")
    ids = batch([30], [[3]])["input_ids"]
    before = tiny_llama(ids).logits.detach()
    peft = adapted(tiny_llama, trained=True)
    attention = HybridAttention(build_policy(EVICTING), tiny_llama)
    ce, kl = distillation_losses(Wrapped(peft), batch([40], [[20, 39]]), attention)
    (ce + kl).backward()
    learning = {name for name, p in peft.named_parameters() if p.grad is not None}
    assert learning
    assert all("lora_" in name or "norm" in name for name in learning)
    assert any("norm" in name for name in learning)
    full = HybridAttention(build_policy(PolicyConfig(name="full", budget=None)))
    with peft.disable_adapter():
        after = peft(input_ids=ids, use_cache=False, hybrid=full).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
