"""Cost of a round against the number of clients: measured at 10, 100 and 1,000, beside the formulas of cost_model.py.

    python benchmarks/scale.py                     # writes benchmarks/results/scale.{md,jsonl}
    python benchmarks/scale.py --clients 10,100 --methods fedit,florana-blend

First simulated updates: clients only add noise to what they get, and all else is real (records, strategy, checks,
aggregation, error report, byte counter). Then whole runs of ``florana run`` with a tiny random decoder. Every case is a
process of its own on one thread; times are CPU seconds, so that what else the machine does matters little.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: forked processes must not share its threads

import torch
from cost_model import TRAFFIC, flops, numbers, server_bytes
from random_base import Decoder, write_decoder, write_texts

from florana.adapter import Adapter, LoraPair, Plan
from florana.experiments.flower_log import flower_log_in
from florana.experiments.run_folder import RunFolder
from florana.federation.client_app import LocalResult, build_client_app
from florana.federation.client_states import ClientStates
from florana.federation.local_grid import LocalGrid
from florana.federation.records import Held
from florana.federation.strategy import LoraStrategy, RoundOutcome
from florana.federation.streamed_grid import StreamedGrid
from florana.seeding import generator

RESULTS = Path(__file__).parent / "results" / "scale"
SHAPES = [(256, 256)] * 4
RANK, HEADS, ROUNDS = 4, 256, 3
METHODS = ("fedit", "ffa-lora", "fedsa-lora", "fed-sb", "florana", "florana-opt", "florana-blend",
           "flora", "fedex-lora")  # fmt: skip
LARGEST = {"florana": 100}
"""Its mixing weights are 2 U unknowns, and a thousand clients take minutes."""
TINY = Decoder(hidden=64, inner=128, layers=2, heads=4)


def initial() -> Adapter:
    """LoRA's start on square modules, with a head."""
    g = torch.Generator().manual_seed(0)
    pairs = {
        f"layer{i}": LoraPair(torch.randn(RANK, d_in, generator=g), torch.zeros(d_out, RANK), RANK)
        for i, (d_out, d_in) in enumerate(SHAPES)
    }
    return Adapter(pairs, {"head": torch.zeros(HEADS)})


def simulate(method: str, clients: int) -> dict[str, Any]:
    """Three rounds of one method; the costs of the third."""
    spent, rows = 0.0, list[dict[str, float]]()
    mark = time.process_time()

    def train(start: Held, plan: Plan, server_round: int, client: int) -> LocalResult:
        nonlocal spent
        began = time.process_time()
        rng = generator(0, "noise", server_round, client)
        moved = {
            name: t + 0.02 * torch.from_numpy(rng.standard_normal(tuple(t.shape))).float()
            for name, t in start.adapter.tensors(plan.train).items()
        }
        spent += time.process_time() - began
        return LocalResult(start.adapter.with_tensors(moved), 10 + client % 7, {"accuracy": 0.5})

    def finish(outcome: RoundOutcome) -> None:
        nonlocal spent, mark
        before = time.process_time()
        _ = outcome.aggregate.error
        now = time.process_time()
        rows.append(
            {
                "round_seconds": before - mark - spent,
                "error_seconds": now - before,
                "up": outcome.bytes_up / clients,
                "down": outcome.bytes_down / clients,
            }
        )
        spent, mark = 0.0, time.process_time()

    weights = {name: torch.ones(pair.shape) for name, pair in initial().pairs.items()}
    for weight in weights.values():
        weight.normal_(generator=torch.Generator().manual_seed(1))
    at_rest = _peak()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        strategy = LoraStrategy(
            initial(), method, base_weights=weights, spool=folder, on_round=finish
        )
        app = build_client_app(initial(), train)
        grid = StreamedGrid(LocalGrid(app, clients, states=ClientStates(folder / "states")))
        with flower_log_in(folder / "flower.log"):
            strategy.start(grid, strategy.initial_arrays(), ROUNDS)
    last, heads = rows[-1], HEADS if TRAFFIC[method].heads else 0
    said = {way: numbers(getattr(TRAFFIC[method], way), SHAPES, RANK, clients, heads) for way in ("up", "down")}  # fmt: skip
    return {
        "method": method,
        "clients": clients,
        **last,
        **{f"{way}_formula": 4 * count for way, count in said.items()},
        "grown_mib": _peak() - at_rest,
        "memory_formula_mib": server_bytes(SHAPES, RANK, clients) / 2**20,
        "flops": flops(SHAPES, RANK, clients),
    }


