"""Methods side by side: every task × method × seed, from the same start on the same data, and one table.

    DIR/<task>/<method>/seed<k>/   run folders, as florana run makes them
    DIR/comparison.md              the table to read
    DIR/comparison.csv             the same rows, one column per number, empty where there is none
    DIR/comparison.json            the same with everything that is needed to understand it
    DIR/runs.jsonl                 one line per finished run, with its curves
    DIR/workers.log                what libraries printed

comparison.json. Scores are as the metric has them (accuracies are fractions), errors fractions, losses nats, megabytes 10⁶ bytes over all clients, seconds
wall time; null where there is no such number, and where a run diverged. An *interval* is
``{"mean", "half_width", "n"}``: 95 % Student over seeds, ``half_width`` null for one seed.

    command     the command line, or null
    format      number of this layout
    florana     version that made the table
    baseline    label of the method that differences are to
    seeds       the seeds asked for
    tasks       [{label, metric, level, config, data, base_model}]; metric: {name, higher_is_better, percent};
                level: the score of megabytes_to_reach;
                config: the configuration but for seed, output, method and the keys that a method sets;
                data: {name, examples, test_examples, labels: [names]}
    methods     [{label, name, settings: {full config key: value as it was given}}]
    rows        a row per task and method, {task, method, seeds: [done], missing_seeds,
                score: interval, difference: interval of how much better the score is than the baseline's, paired by seed,
                client_score, worst_client, gap, loss, error_round_1, error_last_round, megabytes_up,
                megabytes_down, megabytes_to_reach, reached, seconds}: means over the seeds done; see
                :class:`~florana.experiments.comparison.table.Row`
    overall     a line per method, {method, difference: mean over tasks, tasks: how many have one,
                behind, ahead: on how many the interval is all below or above 0}
    failures    runs that failed this time, {task, method, seed, message}
    versions, machine    as in every run's provenance.json

runs.jsonl, per line: ``task``, ``method``, ``seed``, ``folder`` (as seen from DIR), ``seconds`` and ``curves``: round,
score, loss, client_score, worst_client, gap, error_used, error_average, error_optimum, bytes_up, bytes_down.
Each curve has one number per round and begins with round 0, the untrained start; bytes are of that round alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from florana.atomic import write_atomically
from florana.errors import RunError
from florana.experiments.comparison import fairness, mistakes, render
from florana.experiments.comparison.grid import Grid, TaskSource, build_grid
from florana.experiments.comparison.items import Cell, RunKey
from florana.experiments.comparison.jobs import choose_jobs
from florana.experiments.comparison.pool import do_runs
from florana.experiments.comparison.progress import (
    Planned,
    RunEvent,
    RunFailed,
    RunFinished,
    Watch,
)
from florana.experiments.comparison.results import read_provenance, read_result
from florana.experiments.comparison.table import levels, make_overall, make_rows
from florana.experiments.comparison.value import Comparison, Task
from florana.tasks.judging import judge_of
from florana.tasks.metrics import Metric

BASELINE = "fedit"
"""Plain averaging, which everything is compared with unless another method is named."""


def compare(
    configs: Mapping[str, TaskSource],
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    watch: Watch = lambda _event: None,
    overrides: Sequence[str] = (),
    baseline: str = BASELINE,
    reach: float | None = None,
    command: str | None = None,
) -> Comparison:
    """Train every method on every task with every seed, and write the table.

    A seed decides partition, first adapter, sampled clients and batches, so that methods differ in nothing else.
    Runs that are finished are taken as they are, interrupted ones are resumed: the same call goes on
    after any interruption. A run that fails does not stop the others.

    Args:
        configs: label → a task: a configuration, a TOML file, or ``section.key=value`` on top of the
            defaults. What it says of seed, output and method is replaced.
        methods: ``NAME`` or ``NAME:key=value[:key=value...]``; a key without a dot is an option of the
            method, one with a dot a key of the configuration.
        seeds: of everything random.
        folder: gets a run folder for each run, and the tables.
        jobs: how many runs at a time, each in a process of its own; by default as many as there are cores
            for, and one on an accelerator. A run whose configuration does not say how many
            threads it has gets cores // jobs.
        watch: told everything that happens.
        overrides: ``section.key=value`` for all runs.
        baseline: label of the method that the others are compared with.
        reach: score whose cost in megabytes is reported; by default, on every task, 95 % of the
            baseline's mean final score (1 / 95 % of it where lower is better).
        command: the command line, to be written beside the results.

    Returns:
        What was written; ``failures`` of it holds the runs that failed.

    Raises:
        ConfigError: before anything is trained, with one line for every mistake.
        RunError: if a run's folder holds another run than the one asked for, if runs differ in more than
            the method, or if nothing can be written.

    Example:
        A script that calls this needs ``if __name__ == "__main__":``, since workers are new processes::

            compare({"reviews": Path("reviews.toml")}, ["fedit", "florana"], [0, 1, 2], "runs/reviews")
    """
    base = Path(folder)
    grid = build_grid(
        configs,
        methods,
        seeds,
        base,
        baseline=baseline,
        overrides=overrides,
        told=mistakes.of_numbers(jobs, reach),
    )
    mistakes.check_reach(reach, _metrics(grid))
    cells, used_jobs, threads = choose_jobs(grid.cells, jobs)
    grid = replace(grid, cells=cells)
    states = fairness.read_states(cells)
    provenances = {c.key: read_provenance(c) for c in cells if states[c.key] != "new"}
    fairness.check_alike(provenances, grid.methods)
    to_do = [cell for cell in cells if states[cell.key] != "finished"]
    rounds = sum(cell.config.federation.rounds for cell in to_do)
    state = list(states.values())
    watch(
        Planned(
            len(cells),
            state.count("finished"),
            state.count("interrupted"),
            rounds,
            used_jobs,
            threads,
        )
    )
    failures: list[RunFailed] = []
    by_key = {cell.key: cell for cell in cells}

    def note(event: RunEvent) -> None:
        if isinstance(event, RunFailed):
            failures.append(event)
        if isinstance(event, RunFinished):  # told now, not after hours of the others
            provenances[event.key] = read_provenance(by_key[event.key])
            fairness.check_alike(provenances, grid.methods)
        watch(event)

    _make_folder(base)
    do_runs(to_do, used_jobs, threads, base / "workers.log", note)
    failed = {failure.key for failure in failures}
    finished = [cell for cell in cells if cell.key not in failed]
    comparison = _compare(grid, finished, provenances, failures, base, reach, command)
    _write(comparison)
    return comparison


def _compare(
    grid: Grid,
    finished: Sequence[Cell],
    provenances: Mapping[RunKey, Mapping[str, Any]],
    failures: Sequence[RunFailed],
    folder: Path,
    reach: float | None,
    command: str | None,
) -> Comparison:
    """The value that the finished runs make."""
    runs = [read_result(cell) for cell in finished]
    labels = [item.label for item in grid.methods]
    metrics = _metrics(grid)
    level = levels(runs, metrics, grid.baseline, reach)
    rows = make_rows(runs, metrics, labels, grid.seeds, grid.baseline, level)
    done = {run.key: provenances[run.key] for run in runs}
    any_run = next(iter(done.values()), None)
    return Comparison(
        folder=folder,
        command=command,
        tasks=tuple(_task(grid, task, level[task], done) for task in grid.tasks),
        methods=grid.methods,
        seeds=grid.seeds,
        baseline=grid.baseline,
        rows=rows,
        overall=make_overall(rows, labels, metrics),
        runs=tuple(runs),
        failures=tuple(failures),
        versions=any_run and any_run["versions"],
        machine=any_run and any_run["machine"],
    )


def _metrics(grid: Grid) -> dict[str, Metric]:
    """Task → what judges its runs."""
    return {
        task: judge_of(next(cell.config for cell in grid.cells if cell.key.task == task))
        for task in grid.tasks
    }


def _task(
    grid: Grid, label: str, level: float | None, done: Mapping[RunKey, Mapping[str, Any]]
) -> Task:
    config = next(cell.config for cell in grid.cells if cell.key.task == label)
    shared = fairness.without(config.model_dump(mode="json"), fairness.free_keys(grid.methods))
    metric = _metrics(grid)[label]
    made_of = next((p for key, p in done.items() if key.task == label), None)
    if made_of is None:
        return Task(label, metric, level, shared, None, None)
    data = {key: made_of["data"][key] for key in ("name", "examples", "test_examples")}
    data["labels"] = made_of["labels"]
    return Task(label, metric, level, shared, data, made_of["base_model"])


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _write(comparison: Comparison) -> None:
    """All four files, each whole or not at all."""
    texts = {
        "comparison.md": render.to_markdown(comparison),
        "comparison.csv": render.to_csv(comparison),
        "comparison.json": render.to_json(comparison),
        "runs.jsonl": render.to_lines(comparison),
    }
    for name, text in texts.items():
        try:
            write_atomically(comparison.folder / name, text.encode())
        except OSError as error:
            raise RunError(
                f"cannot write {comparison.folder / name}: {error.strerror or error}; free some space "
                "and give the same command again"
            ) from error
