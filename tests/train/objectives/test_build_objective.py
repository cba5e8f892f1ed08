"""The config chooses the objective."""

from __future__ import annotations

from llamahome.config import TrainerConfig
from train.objectives import (
    DPO,
    ORPO,
    CrossEntropy,
    Distillation,
    Objective,
    build_objective,
    cross_entropy,
)
from train.objectives.preference import count_pairs


def test_a_kl_weight_chooses_distillation() -> None:
    assert build_objective(TrainerConfig()) == Objective(cross_entropy)
    distilling = TrainerConfig(method="lora", kl_weight=0.5)
    assert build_objective(distilling) == Objective(Distillation(kl_weight=0.5))


def test_held_out_loss_is_not_smoothed() -> None:
    smooth = build_objective(TrainerConfig(label_smoothing=0.1))
    assert smooth == Objective(CrossEntropy(0.1), held_out=cross_entropy)
    both = TrainerConfig(method="lora", kl_weight=0.5, label_smoothing=0.1)
    assert build_objective(both) == Objective(Distillation(0.5, 0.1))


def test_pairs_are_counted_and_held_out_as_they_are_learned() -> None:
    dpo = TrainerConfig(method="lora", objective="dpo", beta=0.2)
    assert build_objective(dpo) == Objective(DPO(0.2), DPO(0.2), count_pairs)
    orpo = TrainerConfig(objective="orpo", beta=0.3)
    assert build_objective(orpo) == Objective(ORPO(0.3), ORPO(0.3), count_pairs)
