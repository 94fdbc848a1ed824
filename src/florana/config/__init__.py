"""The configuration of a run: one TOML file, checked at the door into frozen values.

Every section is a class; its fields, their defaults and their limits are the reference. All mistakes
of a file are told at once, with the nearest known key for a mistyped one.
"""

from florana.config._section import Codec
from florana.config.data import NODES, DataConfig, Family
from florana.config.federation import FederationConfig, SimulationConfig, sampled_clients
from florana.config.loading import check_config, load_config
from florana.config.model import LoraConfig, ModelConfig, Variant
from florana.config.run import RunConfig
from florana.config.training import (
    EvaluationConfig,
    MethodConfig,
    ServerConfig,
    TrainingConfig,
)

__all__ = [
    "NODES",
    "Codec",
    "DataConfig",
    "EvaluationConfig",
    "Family",
    "FederationConfig",
    "LoraConfig",
    "MethodConfig",
    "ModelConfig",
    "RunConfig",
    "ServerConfig",
    "SimulationConfig",
    "TrainingConfig",
    "Variant",
    "check_config",
    "load_config",
    "sampled_clients",
]
