"""Which metrics a run has, and which of them judges its rounds: from the configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from florana.errors import ConfigError
from florana.tasks import catalogue
from florana.tasks.metrics import CLASSIFICATION, METRICS, REGRESSION, Metric

if TYPE_CHECKING:
    from florana.config import RunConfig

READ = ("perplexity", "token_accuracy")
"""What a causal model is scored by without writing anything."""

WRITTEN = {"number": "exact_match", "math": "exact_match", "program": "pass@1"}
"""Scorer -> the metric that it gives, the share of generated answers that it accepts."""


def judge_of(config: RunConfig) -> Metric:
    """The metric that judges a run's rounds.

    Raises:
        ConfigError: if ``data.metric`` is none that the run can have.
    """
    data = config.data
    if data.family == "regression":
        return chosen_metrics(config, REGRESSION, ("pearson", "spearman"))[0]
    if data.family == "classification":
        return chosen_metrics(config, CLASSIFICATION, ("accuracy",))[0]
    written = (WRITTEN[data.scorer],) if data.scorer else ()
    return chosen_metrics(config, (*written, *READ), (*written, *READ))[0]


def chosen_metrics(
    config: RunConfig, known: Sequence[str], default: Sequence[str]
) -> tuple[Metric, ...]:
    """The metrics of a run, the judge first: the task's or the family's, behind ``data.metric``.

    Args:
        config: the run's.
        known: names that the family can compute.
        default: what it tells where no task says so.

    Raises:
        ConfigError: if ``data.metric`` is not known.
    """
    data = config.data
    told = catalogue.find(data.task).metrics if data.task else tuple(default)
    told = tuple(name for name in told if name in known) or tuple(default)
    judge = data.metric or told[0]
    if judge not in known:
        raise ConfigError(
            f"data.metric: {judge!r} is none of family {data.family!r}; known: {', '.join(known)}"
            + (", and with data.scorer what it gives" if data.family == "causal" else "")
        )
    return tuple(METRICS[name] for name in dict.fromkeys((judge, *told)))
