"""Do gauge, step size, norm and shrinkage matter over rounds? Whole methods at several skews and rates.

    FLORANA_DATA=... python benchmarks/evidence_rounds.py            # runs what is missing, then the tables
    FLORANA_DATA=... python benchmarks/evidence_rounds.py --tables   # the tables alone, from what is there

The runs are those of `florana compare`, one comparison per setting under runs/evidence-rounds; what is finished is not
run again. The figures go to benchmarks/results/evidence-rounds.json, and the tables to evidence-rounds.md beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from evidence_document import write_document

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "evidence-rounds.json"
METHODS = (
    "fedit",
    "fedit:server.step_size=0.5",
    "florana",
    "florana-opt",
    "florana-opt:gauge=balanced",
    "florana-opt:gauge=orthonormal",
    "florana-opt:server.step_size=0.5",
    "florana-opt:server.shrinkage=noise",
    "florana-opt:server.shrinkage=norm",
    "florana-blend",
    "ideal",
    "hetlora",
)
SETTINGS = (
    *(("docstrings", "0.1", "3e-3"), ("ag_news", "0.1", "3e-3")),
    *(("docstrings", "1", "3e-3"), ("ag_news", "1", "3e-3")),
    *(("docstrings", "0.1", "1e-2"), ("ag_news", "0.1", "1e-2")),
)
"""Task, Dirichlet α and learning rate, the most telling first; 3 rounds of 20 steps, rank 8, seed 0."""
SEED, STEPS, ROUNDS = 0, 20, 3


def run(task: str, skew: str, rate: str, folder: Path) -> None:
    """One comparison of all methods; finished runs are kept."""
    settings = [
        f"federation.dirichlet_alpha={skew}",
        f"training.learning_rate={rate}",
        f"training.steps={STEPS}",
        f"federation.rounds={ROUNDS}",
        "threads=1",
    ]
    command = [sys.executable, "-m", "florana", "compare", str(HERE / "tasks" / f"{task}.toml")]
    command += ["--methods", ",".join(METHODS), "--seeds", str(SEED), "--output", str(folder)]
    command += ["--no-report", "--jobs", "1"]
    command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, check=True)


def gather(root: Path) -> Iterator[dict[str, Any]]:
    """One row per setting and method, from the comparisons that are finished."""
    for setting in SETTINGS:
        path = root / "-".join(setting) / "comparison.json"
        if not path.exists():
            continue
        for row in json.loads(path.read_text())["rows"]:
            yield {
                **dict(zip(("task", "skew", "learning_rate"), setting, strict=True)),
                "method": row["method"],
                "accuracy": row["score"]["mean"],
                "error": row["error"]["mean"] if row.get("error") else None,
            }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy of plain averaging, and every method's difference to it in points, by setting."""
    settings = list(dict.fromkeys((r["task"], r["skew"], r["learning_rate"]) for r in rows))
    by = {(r["task"], r["skew"], r["learning_rate"], r["method"]): r["accuracy"] for r in rows}
    names = [f"{task}, skew {skew}, rate {rate}" for task, skew, rate in settings]
    lines = [["method", *names, "mean", "worst"], ["---", *["---:"] * (len(settings) + 2)]]
    for method in METHODS:
        points = [100 * (by[*s, method] - by[*s, "fedit"]) for s in settings]
        cells = [f"{by[*s, 'fedit']:.3f}" for s in settings]
        if method != "fedit":
            cells = [f"{p:+.1f}" for p in points]
        lines.append([f"`{method}`", *cells, f"{mean(points):+.1f}", f"{min(points):+.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence-rounds"))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.tables:
        for setting in SETTINGS:
            run(*setting, given.folder / "-".join(setting))
        RESULTS.write_text(json.dumps(list(gather(given.folder)), indent=1) + "\n")
    made = table(json.loads(RESULTS.read_text()))
    RESULTS.with_suffix(".md").write_text(
        "# Three rounds, whole methods\n\nMade by `python benchmarks/evidence_rounds.py --tables` from "
        f"{RESULTS.name} beside it. Accuracy of `fedit`, and points above it.\n\n{made}\n"
    )
    write_document({"rounds": made})
    print(made)


if __name__ == "__main__":
    main()
