"""One number of the harness, with all that is needed to know what it means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Score:
    """What a model scores in a task by one metric.

    Args:
        model: ``final`` or ``best``, the adapter; or ``base``.
        task: the harness's name of the task or group of tasks.
        metric: the harness's name, such as ``acc`` or ``exact_match``.
        filter: how the answer was found in what was written, such as ``strict-match``; ``none`` otherwise.
        value: as the harness has it: shares from 0 to 1, perplexities as they are.
        stderr: its standard error, where the harness has one.
        higher_is_better: None where the harness does not say.
        examples: how many were judged.
        shots: worked examples in each prompt.
        limit: most examples of a task that were asked for; None: all. With a limit a number is no result.
        chat: whether prompts were written with the chat template.
        version: of the task's definition; numbers of unlike versions are not comparable.
        group: the group that the task was asked for as a part of.
    """

    model: str
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None = None
    higher_is_better: bool | None = None
    examples: int | None = None
    shots: int | None = None
    limit: int | None = None
    chat: bool = False
    version: str | None = None
    group: str | None = None

    @property
    def measure(self) -> tuple[object, ...]:
        """What was measured, of whichever model."""
        return (self.task, self.metric, self.filter, self.shots, self.limit, self.chat)


def scores(
    results: Mapping[str, Any], model: str, *, limit: int | None = None, chat: bool = False
) -> list[Score]:
    """The numbers in what ``lm_eval.simple_evaluate`` returns, in its order.

    Args:
        results: from the harness.
        model: what was evaluated.
        limit: as the harness was told.
        chat: likewise.

    Example:
        >>> said = {"results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1}}, "n-shot": {"t": 3}}
        >>> [(s.task, s.metric, s.value, s.stderr, s.shots) for s in scores(said, "final")]
        [('t', 'acc', 0.5, 0.1, 3)]
    """
    parents = {
        part: group for group, parts in results.get("group_subtasks", {}).items() for part in parts
    }
    return [
        Score(
            model,
            task,
            metric,
            extraction,
            value,
            _number(told.get(f"{metric}_stderr,{extraction}")),
            results.get("higher_is_better", {}).get(task, {}).get(metric),
            results.get("n-samples", {}).get(task, {}).get("effective") or told.get("sample_len"),
            results.get("n-shot", {}).get(task),
            limit,
            chat,
            _text(results.get("versions", {}).get(task)),
            parents.get(task),
        )
        for task, told in results["results"].items()
        for metric, extraction, value in _values(told)
    ]


def _values(told: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for key, value in told.items():
        metric, comma, extraction = key.partition(",")
        number = _number(value)
        if comma and not metric.endswith("_stderr") and number is not None:
            yield metric, extraction, number


def _number(value: object) -> float | None:
    """A number; the harness writes ``N/A`` where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
