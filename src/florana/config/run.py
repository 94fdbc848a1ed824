"""A whole run: all sections together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from florana.config._section import Count, Name, Section
from florana.config.data import DataConfig
from florana.config.federation import FederationConfig, SimulationConfig
from florana.config.model import LoraConfig, ModelConfig
from florana.config.training import EvaluationConfig, MethodConfig, ServerConfig, TrainingConfig


class RunConfig(Section):
    """A whole run. ``output`` is its folder; by default a free one under ``runs/``."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output: Name | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Count | None = None
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    federation: FederationConfig = FederationConfig()
    training: TrainingConfig = TrainingConfig.model_validate({})
    method: MethodConfig = MethodConfig()
    server: ServerConfig = ServerConfig()
    simulation: SimulationConfig = SimulationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
