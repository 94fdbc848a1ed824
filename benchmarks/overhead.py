"""What the machinery of a round costs beside the bare training loops of its clients.

    python benchmarks/overhead.py [--rounds 3] [--set KEY=VALUE ...]

Both do the same work on the same data in this process, one after the other: the bare loops load, train and test
every client and test the global model; florana does that behind Flower, with records, aggregation, error
report, metrics and checkpoints. Printed are seconds per round of both, in turn, the ratio, and florana's
own account of where the time went. Target on the quickstart: at most 5 %.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

from florana.config import load_config
from florana.experiments import runner
from florana.experiments.events import Event, RoundRow
from florana.experiments.setup import Experiment, prepare
from florana.training import together
from florana.training.loop import Place, train


def bare_round(experiment: Experiment, server_round: int) -> float:
    """Seconds for one round of the training loops alone."""
    began = time.perf_counter()
    model, config = experiment.model, experiment.config
    for client, data in enumerate(experiment.clients):
        model.load(model.initial)
        place = Place(config.seed, server_round, config.federation.rounds, client)
        train(model, data.train, experiment.objective, config.training, place)
        with together.merged(model):
            experiment.objective.evaluate(model, data.test)
        model.take()
    with together.merged(model):
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
        if isinstance(event, RoundRow):
            if event.server_round:
                self.florana.append(time.perf_counter() - self._mark)
            self.bare.append(bare_round(self.experiment, event.server_round + 1))
            self._mark = time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as florana run"
    )
    given = parser.parse_args()
    # One round more than is timed: the last also tests every client's model on the global test set.
    overrides = [*given.set, f"federation.rounds={given.rounds + 1}"]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        config = load_config(None, [*overrides, f'output="{folder}"'])
        watch = Alternating(prepare(config))
        runner.start(config, watch)
        lines = (folder / "timings.jsonl").read_text().splitlines()
    timings = [json.loads(line) for line in lines][1 : given.rounds + 1]
    print("round   florana s   bare s   ratio")
    pairs = list(zip(watch.florana, watch.bare, strict=False))[: given.rounds]
    for number, (ours, bare) in enumerate(pairs, start=1):
        print(f"{number:>5} {ours:>11.2f} {bare:>8.2f} {ours / bare:>7.3f}")
    print(
        f"median overhead: {100 * (median(o / b for o, b in pairs) - 1):+.1f} % (target: at most 5 %)"
    )
    parts = ("training", "evaluation", "federation", "error_report", "last_clients", "writing")
    whole = sum(t[p] for t in timings for p in parts if p != "last_clients")
    print("florana's own account, share of the round:")
    for part in parts:
        if part != "last_clients":
            print(f"  {part:13} {100 * sum(t[part] for t in timings) / whole:6.2f} %")


if __name__ == "__main__":
    main()
