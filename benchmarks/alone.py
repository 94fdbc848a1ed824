"""What each client of a run reaches alone: the same steps on its own data, and never an aggregation.

    python benchmarks/alone.py [--set KEY=VALUE ...]

Printed are every client's accuracy on the global test set, and the best. It is the other reading of "the best
single client's own model", beside the client models just before the last aggregation that a run reports.
"""

from __future__ import annotations

import argparse

from florana.config import load_config
from florana.experiments.setup import Experiment, prepare
from florana.training.loop import Place, train


def accuracy_alone(experiment: Experiment, client: int) -> float:
    """Train one client for all rounds on its own data, and test it on the global test set."""
    model, config = experiment.model, experiment.config
    model.load(model.initial)
    for server_round in range(1, config.federation.rounds + 1):
        place = Place(config.seed, server_round, config.federation.rounds, client)
        train(model, experiment.clients[client].train, experiment.objective, config.training, place)
    return experiment.objective.evaluate(model, experiment.test).value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as florana run"
    )
    experiment = prepare(load_config(None, parser.parse_args().set))
    accuracies = []
    for client, data in enumerate(experiment.clients):
        accuracies.append(accuracy_alone(experiment, client))
        print(f"client {client}, {len(data.train):>4} examples: {accuracies[-1]:.3f}", flush=True)
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    print(f"best alone: {accuracies[best]:.3f} (client {best})")


if __name__ == "__main__":
    main()
