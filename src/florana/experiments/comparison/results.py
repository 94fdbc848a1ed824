"""What a finished run folder says, as far as a comparison needs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from florana.errors import RunError
from florana.experiments.comparison.items import Cell, RunKey
from florana.experiments.run_folder import RunFolder
from florana.experiments.statistics import first_at_or_above
from florana.tasks.metrics import Metric

Curve = tuple[float | None, ...]
"""A number per round, beginning with round 0; None where the run has none."""


@dataclass(frozen=True, slots=True)
class Curves:
    """A run by round, beginning with the untrained start; for the units see ``RoundRow``."""

    round: tuple[int, ...]
    score: Curve
    loss: Curve
    client_score: Curve
    worst_client: Curve
    gap: Curve
    error_used: Curve
    error_average: Curve
    error_optimum: Curve
    bytes_up: tuple[int, ...]
    bytes_down: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run.

    Args:
        key: which one.
        folder: its folder.
        curves: its numbers by round.
        seconds: wall time of all parts of all rounds, without set-up.
    """

    key: RunKey
    folder: Path
    curves: Curves
    seconds: float

    def megabytes_to_reach(self, level: float, metric: Metric) -> float | None:
        """Megabytes up and down until the end of the first round with this score or a better one, or None."""
        curve = [None if s is None else metric.lead(s, level) for s in self.curves.score]
        found = first_at_or_above(curve, 0.0)
        if found is None:
            return None
        both = zip(self.curves.bytes_up, self.curves.bytes_down, strict=True)
        return list(accumulate(up + down for up, down in both))[found] / 1e6

    def as_line(self, base: Path) -> dict[str, Any]:
        """Its line in runs.jsonl, with its folder as seen from ``base``."""
        return {
            "task": self.key.task,
            "method": self.key.method,
            "seed": self.key.seed,
            "folder": self.folder.relative_to(base).as_posix(),
            "seconds": self.seconds,
            "curves": asdict(self.curves),
        }


def read_result(cell: Cell) -> RunResult:
    """Read a finished run.

    Raises:
        RunError: if a file of it is missing or cannot be read.
    """
    rounds = [line for line in _lines(cell, "metrics.jsonl") if line.get("kind") == "round"]
    expected = list(range(cell.config.federation.rounds + 1))
    if [line["round"] for line in rounds] != expected:
        raise RunError(
            f"{cell.folder / 'metrics.jsonl'}: expected rounds 0 to {expected[-1]}, got "
            f"{[line['round'] for line in rounds]}; delete {cell.folder} to do this run again"
        )
    try:
        curves = Curves(**{name: tuple(r[name] for r in rounds) for name in Curves.__slots__})
        seconds = sum(_seconds(line) for line in _lines(cell, "timings.jsonl"))
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{cell.folder}: a number is missing in metrics.jsonl or timings.jsonl "
            f"({type(error).__name__}: {error}); delete the folder to do this run again"
        ) from error
    return RunResult(cell.key, cell.folder, curves, seconds)


def read_provenance(cell: Cell) -> dict[str, Any]:
    """What a run that was begun is made of."""
    return RunFolder.open(cell.folder).read_provenance()


def _seconds(line: dict[str, Any]) -> float:
    return sum(float(value) for part, value in line.items() if part != "round")


def _lines(cell: Cell, name: str) -> Sequence[dict[str, Any]]:
    path = cell.folder / name
    try:
        with path.open(encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read: {error}; delete {cell.folder} to do this run again"
        ) from error
