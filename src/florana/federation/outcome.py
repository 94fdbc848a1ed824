"""What a round leaves behind for whoever watches the strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from florana.adapter import ClientUpdate, Plan
from florana.aggregators import Aggregate, GlobalState


@dataclass(frozen=True, eq=False)
class RoundOutcome:
    """Everything that happened in one round.

    Args:
        server_round: the round, from 1.
        plan: what the clients were asked to train and send.
        before: the state that the round began with.
        updates: the updates that were aggregated, in the order of the partitions.
        metrics: client_id -> the numbers that the client reported.
        left_out: client -> why its reply was not used.
        aggregate: what the server made.
        state: the state that the next round begins with.
        bytes_up: bytes of all replies used; 0 where all is in one place.
        bytes_down: bytes of all messages sent, likewise.
    """

    server_round: int
    plan: Plan
    before: GlobalState = field(repr=False)
    updates: tuple[ClientUpdate, ...]
    metrics: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, str]
    aggregate: Aggregate = field(repr=False)
    state: GlobalState = field(repr=False)
    bytes_up: int
    bytes_down: int


class Known(NamedTuple):
    """What the server knows of a node: the round whose global parts it holds, and the ranks it trains."""

    server_round: int
    ranks: tuple[int, ...]
