"""The base model, and the LoRA factors in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from florana.config._section import Count, Fraction, Name, Positive, Section

Variant = Literal["lora", "dora", "hira"]
"""How a module's factors change its weight; see :class:`florana.adapter.LoraPair`."""


class ModelConfig(Section):
    """The base model.

    ``name`` is ``"minilm"``, a folder or a hub name. ``pooling``: the head sits on the mean of the last
    hidden states (``mean``) or is the architecture's own (``model``); ``auto`` takes what a sentence
    encoder's folder says. ``quantization`` holds the frozen weights in 8 or 4 bits (bitsandbytes); ``device_map = "auto"`` spreads
    them over all devices.
    """

    name: Name = "minilm"
    pooling: Literal["auto", "mean", "model"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_length: Annotated[int, Field(ge=4)] = 32
    gradient_checkpointing: bool = False
    quantization: Literal["none", "8bit", "4bit"] = "none"
    device_map: Literal["auto"] | None = None


class LoraConfig(Section):
    """The LoRA factors: ΔW = s B A with s = alpha / rank, or alpha / √rank with ``rslora``.

    ``variant``: ``lora``; ``dora``, which scales every row of W + s B A to a trained length; ``hira``, ΔW =
    W ⊙ (B A), which has no s: alpha is then the rank.
    ``client_ranks`` gives clients unlike ranks of at most ``rank``, dealt out in turn, at that same s.
    """

    variant: Variant = "lora"
    rank: Count = 8
    client_ranks: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    alpha: Positive = 16.0
    rslora: bool = False
    dropout: Fraction = 0.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("query", "value")

    @model_validator(mode="after")
    def _ranks_fit(self) -> LoraConfig:
        if self.client_ranks and max(self.client_ranks) > self.rank:
            raise ValueError(f"client_ranks go up to {max(self.client_ranks)}, rank is {self.rank}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _hira_has_no_scaling(cls, given: Any) -> Any:  # noqa: ANN401
        if (
            isinstance(given, Mapping)
            and given.get("variant") == "hira"
            and given.get("alpha") is None
        ):
            return {**given, "alpha": given.get("rank", cls.model_fields["rank"].default)}
        return given

    @model_validator(mode="after")
    def _scaling_fits(self) -> LoraConfig:
        if self.variant == "hira" and (self.rslora or self.alpha != self.rank):
            raise ValueError(
                f"variant = 'hira' has no scaling, so leave alpha and rslora out (alpha is {self.alpha:g})"
            )
        return self

    def rank_of(self, client: int) -> int:
        """The rank that a client trains."""
        return (
            self.client_ranks[client % len(self.client_ranks)] if self.client_ranks else self.rank
        )
