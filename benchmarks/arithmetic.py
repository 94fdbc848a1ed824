"""Exact match of a small decoder that learns word problems from clients who each know mostly one kind of them.

    python benchmarks/arithmetic.py            # trains the base, runs what is missing, half an hour on one core
    python benchmarks/arithmetic.py --tables   # the tables alone, from what is there

The base has read sums in signs, and addition and subtraction in words, and nothing else (arithmetic_base.py). Six clients
have word problems of six operations, four of them new to the base in words, four fifths of each client's of one operation.
The runs are those of `florana compare` under runs/arithmetic: answers are generated greedily, and the last number counts.
Tables go to benchmarks/results/arithmetic.{md,csv,jsonl}.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from arithmetic_problems import OPERATIONS, problem

HERE = Path(__file__).parent
RESULTS = HERE / "results"
METHODS = ("fedit", "florana", "florana-opt", "florana-blend", "ideal", "local", "centralised")
OWN = 0.8
"""Share of a client's problems that are of its own operation."""

CONFIG = """\
[model]
name = "{folder}/base"
max_length = 64

[data]
source = "{folder}/train.jsonl"
test = "{folder}/test.jsonl"
family = "causal"
prompt = "question : {{question}} answer :"
response = " {{answer}}"
reference = "{{result}}"
scorer = "number"
metric = "exact_match"

[evaluation]
max_new_tokens = 16
batch_size = 120

[lora]
rank = 8
alpha = 16
target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]

[federation]
clients = {clients}
rounds = {rounds}
partition = "column"
column = "site"

[training]
steps = {steps}
batch_size = 16
learning_rate = 3e-3
"""


def write_problems(folder: Path, each: int, test: int, seed: int = 0) -> None:
    """Problems of six sites, ``each`` per site, and a test set of ``test`` with all operations alike.

    Args:
        folder: gets train.jsonl and test.jsonl.
        each: problems of a site.
        test: problems of the test set.
        seed: of everything random.
    """
    rng = np.random.default_rng([seed, 1])
    names = list(OPERATIONS)
    rows = []
    for site, own in enumerate(names):
        for _ in range(each):
            operation = own if rng.random() < OWN else str(rng.choice(names))
            rows.append({**problem(operation, rng)._asdict(), "site": site})
    known = {row["question"] for row in rows}
    held: list[dict[str, Any]] = []
    while len(held) < test:
        made = problem(names[len(held) % len(names)], rng)
        if made.question not in known:
            held.append(made._asdict())
    for name, chosen in (("train", rows), ("test", held)):
        text = "".join(json.dumps(row) + "\n" for row in chosen)
        (folder / f"{name}.jsonl").write_text(text)


def table(comparison: dict[str, Any], command: str) -> str:
    """Final exact match by method, and its difference to plain averaging."""
    rows = comparison["rows"]
    overall = {row["method"]: row["difference"] for row in comparison["overall"]}
    lines = [
        "# Exact match on word problems, by method",
        "",
        f"`{command}`, seeds {comparison['seeds']}; mean over seeds of the final global model on problems that no client has.",
        "",
        "| method | exact match | 95 % interval | difference to fedit |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda r: -r["score"]["mean"]):
        score, difference = row["score"], overall[row["method"]]
        spread = "–" if score["half_width"] is None else f"± {100 * score['half_width']:.1f}"
        apart = "–" if difference is None else f"{100 * difference:+.1f}"
        lines.append(f"| `{row['method']}` | {100 * score['mean']:.1f} % | {spread} | {apart} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make what is missing, run it, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("runs/arithmetic"))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--base-steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    runs = folder / "comparison"
    if not given.tables:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "base" / "model.safetensors").exists():
            from arithmetic_base import pretrain

            pretrain(folder / "base", given.base_steps)
        write_problems(folder, each=240, test=300)
        config = folder / "arithmetic.toml"
        settings = {"clients": len(OPERATIONS), "rounds": given.rounds, "steps": given.steps}
        config.write_text(CONFIG.format(folder=folder.as_posix(), **settings))
        command = [sys.executable, "-m", "florana", "compare", str(config), "--seeds", given.seeds]
        command += ["--methods", given.methods, "--jobs", str(given.jobs), "--set", "threads=1"]
        command += ["--output", str(runs)]
        subprocess.run(command, check=True)
    for source, kept in (("comparison.csv", "arithmetic.csv"), ("runs.jsonl", "arithmetic.jsonl")):
        shutil.copyfile(runs / source, RESULTS / kept)
    comparison = json.loads((runs / "comparison.json").read_text())
    text = table(comparison, "python benchmarks/arithmetic.py")
    (RESULTS / "arithmetic.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
