"""What is trained for, one file per family of tasks: examples, loss and scores.

Nothing else in the code asks which family a run is of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from florana.config import RunConfig
from florana.tasks import metrics
from florana.tasks.judging import chosen_metrics
from florana.training.head import Head
from florana.training.objectives._contract import Objective
from florana.training.objectives.classification import Classification
from florana.training.objectives.regression import Regression

if TYPE_CHECKING:
    from florana.training.base_model import ModelSource

__all__ = ["Classification", "Head", "Objective", "Regression", "build", "chosen_metrics"]


def build(config: RunConfig, num_labels: int, source: ModelSource) -> Objective:
    """The objective of a run.

    Args:
        config: the run's; ``data.family`` says which, ``data.metric`` what judges.
        num_labels: classes of the data; only classification asks.
        source: the base model, whose tokenizer a causal objective needs to read what was generated.

    Raises:
        ConfigError: if ``data.metric`` is none of the family's.
    """
    data, batch_size = config.data, config.evaluation.batch_size
    if data.family == "regression":
        told = chosen_metrics(config, metrics.REGRESSION, ("pearson", "spearman"))
        return Regression(data.value_range, told, batch_size)
    if data.family == "causal":
        from florana.training.objectives import causal

        return causal.build(config, source)
    told = chosen_metrics(config, metrics.CLASSIFICATION, ("accuracy",))
    return Classification(num_labels, told, batch_size)
