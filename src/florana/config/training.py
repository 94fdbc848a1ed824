"""What clients and server do in a round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from florana.config._section import Count, Fraction, Positive, Section


class TrainingConfig(Section):
    """Local training with AdamW: per round either ``steps`` or ``epochs``.

    The learning rate warms up over the share ``warmup`` of its schedule, then decays linearly to its
    end; the schedule spans every ``round`` anew, or the whole ``run``. ``accumulation`` batches make
    one step; ``clip`` bounds the norm of the gradient. ``proximal`` is FedProx's μ: it pulls the trained
    parameters back to where the round began. ``bf16``: matrix products in bfloat16, in training and in
    evaluation; the trained parameters stay float32.
    """

    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count = 16
    accumulation: Count = 1
    learning_rate: Positive = 1e-2
    schedule: Literal["round", "run"] = "round"
    warmup: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    clip: Positive = 1.0
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    bf16: bool = False

    @model_validator(mode="before")
    @classmethod
    def _default_steps(cls, given: Any) -> Any:  # noqa: ANN401
        if (
            isinstance(given, Mapping)
            and given.get("steps") is None
            and given.get("epochs") is None
        ):
            return {**given, "steps": 8}
        return given

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("set steps or epochs, not both")
        return self


class ServerConfig(Section):
    """What the server does beside the method: add-ons to what it aims at.

    ``step_size`` η and ``momentum`` β: the global product moves by η times the (accumulated) step that the
    clients ask for. ``shrinkage`` makes that step smaller where clients disagree: ``agreement`` and ``noise``
    damp the directions that few clients share, ``norm`` shortens it to plain averaging's length.
    ``error_feedback`` carries what the result's rank cut off into the next round's target.
    """

    step_size: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    momentum: Fraction = 0.0
    shrinkage: Literal["none", "agreement", "noise", "norm"] = "none"
    error_feedback: bool = False

    @property
    def changes_target(self) -> bool:
        """Whether any add-on is on, so that the server aims at something else than the clients' mean."""
        smaller = self.step_size != 1 or self.shrinkage != "none"
        return smaller or self.momentum > 0 or self.error_feedback


class MethodConfig(BaseModel):
    """The aggregation method and, beside its name, its own options; see ``florana methods``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "florana-blend"

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options."""
        return dict(self.model_extra or {})


class EvaluationConfig(Section):
    """How models are scored.

    ``batch_size`` examples go through the model at a time. ``max_examples`` scores the global model on a random part
    of the test set, the same in every round. Where answers are generated, ``max_new_tokens`` bounds each. ``allow_code``
    lets generated programs run, under limits; without it a task that has to run them is refused.
    """

    batch_size: Count = 64
    max_examples: Count | None = None
    max_new_tokens: Count = 256
    allow_code: bool = False
