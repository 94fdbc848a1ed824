"""What a run tells whoever watches it. The runner emits these values; only the command line prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        accuracy: of the global model on the global test set, in [0, 1].
        loss: its cross-entropy there, in nats.
        client_accuracy: mean over the round's clients of their own model, before aggregation, on their
            own held-out data; None in round 0, as all that follows but the bytes.
        worst_client: the smallest of these.
        error_used: relative aggregation error of what was used, over all modules.
        error_average: what plain averaging would have had.
        error_optimum: the least that any pair of that rank has.
        bytes_up: bytes of all replies.
        bytes_down: bytes of all messages to clients.
    """

    server_round: int
    accuracy: float
    loss: float
    client_accuracy: float | None = None
    worst_client: float | None = None
    error_used: float | None = None
    error_average: float | None = None
    error_optimum: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def gap(self) -> float | None:
        """Local-global gap: ``client_accuracy`` minus ``accuracy``."""
        return None if self.client_accuracy is None else self.client_accuracy - self.accuracy


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Args:
        rounds: rounds done.
        accuracy: of the final global model on the global test set.
        loss: its loss there.
        best_round: round of the best global model, and ``best_accuracy`` its accuracy.
        best_accuracy: see above.
        best_client: the client whose own model, before the last aggregation, did best on the global test set; where
            the server cannot test it, on the client's own held-out data.
        best_client_accuracy: its accuracy there.
        seconds: wall time of this part of the run.
    """

    rounds: int
    accuracy: float
    loss: float
    best_round: int
    best_accuracy: float
    best_client: str
    best_client_accuracy: float
    seconds: float


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
