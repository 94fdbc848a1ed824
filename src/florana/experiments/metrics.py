"""What a round looks like in metrics.jsonl, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from florana.adapter import ClientUpdate
from florana.errors import FederationError
from florana.experiments.events import RoundRow
from florana.federation.outcome import RoundOutcome
from florana.training.evaluation import Score

SPECTRUM = 128
"""Most singular values of a module that are written for a round."""

RECEIVED = ("received-accuracy", "received-loss", "test-examples")
"""What clients report of the global model that they got."""

SECONDS = "seconds"
"""A client's own wall time; goes into timings.jsonl, since metrics.jsonl has the same bits in every run."""


def round_row(outcome: RoundOutcome) -> RoundRow:
    """A round in numbers, but for the score of its result."""
    error = outcome.aggregate.error
    accuracies = [outcome.metrics[u.client_id]["accuracy"] for u in outcome.updates]
    return RoundRow(
        outcome.server_round,
        0.0,
        0.0,
        sum(accuracies) / len(accuracies),
        min(accuracies),
        error.used if error else None,
        error.average if error else None,
        error.optimum if error else None,
        outcome.bytes_up,
        outcome.bytes_down,
    )


def round_line(row: RoundRow, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A row as a line."""
    entries = asdict(row)
    line = {"kind": "round", "round": entries.pop("server_round"), **entries, "gap": row.gap}
    return {**line, **(details or {})}


def row_of(line: Mapping[str, Any]) -> RoundRow:
    """The row that a line was made of."""
    names = [entry.name for entry in fields(RoundRow) if entry.name != "server_round"]
    return RoundRow(server_round=line["round"], **{name: line[name] for name in names})


def scored(line: Mapping[str, Any], score: Score) -> dict[str, Any]:
    """A line with the scores that came a round later."""
    local = line["client_accuracy"]
    gap = None if local is None else local - score.accuracy
    return {**line, "accuracy": score.accuracy, "loss": score.loss, "gap": gap}


def client_line(outcome: RoundOutcome, update: ClientUpdate) -> dict[str, Any]:
    """A client's part of a round as a line."""
    told = outcome.metrics[update.client_id]
    return {
        "kind": "client",
        "round": outcome.server_round,
        "client": int(update.client_id),
        "weight": outcome.aggregate.weights[update.client_id],
        **{key: value for key, value in told.items() if key not in (*RECEIVED, SECONDS)},
    }


def module_details(outcome: RoundOutcome) -> dict[str, Any]:
    """Who was left out; errors and singular values, module by module."""
    result = outcome.aggregate
    return {
        "left_out": outcome.left_out,
        "modules": {name: e._asdict() for name, e in result.errors.items()},
        "spectra": {
            name: {
                "rank": result.trained.pairs[name].rank,
                "singular_values": [float(f"{value:.5g}") for value in values[:SPECTRUM]],
            }
            for name, values in result.spectra.items()
        },
    }


def mean_score(told: Iterable[Mapping[str, float]]) -> Score:
    """The clients' scores of the global model, weighted by how many examples each tested it on.

    Raises:
        FederationError: if no client scored it.
    """
    scores = [m for m in told if all(key in m for key in RECEIVED) and m["test-examples"] > 0]
    if not scores:
        raise FederationError(
            "no client says what the global model scores on its held-out data; clients must be of "
            "florana.flower_app, of the same version as the server"
        )
    total = sum(m["test-examples"] for m in scores)
    accuracy = sum(m["test-examples"] * m["received-accuracy"] for m in scores) / total
    loss = sum(m["test-examples"] * m["received-loss"] for m in scores) / total
    return Score(accuracy, loss, int(total))
