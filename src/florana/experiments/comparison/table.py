"""One row per task and method, and what all tasks say of a method: pure functions of finished runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from florana.experiments.comparison.results import RunResult
from florana.experiments.statistics import (
    Interval,
    mean_of,
    paired_difference,
    student_interval,
)
from florana.tasks.metrics import Metric

REACH = 0.95
"""Share of the baseline's mean final score that is the level to reach, unless a level is given."""


@dataclass(frozen=True, slots=True)
class Row:
    """A method on a task. Every mean is over the seeds that are done; None where no run has the number.

    Args:
        task: label of the task.
        method: label of the method.
        seeds: those that are done.
        missing_seeds: those asked for that are not.
        score: of the final global model on the global test set, by the task's metric.
        difference: how much better the score is than the baseline's, paired by seed; None for the baseline itself. It is
            score minus the baseline's, or the other way round where lower is better.
        client_score: after the last round, mean over clients of their own models on their own data.
        worst_client: the worst of these.
        gap: how much better ``client_score`` is than the global model's.
        loss: of the final global model, in nats.
        error_round_1: relative aggregation error of what was used in round 1.
        error_last_round: the same in the last round.
        megabytes_up: of the whole run, all clients; 1 MB = 10⁶ bytes.
        megabytes_down: likewise.
        megabytes_to_reach: up and down until the end of the first round at the task's level or above; mean
            over the runs that got there.
        reached: how many got there.
        seconds: wall time of a run without set-up.
    """

    task: str
    method: str
    seeds: tuple[int, ...]
    missing_seeds: tuple[int, ...]
    score: Interval | None
    difference: Interval | None
    client_score: float | None
    worst_client: float | None
    gap: float | None
    loss: float | None
    error_round_1: float | None
    error_last_round: float | None
    megabytes_up: float | None
    megabytes_down: float | None
    megabytes_to_reach: float | None
    reached: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Overall:
    """A method over all tasks.

    Args:
        method: its label.
        difference: mean over tasks of the mean paired difference; None for the baseline, and where tasks are judged by
            scores that have no common unit, such as accuracy and perplexity.
        tasks: number of tasks with a paired difference.
        behind: of these, with an interval that is all negative.
        ahead: of these, with an interval that is all positive.
    """

    method: str
    difference: float | None
    tasks: int
    behind: int
    ahead: int


def levels(
    runs: Sequence[RunResult],
    metrics: Mapping[str, Metric],
    baseline: str,
    reach: float | None,
) -> dict[str, float | None]:
    """Task → score to reach: ``reach``, or 95 % of the baseline's mean final score on the task.

    Where lower is better it is 1 / 95 % of that.

    None for a task on which no run of the baseline is done.
    """
    if reach is not None:
        return dict.fromkeys(metrics, reach)
    found: dict[str, float | None] = {}
    for task, metric in metrics.items():
        of_baseline = [r for r in runs if (r.key.task, r.key.method) == (task, baseline)]
        mean = mean_of(run.curves.score[-1] for run in of_baseline)
        share = REACH if metric.higher_is_better else 1 / REACH
        found[task] = None if mean is None else share * mean
    return found


def make_rows(
    runs: Sequence[RunResult],
    metrics: Mapping[str, Metric],
    methods: Sequence[str],
    seeds: Sequence[int],
    baseline: str,
    reach: Mapping[str, float | None],
) -> tuple[Row, ...]:
    """A row for every task and method, also for those of which no run is done.

    Args:
        runs: the finished runs.
        metrics: task → what judges its runs.
        methods: labels of the methods.
        seeds: those asked for.
        baseline: label of the method that differences are to.
        reach: task → the score whose cost is told.
    """
    rows = []
    for task, metric in metrics.items():
        of = {
            method: {r.key.seed: r for r in runs if (r.key.task, r.key.method) == (task, method)}
            for method in methods
        }
        rows += [
            _row(
                task,
                method,
                of[method],
                seeds,
                None if method == baseline else of[baseline],
                reach[task],
                metric,
            )
            for method in methods
        ]
    return tuple(rows)


def make_overall(
    rows: Sequence[Row], methods: Sequence[str], metrics: Mapping[str, Metric]
) -> tuple[Overall, ...]:
    """What all tasks together say of each method; tasks count alike."""
    # shares and correlations are all at most 1; perplexities and errors have units of their own
    alike = len(set(metrics.values())) == 1 or all(m.higher_is_better for m in metrics.values())
    found = []
    for method in methods:
        differences = [r.difference for r in rows if r.method == method and r.difference]
        found.append(
            Overall(
                method,
                mean_of(d.mean for d in differences) if alike else None,
                len(differences),
                sum(d.below_zero for d in differences),
                sum(d.above_zero for d in differences),
            )
        )
    return tuple(found)


def _row(
    task: str,
    method: str,
    done: Mapping[int, RunResult],
    seeds: Sequence[int],
    baseline: Mapping[int, RunResult] | None,
    level: float | None,
    metric: Metric,
) -> Row:
    runs = [done[seed] for seed in seeds if seed in done]
    final = _final_scores(done)
    to_reach = [None if level is None else run.megabytes_to_reach(level, metric) for run in runs]
    return Row(
        task,
        method,
        seeds=tuple(run.key.seed for run in runs),
        missing_seeds=tuple(seed for seed in seeds if seed not in done),
        score=student_interval(list(final.values())),
        difference=None if baseline is None else _lead(final, _final_scores(baseline), metric),
        client_score=_mean(runs, lambda run: run.curves.client_score[-1]),
        worst_client=_mean(runs, lambda run: run.curves.worst_client[-1]),
        gap=_mean(runs, lambda run: run.curves.gap[-1]),
        loss=_mean(runs, lambda run: run.curves.loss[-1]),
        error_round_1=_mean(runs, lambda run: run.curves.error_used[1]),
        error_last_round=_mean(runs, lambda run: run.curves.error_used[-1]),
        megabytes_up=_mean(runs, lambda run: sum(run.curves.bytes_up) / 1e6),
        megabytes_down=_mean(runs, lambda run: sum(run.curves.bytes_down) / 1e6),
        megabytes_to_reach=mean_of(to_reach),
        reached=sum(megabytes is not None for megabytes in to_reach),
        seconds=_mean(runs, lambda run: run.seconds),
    )


def _lead(
    scores: Mapping[int, float], baseline: Mapping[int, float], metric: Metric
) -> Interval | None:
    """How much better the scores are, paired by seed."""
    first, second = (scores, baseline) if metric.higher_is_better else (baseline, scores)
    return paired_difference(first, second)


def _mean(runs: Sequence[RunResult], of: Callable[[RunResult], float | None]) -> float | None:
    return mean_of(map(of, runs))


def _final_scores(done: Mapping[int, RunResult]) -> dict[int, float]:
    found = {seed: run.curves.score[-1] for seed, run in sorted(done.items())}
    return {seed: score for seed, score in found.items() if score is not None}