def whole_run(folder: str, clients: int) -> dict[str, Any]:
    """A run of the tiny decoder: where the wall time of its last round went, and its peak memory."""
    from florana.config import load_config
    from florana.experiments import runner

    settings = [
        f"model.name='{folder}/base'", f"data.source='{folder}/text.jsonl'", "data.text='text'",
        "data.label='label'", f"data.test='{folder}/test.jsonl'", "lora.rank=4", "lora.alpha=4.0",
        "lora.target_modules=['q_proj', 'v_proj']", f"federation.clients={clients}", "federation.rounds=3",
        "federation.partition='iid'", "training.steps=1", "training.batch_size=2",
        f"data.max_examples={16 * clients}", f"output='{folder}/run-{clients}'",
    ]  # fmt: skip
    at_rest, began = _peak(), time.process_time()
    runner.start(load_config(None, settings), lambda _event: None)
    out = RunFolder.open(Path(folder) / f"run-{clients}").path
    timing = json.loads((out / "timings.jsonl").read_text().splitlines()[2])
    sent = [line for line in map(json.loads, (out / "metrics.jsonl").open()) if line["kind"] == "round"]  # fmt: skip
    return {
        "clients": clients,
        **{part: seconds for part, seconds in timing.items() if part not in ("round", "last_clients")},
        "cpu_seconds": time.process_time() - began,
        "bytes_up": sent[2]["bytes_up"],
        "grown_mib": _peak() - at_rest,
    }  # fmt: skip


def apart(work: Any, *arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """The result of a function, called in a process of its own; it begins with this one's memory and imports."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(other, work, arguments))
    process.start()
    other.close()
    made: dict[str, Any] = mine.recv()
    process.join()
    return made


def _send(pipe: Connection, work: Any, arguments: Sequence[Any]) -> None:  # noqa: ANN401
    torch.set_num_threads(1)
    pipe.send(work(*arguments))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulated_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Costs per client, as Markdown."""
    lines = [
        "| method | clients | round, CPU s | ms per client | error report, CPU s | bytes up | formula | bytes down "
        "| formula | memory grown, MiB | formula, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{r['method']}` | {r['clients']:,} | {r['round_seconds']:.2f} | {1e3 * r['round_seconds'] / r['clients']:.2f} "
        f"| {r['error_seconds']:.2f} | {r['up']:,.0f} | {r['up_formula']:,.0f} | {r['down']:,.0f} "
        f"| {r['down_formula']:,.0f} | {r['grown_mib']:.1f} | {r['memory_formula_mib']:.1f} |"
        for r in rows
    ]
    return "\n".join(lines)


def run_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where the third round of a whole run went, as Markdown."""
    parts = ("training", "federation", "error_report", "evaluation", "writing")
    heads = " | ".join(f"{part.replace('_', ' ')}, s" for part in parts)
    lines = [
        f"| clients | {heads} | federation, ms per client | bytes up | memory grown, MiB |",
        "| ---: |" + " ---: |" * (len(parts) + 3),
    ]
    for r in rows:
        seconds = " | ".join(f"{r[part]:.2f}" for part in parts)
        lines.append(
            f"| {r['clients']:,} | {seconds} | {1e3 * r['federation'] / r['clients']:.2f} "
            f"| {r['bytes_up']:,} | {r['grown_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", default="10,100,1000")
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    counts, rows, runs = [int(n) for n in given.clients.split(",")], [], []
    for method in given.methods.split(","):
        for count in (n for n in counts if n <= LARGEST.get(method, n)):
            rows.append(apart(simulate, method, count))
            print(json.dumps(rows[-1]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_decoder(Path(folder) / "base", TINY)
        write_texts(Path(folder) / "text.jsonl", 16 * max(counts))
        write_texts(Path(folder) / "test.jsonl", 16)
        for count in counts:
            runs.append(apart(whole_run, folder, count))
            print(json.dumps(runs[-1]), flush=True)
    text = (
        "# Cost against the number of clients\n\n`python benchmarks/scale.py`; what it means: docs/scale.md.\n\n"
        f"## Simulated updates\n\nFour modules of 256 × 256, rank {RANK}, a head of {HEADS} numbers; third round.\n\n"
        f"{simulated_table(rows)}\n\n## Whole runs\n\nA decoder of width 64 with two layers, rank 4; second round.\n\n"
        f"{run_table(runs)}\n"
    )
    print(text)
    if given.methods == ",".join(METHODS) and given.clients == "10,100,1000":
        RESULTS.with_suffix(".md").write_text(text)
        lines = [json.dumps(row) + "\n" for row in (*rows, *runs)]
        RESULTS.with_suffix(".jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
