"""Folders of runs and comparisons for the tests of the report, written in the formats of the real ones.

A comparison is written by the code that writes real ones, from made-up curves: what it changes, a test sees.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florana.experiments.comparison import render
from florana.experiments.comparison.items import MethodItem, RunKey
from florana.experiments.comparison.progress import RunFailed
from florana.experiments.comparison.results import Curves, RunResult
from florana.experiments.comparison.table import levels, make_overall, make_rows
from florana.experiments.comparison.value import Comparison, Task
from florana.tasks.metrics import METRICS, Metric

MODULES = [
    f"backbone.encoder.layer.{layer}.attention.self.{kind}"
    for layer in range(3)
    for kind in ("query", "value")
]
LABELS = ["mail", "network", "graphics", "numbers and dates"]
RANK = 4


def round_line(number: int, modules: Sequence[str] = MODULES) -> dict[str, Any]:
    """A round as the runner writes it; round 0 has no clients and no errors."""
    started = number > 0
    line: dict[str, Any] = {
        "kind": "round",
        "round": number,
        "score": 0.9 - 0.8 / (1 + number),
        "loss": 2.5 / (1 + number),
        "client_score": 0.8 if started else None,
        "worst_client": 0.55 if started else None,
        "error_used": 0.3 / number if started else None,
        "error_average": 0.5 / number if started else None,
        "error_optimum": 0.25 / number if started else None,
        "bytes_up": 3_121_170 if started else 0,
        "bytes_down": 3_120_510 if started else 0,
        "gap": -0.1 if started else None,
    }
    if not started:
        return line
    errors = {
        name: {
            "used": (0.3 + 0.02 * k) / number,
            "average": (0.5 + 0.02 * k) / number,
            "optimum": (0.25 + 0.02 * k) / number,
            "target_norm": 0.5 * number,
        }
        for k, name in enumerate(modules)
    }
    values = [math.exp(-0.4 * k) for k in range(12)]
    spectra = {name: {"rank": RANK, "singular_values": values} for name in modules}
    return {**line, "left_out": {}, "modules": errors, "spectra": spectra}


def client_line(number: int, client: int, last: bool) -> dict[str, Any]:
    """A client's part in a round; after the last, also on the global test set."""
    line = {
        "kind": "client",
        "round": number,
        "client": client,
        "weight": 0.25,
        "num-examples": 40 + 30 * client,
        "train-loss": 1.5 / number,
        "score": 0.5 + 0.1 * client,
        "loss": 1.2 / number,
    }
    return {**line, "global_score": 0.3 + 0.05 * client} if last else line


def provenance(**changes: Any) -> dict[str, Any]:
    """A run's provenance.json, with ``changes`` of its top-level keys."""
    rng = np.random.default_rng(0)
    return {
        "config": {
            "seed": 0,
            "output": None,
            "lora": {"rank": RANK, "alpha": 16.0, "rslora": False, "target_modules": ["query", "value"]},
            "federation": {"clients": 4, "rounds": 3, "participation": 1.0, "partition": "dirichlet",
                           "dirichlet_alpha": 0.3, "uplink": "float32", "downlink": "int8"},
            "training": {"steps": 8, "epochs": None, "batch_size": 16, "learning_rate": 0.01},
            "method": {"name": "florana-opt", "gauge": "balanced"},
            "server": {"step_size": 1.0, "shrinkage": False},
        },
        "seed": 0,
        "versions": {"python": "3.11.7", "florana": "0.1.0"},
        "machine": {"system": "Linux", "threads": 1, "device": "cpu"},
        "base_model": {"name": "sentence-transformers/all-MiniLM-L6-v2", "sha256": "53aa" * 16},
        "data": {"name": "docstrings", "examples": 300, "fingerprint": "cee0" * 16,
                 "test_examples": 30, "test_fingerprint": "bc65" * 16},
        "metric": {"name": "accuracy", "higher_is_better": True, "percent": True},
        "labels": LABELS,
        "partition": rng.integers(0, 60, (4, len(LABELS))).tolist(),
        **changes,
    }  # fmt: skip


def lines_of(rounds: int, clients: int = 4) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run of so many rounds."""
    lines = [round_line(0)]
    for number in range(1, rounds + 1):
        lines += [client_line(number, c, number == rounds) for c in range(clients)]
        lines.append(round_line(number))
    return lines


def light(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines without modules, whose figures take longest to draw."""
    return [{k: v for k, v in line.items() if k not in ("modules", "spectra")} for line in lines]


