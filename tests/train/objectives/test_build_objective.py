"""The config chooses the objective."""

from __future__ import annotations

from llamahome.config import TrainerConfig
from train.objectives import Distillation, build_objective, cross_entropy


def test_a_kl_weight_chooses_distillation() -> None:
    assert build_objective(TrainerConfig()) is cross_entropy
    distilling = TrainerConfig(method="lora", kl_weight=0.5)
    assert build_objective(distilling) == Distillation(kl_weight=0.5)
