"""Comparisons made up for tests: a small grid, finished run folders for it, and readers of what is written."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from crash import SMALL
from florana.config import RunConfig
from florana.experiments.compare import compare
from florana.experiments.comparison.grid import Grid, build_grid
from florana.experiments.comparison.items import Cell
from florana.experiments.comparison.value import Comparison

METHODS = ["fedit", "florana-opt:gauge=balanced", "ideal"]
ROUNDS = 3


def small_grid(folder: Path, **given: Any) -> Grid:
    """One task with three methods and three seeds."""
    configs = given.pop("configs", {"toy": [*SMALL]})
    methods, seeds = given.pop("methods", METHODS), given.pop("seeds", [0, 1, 2])
    return build_grid(configs, methods, seeds, folder, baseline="fedit", **given)


def provenance(config: RunConfig) -> dict[str, Any]:
    """What a run is made of; the seed decides data and partition, as in real runs."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": {"florana": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux", "threads": config.threads, "device": "cpu"},
        "base_model": {"name": "m", "sha256": "0" * 64},
        "data": {"name": "d", "examples": 9, "test_examples": 1, "fingerprint": f"{config.seed}"},
        "labels": ["yes", "no"],
        "partition": [[config.seed, 3], [4, 5]],
    }


def made_up(cell: Cell, **changes: Any) -> list[dict[str, Any]]:
    """A finished run folder with numbers drawn from its key; the round lines that are in it."""
    rng = np.random.default_rng(zlib.crc32(str(cell.key).encode()))
    rounds = []
    for r in range(ROUNDS + 1):
        accuracy, client = (float(x) for x in rng.uniform(0.3, 0.9, 2))
        later = {
            "client_score": client, "worst_client": client / 2, "gap": client - accuracy,
            "error_used": float(rng.uniform()), "error_average": 0.5, "error_optimum": 0.1,
            "bytes_up": int(rng.integers(1e6)), "bytes_down": int(rng.integers(1e6)),
        }  # fmt: skip
        if r == 0:
            later = {k: 0 if k.startswith("bytes") else None for k in later}
        line = {"kind": "round", "round": r, "score": accuracy, "loss": 1.5 - accuracy, **later}
        rounds.append({**line, **(changes if r else {})})
    lines = [x for r in rounds for x in ({"kind": "client", "round": r["round"], "client": 0}, r)]
    timings = [{"round": r, "training": 2.0, "evaluation": 0.5 + r} for r in range(ROUNDS + 1)]
    write(cell, "provenance.json", json.dumps(provenance(cell.config)))
    write(cell, "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(cell, "timings.jsonl", "".join(json.dumps(line) + "\n" for line in timings))
    write(cell, "summary.json", json.dumps({"rounds": ROUNDS}))
    return rounds


def write(cell: Cell, name: str, text: str) -> None:
    """A file of a run folder."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / name).write_text(text)


def compare_toy(folder: Path, **given: Any) -> Comparison:
    """The grid of :func:`small_grid`, compared."""
    configs = given.pop("configs", {"toy": SMALL})
    return compare(configs, given.pop("methods", METHODS), [0, 1, 2], folder, **given)


def strict_json(text: str) -> Any:
    """JSON as every reader has it, without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def markdown_table(text: str) -> list[dict[str, str]]:
    """The first table of a Markdown text."""
    lines = next(x for x in text.split("\n\n") if x.startswith("|")).splitlines()
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def change(cell: Cell, *path: str, value: object) -> None:
    """Change one thing in a run's provenance."""
    found = json.loads((cell.folder / "provenance.json").read_text())
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    write(cell, "provenance.json", json.dumps(found))
