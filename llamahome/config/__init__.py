"""The typed config: every YAML of ``conf/`` is checked against these dataclasses."""

from llamahome.config.checkout import checkout
from llamahome.config.checks import ConfigError
from llamahome.config.cluster import ClusterConfig
from llamahome.config.data import DataConfig
from llamahome.config.engine import EngineConfig
from llamahome.config.evaluation import EvalConfig
from llamahome.config.load import explain_override, load_config
from llamahome.config.log import LogConfig
from llamahome.config.model import ModelConfig
from llamahome.config.policy import PolicyConfig
from llamahome.config.root import EvalRoot, ServeRoot, TrainRoot
from llamahome.config.search import SearchConfig
from llamahome.config.serve import ServeConfig
from llamahome.config.tracking import TrackingConfig
from llamahome.config.trainer import DeepSpeedConfig, LoraConfig, TrainerConfig

__all__ = [
    "ClusterConfig",
    "ConfigError",
    "DataConfig",
    "DeepSpeedConfig",
    "EngineConfig",
    "EvalConfig",
    "EvalRoot",
    "LogConfig",
    "LoraConfig",
    "ModelConfig",
    "PolicyConfig",
    "SearchConfig",
    "ServeConfig",
    "ServeRoot",
    "TrackingConfig",
    "TrainRoot",
    "TrainerConfig",
    "checkout",
    "explain_override",
    "load_config",
]