def write_run(
    folder: Path,
    lines: Sequence[Mapping[str, Any]] | None = None,
    *,
    finished: bool = True,
    **changes: Any,
) -> Path:
    """Write a run folder, of three rounds unless ``lines`` says otherwise; ``changes`` are of its provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = lines_of(3) if lines is None else lines
    (folder / "provenance.json").write_text(json.dumps(provenance(**changes)), "utf-8")
    (folder / "config.toml").write_text('seed = 0\n\n[method]\nname = "florana-opt"\n', "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(v) + "\n" for v in lines), "utf-8")
    timings = [{"round": r, "training": 20.0 * bool(r), "evaluation": 3.5} for r in range(4)]
    (folder / "timings.jsonl").write_text("".join(json.dumps(v) + "\n" for v in timings), "utf-8")
    if finished:
        summary = {"rounds": 3, "score": 0.7, "loss": 0.625, "best_round": 3, "best_score": 0.7,
                   "best_client": "client 3", "best_client_score": 0.45}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    return folder


def write_comparison(
    folder: Path,
    tasks: Sequence[str] = ("sst2", "ag_news"),
    methods: Sequence[str] = ("fedit", "florana", "florana-opt:gauge=balanced"),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    skip: Sequence[tuple[str, str, int]] = (),
    rounds: int = 6,
    metric: Metric = METRICS["accuracy"],
) -> Path:
    """Write what ``florana compare`` leaves behind but the run folders; runs in ``skip`` have failed."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [RunKey(t, m, s) for t in tasks for m in methods for s in seeds]
    items = [
        MethodItem(m, m.split(":")[0], {p.split("=")[0]: p.split("=")[1] for p in m.split(":")[1:]})
        for m in methods
    ]
    failures = [RunFailed(RunKey(*key), "the disk is full") for key in skip]
    runs = [
        _result(folder, key, methods.index(key.method), rounds)
        for key in keys
        if (key.task, key.method, key.seed) not in skip
    ]
    metrics = dict.fromkeys(tasks, metric)
    level = levels(runs, metrics, methods[0], None)
    rows = make_rows(runs, metrics, methods, seeds, methods[0], level)
    base = {"name": "sentence-transformers/all-MiniLM-L6-v2", "sha256": "53aa" * 16}
    comparison = Comparison(
        folder=folder,
        command="florana compare sst2.toml ag_news.toml",
        tasks=tuple(
            Task(
                t,
                metric,
                level[t],
                {"data": {"source": f"{t}.jsonl", "test": None}, "lora": {"rank": 8}},
                {"name": t, "examples": 900, "test_examples": 100, "labels": LABELS},
                base,
            )
            for t in tasks
        ),
        methods=tuple(items),
        seeds=tuple(seeds),
        baseline=methods[0],
        rows=rows,
        overall=make_overall(rows, methods, metrics),
        runs=tuple(runs),
        failures=tuple(failures),
        versions={"python": "3.11.7", "florana": "0.1.0"},
        machine={"system": "Linux", "threads": 1},
    )
    (folder / "comparison.json").write_text(render.to_json(comparison), "utf-8")
    (folder / "runs.jsonl").write_text(render.to_lines(comparison), "utf-8")
    return folder


def _result(folder: Path, key: RunKey, index: int, rounds: int) -> RunResult:
    """A made-up run: later methods are a little better, with a smaller error, at other costs."""
    rng = np.random.default_rng([index, key.seed, len(key.task)])
    shared = np.random.default_rng([key.seed, len(key.task)]).normal(0, 0.01)
    end = 0.55 + 0.02 * len(key.task) + 0.004 * index + shared
    numbers = np.arange(rounds + 1)
    accuracy = np.clip(
        end * (1 - np.exp(-0.7 * numbers)) + 0.08 + rng.normal(0, 0.006, rounds + 1), 0, 1
    )
    error = None if index % 7 == 6 else 0.5 - 0.5 * ((index * 5) % 20) / 20

    def by_round(value: float | None) -> tuple[float | None, ...]:
        return (None, *(None if value is None else value / r for r in range(1, rounds + 1)))

    cost = 3_000_000 * (1 + index % 5) // (1 + index % 3)
    curves = Curves(
        round=tuple(map(int, numbers)),
        score=tuple(map(float, accuracy)),
        loss=tuple(float(v) for v in 2.5 - 2 * accuracy),
        client_score=(None, *([0.75] * rounds)),
        worst_client=(None, *([0.5] * rounds)),
        gap=(None, *(0.75 - float(a) for a in accuracy[1:])),
        error_used=by_round(error),
        error_average=by_round(None if error is None else 0.5),
        error_optimum=by_round(None if error is None else 0.2),
        bytes_up=(0, *([cost] * rounds)),
        bytes_down=(0, *([cost * (1 + index % 4)] * rounds)),
    )
    run_folder = folder / key.task / key.method / f"seed{key.seed}"
    return RunResult(key, run_folder, curves, 100.0 + index)
