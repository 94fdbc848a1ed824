"""Does the distance to the exact mean decide accuracy? One round, the same clients, many operators.

    python benchmarks/evidence.py            # the cells that are missing, then the tables
    python benchmarks/evidence.py --units 4  # at most four more
    python benchmarks/evidence.py --tables   # the tables alone, from what is there

Results go to benchmarks/results/evidence-one-round.jsonl, one line per cell, number of local steps and operator, and
the tables to evidence-one-round.md beside it. A unit, one cell after one number of steps, is written when it is
finished, so the command can be interrupted and given again at any time. What clients have trained is kept under
runs/evidence, so that a new operator costs its scores alone. FLORANA_DATA names the folder of the data sets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from evidence_cells import Cell, has_every_operator, trained, units
from evidence_measures import Judged, drift, geometry, judge
from evidence_operators import CONTROLS, CORE, OPERATORS, Round
from torch import Tensor

from florana import Adapter, ClientUpdate
from florana.aggregators._contract import Module
from florana.experiments.setup import Experiment, prepare
from florana.lowrank import Product

RESULTS = Path(__file__).parent / "results" / "evidence-one-round.jsonl"

Row = dict[str, Any]


def measure(experiment: Experiment, cell: Cell, steps: int, rows: Sequence[Row]) -> list[Row]:
    """The rows of a cell after ``steps`` that ``rows`` lack."""
    torch.manual_seed(0)
    start, updates = trained(experiment, cell, steps)
    done = {row["operator"] for row in rows}
    wanted = _wanted(cell, steps) - done
    new = _compare(experiment, start, updates[steps], wanted, bf16=cell.bf16)
    return [{**cell.settings, "steps": steps, **row} for row in new]


def _compare(
    experiment: Experiment,
    start: Adapter,
    updates: Sequence[ClientUpdate],
    wanted: Collection[str],
    *,
    bf16: bool,
) -> list[Row]:
    """The wanted operators and controls on the same updates; plain averaging is scored in any case."""
    rounds = _rounds(start, updates)
    weights = next(iter(rounds.values())).module.weights
    heads = {
        name: torch.stack(
            [w * u.adapter.extras[name] for w, u in zip(weights, updates, strict=True)]
        ).sum(0)
        for name in start.extras
    }
    flat = [_flat(u.adapter.extras) for u in updates]
    about = drift(rounds, flat, _flat(start.extras))

    def score(products: Mapping[str, Product], extras: Mapping[str, Tensor]) -> Judged:
        return judge(experiment.model, start, products, extras, experiment.test, bf16=bf16)

    rows: list[Row] = []
    reference: Judged | None = None
    for operators, head in ((OPERATORS, heads), (CONTROLS, start.extras)):
        for name, operator in operators.items():
            if name not in wanted and reference is not None:
                continue
            made = {module: operator(r) for module, r in rounds.items()}
            judged = score(made, head)
            reference = reference or judged  # the first is plain averaging
            if name in wanted:
                row = {**_scores(judged, reference), **geometry(rounds, made), **about}
                rows.append({"operator": name, **row})
    return [{k: _short(v) for k, v in row.items()} for row in rows]


def _wanted(cell: Cell, steps: int) -> set[str]:
    """Operators and controls of a case."""
    return {*(OPERATORS if has_every_operator(cell, steps) else CORE), *CONTROLS}


def _rounds(start: Adapter, updates: Sequence[ClientUpdate]) -> dict[str, Round]:
    total = sum(u.num_examples for u in updates)
    weights = [u.num_examples / total for u in updates]
    return {
        name: Round(
            Module(
                name,
                [u.adapter.pairs[name] for u in updates],
                weights,
                pair.rank,
                pair.alpha,
                pair.rslora,
            ),
            pair.product,
        )
        for name, pair in start.pairs.items()
    }


def _flat(extras: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in extras.values()])


def _scores(judged: Judged, reference: Judged) -> Row:
    """Accuracy and loss, and the comparison with plain averaging example by example."""
    return {
        "accuracy": float(judged.right.double().mean()),
        "loss": float(judged.loss.mean()),
        "examples": len(judged.right),
        "top_answer": judged.top,
        "wins": int((judged.right & ~reference.right).sum()),
        "losses": int((~judged.right & reference.right).sum()),
    }


def _short(value: Any) -> Any:  # noqa: ANN401
    return float(f"{value:.6g}") if isinstance(value, float) else value


def read(path: Path = RESULTS) -> list[Row]:
    """The rows that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write(rows: Sequence[Row]) -> None:
    """Replace the file at once, so that a kill leaves whole cells only."""
    RESULTS.parent.mkdir(exist_ok=True)
    draft = RESULTS.with_suffix(".tmp")
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft.replace(RESULTS)


def _of(rows: Sequence[Row], cell: Cell, steps: int) -> list[Row]:
    """The rows that were measured in this cell after so many steps."""
    wanted = {**cell.settings, "steps": steps}
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _missing(rows: Sequence[Row]) -> list[tuple[Cell, int]]:
    """Cells and numbers of steps that lack an operator."""
    return [
        (cell, steps)
        for cell, steps in units()
        if not {row["operator"] for row in _of(rows, cell, steps)} >= _wanted(cell, steps)
    ]


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    parser.add_argument("--units", type=int, help="most units to measure now; by default all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.tables:
        prepared: tuple[Cell, Experiment] | None = None
        for cell, steps in _missing(read())[: given.units]:
            began = time.perf_counter()
            if prepared is None or prepared[0] != cell:
                prepared = cell, prepare(cell.config())
            new = measure(prepared[1], cell, steps, _of(read(), cell, steps))
            _write([*read(), *new])
            print(f"{cell}, {steps} steps: {time.perf_counter() - began:.0f} s", flush=True)
    from evidence_tables import write_tables

    print(write_tables(read(), RESULTS.with_suffix(".md")))


if __name__ == "__main__":
    main()
