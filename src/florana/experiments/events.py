"""What a run tells whoever watches it. The runner emits these values; only the command line prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data, partitions and model are ready; ``rounds_done`` of the rounds were done before."""

    provenance: Mapping[str, Any]
    folder: Path
    rounds_done: int


@dataclass(frozen=True, slots=True)
class ClientStarted:
    """A client begins its local training."""

    server_round: int
    client: int


@dataclass(frozen=True, slots=True)
class ClientTested:
    """After the last round: a client's own model begins its test on the global test set."""

    client: int


@dataclass(frozen=True, slots=True)
class ClientLeftOut:
    """A client's reply is not used in this round."""

    server_round: int
    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClientReplied:
    """A client elsewhere has answered, or an error came in its place; ``seconds`` after it was asked."""

    server_round: int
    client: str
    seconds: float
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Something that people should know, such as that nodes are waited for."""

    text: str


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round in numbers.

    Args:
        server_round: 0 for the untrained start.
        score: of the global model on the global test set, by the metric that judges the run (``metric`` of its provenance).
        loss: its mean loss there: in nats, of a regression the mean squared error of its targets.
        client_score: mean over the round's clients of their own model, before aggregation, on their
            own held-out data; None in round 0, as all that follows but the bytes.
        worst_client: the worst of these.
        error_used: relative aggregation error of what was used, over all modules.
        error_average: what plain averaging would have had.
        error_optimum: the least that any pair of that rank has.
        bytes_up: bytes of all replies.
        bytes_down: bytes of all messages to clients.
        gap: local-global gap, how much better ``client_score`` is than ``score``.
        metrics: name -> what the global model scores by the further metrics.
        client_metrics: likewise, mean over the clients of their own models.
    """

    server_round: int
    score: float
    loss: float
    client_score: float | None = None
    worst_client: float | None = None
    error_used: float | None = None
    error_average: float | None = None
    error_optimum: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    gap: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    client_metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Args:
        rounds: rounds done.
        score: of the final global model on the global test set.
        loss: its loss there.
        best_round: round of the best global model, and ``best_score`` its score.
        best_score: see above.
        best_client: the client whose own model, before the last aggregation, did best on the global test set; where
            the server cannot test it, on the client's own held-out data.
        best_client_score: its score there.
        seconds: wall time of this part of the run.
        metrics: name -> what the final global model scores by the further metrics.
    """

    rounds: int
    score: float
    loss: float
    best_round: int
    best_score: float
    best_client: str
    best_client_score: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


Event = (
    Prepared
    | ClientStarted
    | ClientTested
    | ClientReplied
    | ClientLeftOut
    | Note
    | RoundRow
    | Summary
)

Watch = Callable[[Event], None]
"""Told everything that happens."""
