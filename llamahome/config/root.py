"""The roots that `conf/train.yaml`, `conf/serve.yaml` and `conf/eval.yaml` compose."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamahome.config.checks import require
from llamahome.config.cluster import ClusterConfig
from llamahome.config.data import DataConfig
from llamahome.config.engine import EngineConfig
from llamahome.config.evaluation import EvalConfig
from llamahome.config.fixed import FIXED
from llamahome.config.log import LogConfig
from llamahome.config.model import ModelConfig
from llamahome.config.policy import CARRIED, PolicyConfig
from llamahome.config.search import SearchConfig
from llamahome.config.serve import ServeConfig
from llamahome.config.tracking import TrackingConfig
from llamahome.config.trainer import DeepSpeedConfig, TrainerConfig


def _carried() -> PolicyConfig:
    return PolicyConfig(name=CARRIED, budget=None)


@dataclass(kw_only=True)
class TrainRoot:
    """Everything one training run needs."""

    model: ModelConfig = field(default_factory=ModelConfig, metadata=FIXED)
    policy: PolicyConfig = field(default_factory=PolicyConfig, metadata=FIXED)
    data: DataConfig = field(default_factory=DataConfig, metadata=FIXED)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        require(
            self.trainer.dense_steps == 0 or self.policy.name != "full",
            "trainer.dense_steps",
            self.trainer.dense_steps,
            "policy.name=full evicts nothing in the second stage either; set it to 0",
        )
        require(
            self.trainer.batch_tokens is None or self.data.batching == "padding",
            "trainer.batch_tokens",
            self.trainer.batch_tokens,
            "rows that are packed are full; set data.batching=padding, or trainer.batch_size",
        )
        require(
            self.deepspeed.zero_stage != 0 or self.trainer.precision != "bf16",
            "deepspeed.zero_stage",
            self.deepspeed.zero_stage,
            "with trainer.precision=bf16 DeepSpeed's losses are off there; set zero_stage to 1, 2 "
            "or 3, or trainer.precision to mixed or fp32",
        )
        require(
            self.trainer.lora.base_bits is None or self.deepspeed.zero_stage != 3,
            "trainer.lora.base_bits",
            self.trainer.lora.base_bits,
            "deepspeed.zero_stage=3 shards weights before they can be quantised; set zero_stage "
            "to 0, 1 or 2",
        )
        for name in ("offload_optimizer", "offload_parameters"):
            require(
                self.trainer.use_gpu or not getattr(self.deepspeed, name),
                f"deepspeed.{name}",
                True,
                "offloading moves state out of GPU memory; set trainer.use_gpu=true or turn it off",
            )


@dataclass(kw_only=True)
class ServeRoot:
    """Everything one endpoint needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    policy: PolicyConfig = field(default_factory=_carried)
    engine: EngineConfig = field(default_factory=EngineConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(kw_only=True)
class EvalRoot:
    """Everything one evaluation needs.

    Attributes:
        policy: what all measured policies have in common.
        engine: the engine that is measured, without adapters; its queue and lengths follow from the
            tasks.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
