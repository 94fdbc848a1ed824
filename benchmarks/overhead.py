"""What the machinery of a round costs beside the bare training loops of its clients.

    python benchmarks/overhead.py [--rounds 3] [--set KEY=VALUE ...]
    python benchmarks/overhead.py --growth     # 2, 10 and 100 clients with next to no work: does it grow with the bytes?

Both do the same work on the same data in this process, one after the other: the bare loops load, train and test
every client and test the global model; florana does that behind Flower, with records, aggregation, error
report, metrics and checkpoints. Printed are seconds per round of both, in turn, the ratio, and florana's
own account of where the time went. What is neither training nor evaluation shall take at most 3 % of the
quickstart, and grow no faster with the number of clients than the bytes that go over the wire.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from florana.config import load_config
from florana.experiments import runner
from florana.experiments.events import Event, RoundRow
from florana.experiments.setup import Experiment, prepare
from florana.training import together
from florana.training.loop import Place, train

REST = ("federation", "error_report", "writing")
"""Parts of a round that are neither training nor evaluation."""
TINY = (
    "federation.rounds=3",
    "federation.partition='iid'",
    "training.steps=1",
    "training.batch_size=2",
    "data.test_fraction=0.02",
    "data.max_examples=1500",
)


def bare_round(experiment: Experiment, server_round: int) -> float:
    """Seconds for one round of the training loops alone."""
    began = time.perf_counter()
    model, config = experiment.model, experiment.config
    for client, data in enumerate(experiment.clients):
        model.load(model.initial)
        place = Place(config.seed, server_round, config.federation.rounds, client)
        train(model, data.train, experiment.objective, config.training, place)
        with together.merged(model, data.test):
            experiment.objective.evaluate(model, data.test)
        model.take()
    with together.merged(model, experiment.test):
        experiment.objective.evaluate(model, experiment.test)
    return time.perf_counter() - began


class Alternating:
    """Watches a florana run, and does a bare round after each of its rounds."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.florana: list[float] = []
        self.bare: list[float] = []
        self._mark = 0.0

    def __call__(self, event: Event) -> None:
        """Take the time of a florana round, then of a bare one."""
        if isinstance(event, RoundRow) and event.server_round:
            self.florana.append(time.perf_counter() - self._mark)
            self.bare.append(bare_round(self.experiment, event.server_round))
            self._mark = time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as florana run"
    )
    parser.add_argument("--growth", action="store_true", help="2, 10 and 100 clients")
    given = parser.parse_args()
    if given.growth:
        growth(given.set, (2, 10, 100))
        return
    # Two rounds more than are timed: the first also tests the untrained model, the last every client's model on
    # the global test set.
    overrides = [*given.set, f"federation.rounds={given.rounds + 2}"]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        config = load_config(None, [*overrides, f'output="{folder}"'])
        watch = Alternating(prepare(config))
        runner.start(config, watch)
        lines = (folder / "timings.jsonl").read_text().splitlines()
    timed = slice(1, given.rounds + 1)
    timings = [json.loads(line) for line in lines if json.loads(line)["round"]][timed]
    print("round   florana s   bare s   ratio")
    pairs = list(zip(watch.florana, watch.bare, strict=True))[timed]
    for timing, (_, bare) in zip(timings, pairs, strict=True):
        timing["writing"] -= bare  # the bare round is done while florana writes
    for number, (ours, bare) in enumerate(pairs, start=2):
        print(f"{number:>5} {ours:>11.2f} {bare:>8.2f} {ours / bare:>7.3f}")
    print(f"median overhead: {100 * (median(o / b for o, b in pairs) - 1):+.1f} % ")
    parts = ("training", "evaluation", "federation", "error_report", "last_clients", "writing")
    whole = sum(t[p] for t in timings for p in parts if p != "last_clients")
    rest = sum(t[p] for t in timings for p in REST)
    print("florana's own account, share of the round:")
    for part in parts:
        if part != "last_clients":
            print(f"  {part:13} {100 * sum(t[part] for t in timings) / whole:6.2f} %")
    print(f"neither training nor evaluation: {100 * rest / whole:.2f} % (target: at most 3 %)")


def growth(overrides: Sequence[str], counts: Sequence[int]) -> None:
    """Print the account of a round for several numbers of clients that do one step of two examples each."""
    print("clients   federation s   error report s   writing s   MB moved   ms per MB")
    for count in counts:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "run"
            settings = [*TINY, *overrides, f"federation.clients={count}", f'output="{folder}"']
            runner.start(load_config(None, settings), lambda _event: None)
            seconds = json.loads((folder / "timings.jsonl").read_text().splitlines()[2])
            rounds = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        (told,) = [line for line in rounds if line["kind"] == "round" and line["round"] == 2]
        moved = (told["bytes_up"] + told["bytes_down"]) / 1e6
        spent = [seconds[part] for part in REST]
        print(
            f"{count:>7} {spent[0]:>14.3f} {spent[1]:>16.3f} {spent[2]:>11.3f} {moved:>10.2f} "
            f"{1e3 * sum(spent) / moved:>11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
