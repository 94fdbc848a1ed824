"""What a round looks like in metrics.jsonl, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from florana.adapter import ClientUpdate
from florana.errors import FederationError
from florana.experiments.events import RoundRow
from florana.federation.outcome import RoundOutcome
from florana.tasks.metrics import Metric
from florana.training.evaluation import Score

SPECTRUM = 128
"""Most singular values of a module that are written for a round."""

RECEIVED = ("received-score", "received-loss", "test-examples")
"""What clients report of the global model that they got."""

OWN, GOT = "metric:", "received-metric:"
"""Before the name of a further metric, of a client's own model and of the one that it got."""

SECONDS = "seconds"
"""A client's own wall time; goes into timings.jsonl, since metrics.jsonl has the same bits in every run."""


def round_row(outcome: RoundOutcome, metric: Metric) -> RoundRow:
    """A round in numbers, but for the score of its result.

    Args:
        outcome: the round.
        metric: what judges rounds.
    """
    error = outcome.aggregate.error
    told = [outcome.metrics[u.client_id] for u in outcome.updates]
    scores = [m["score"] for m in told]
    names = sorted({key for m in told for key in m if key.startswith(OWN)})
    return RoundRow(
        outcome.server_round,
        0.0,
        0.0,
        sum(scores) / len(scores),
        metric.worst(scores),
        error.used if error else None,
        error.average if error else None,
        error.optimum if error else None,
        outcome.bytes_up,
        outcome.bytes_down,
        client_metrics={
            name.removeprefix(OWN): _mean([m[name] for m in told if name in m]) for name in names
        },
    )


def round_line(row: RoundRow, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A row as a line."""
    entries = asdict(row)
    line = {"kind": "round", "round": entries.pop("server_round"), **entries}
    return {**line, **(details or {})}


def row_of(line: Mapping[str, Any]) -> RoundRow:
    """The row that a line was made of."""
    names = [entry.name for entry in fields(RoundRow) if entry.name != "server_round"]
    return RoundRow(server_round=line["round"], **{name: line[name] for name in names})


def scored(line: Mapping[str, Any], score: Score, metric: Metric) -> dict[str, Any]:
    """A line with the scores that came a round later."""
    local = line["client_score"]
    gap = None if local is None else metric.lead(local, score.value)
    told = {"score": score.value, "loss": score.loss, "gap": gap, "metrics": dict(score.others)}
    return {**line, **told}


def client_line(outcome: RoundOutcome, update: ClientUpdate) -> dict[str, Any]:
    """A client's part of a round as a line."""
    told = outcome.metrics[update.client_id]
    left_out = (*RECEIVED, SECONDS)
    return {
        "kind": "client",
        "round": outcome.server_round,
        "client": int(update.client_id),
        "weight": outcome.aggregate.weights[update.client_id],
        **{k: v for k, v in told.items() if k not in left_out and not k.startswith((OWN, GOT))},
        "metrics": {k.removeprefix(OWN): v for k, v in told.items() if k.startswith(OWN)},
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

    For a metric that is no mean over examples, such as F1, this is the mean of the clients' own, not that of all examples.

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

    def mean(key: str) -> float:
        return sum(m["test-examples"] * m[key] for m in scores) / total

    names = [key for key in scores[0] if key.startswith(GOT) and all(key in m for m in scores)]
    others = {key.removeprefix(GOT): mean(key) for key in sorted(names)}
    return Score(mean("received-score"), mean("received-loss"), int(total), others)


def mean_of(scores: Sequence[Score]) -> Score:
    """The plain mean of several models' scores on the same examples."""
    return Score(
        _mean([score.value for score in scores]),
        _mean([score.loss for score in scores]),
        scores[0].examples,
        {name: _mean([s.others[name] for s in scores]) for name in scores[0].others},
    )


def own_score(score: Score) -> dict[str, float]:
    """A client's score of its own model, as it is sent."""
    others = {OWN + name: value for name, value in score.others.items()}
    return {"score": score.value, "loss": score.loss, **others}


def received_score(score: Score) -> dict[str, float]:
    """A client's score of a model that came, as it is sent."""
    told = dict(zip(RECEIVED, (score.value, score.loss, float(score.examples)), strict=True))
    return {**told, **{GOT + name: value for name, value in score.others.items()}}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
