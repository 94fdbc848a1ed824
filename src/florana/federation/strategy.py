"""The server's side of a round, as a Flower strategy. There is no mathematics here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from florana.adapter import Adapter, ClientUpdate
from florana.aggregators import (
    Aggregate,
    aggregate,
    build,
    card,
    check_compatible,
    check_finite,
)
from florana.errors import AdapterError, FederationError
from florana.federation.records import ARRAYS, count_bytes, pack, unpack
from florana.lowrank import Product
from florana.seeding import generator

MAX_EXAMPLES = 1e15
"""More than any client has, and few enough that sums of them are exact and finite."""


@dataclass(frozen=True, eq=False)
class RoundOutcome:
    """Everything that happened in one round.

    Args:
        server_round: the round, from 1.
        updates: the updates that were aggregated, in the order of the partitions.
        residual: the frozen residual beside which the clients trained them.
        metrics: client_id -> the numbers that the client reported.
        left_out: client -> why its reply was not used.
        aggregate: what the server made.
        bytes_up: bytes of all replies used.
        bytes_down: bytes of all messages sent.
    """

    server_round: int
    updates: tuple[ClientUpdate, ...]
    residual: Mapping[str, Product] = field(repr=False)
    metrics: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, str]
    aggregate: Aggregate = field(repr=False)
    bytes_up: int
    bytes_down: int


class LoraStrategy(FedAvg):
    """FedAvg with the aggregation of LoRA factors done right.

    A reply that cannot be used (another base or shape, NaN, a client that raised) is left out by name,
    and the round goes on while ``min_clients`` remain.

    Args:
        initial: the adapter that the first round starts from.
        method: aggregation method, a name from ``florana methods``.
        options: the method's options.
        participation: share of the clients drawn for a round.
        min_clients: fewest usable replies that a round needs.
        seed: of the client sampling.
        rounds_done: rounds that an earlier part of this run has finished.
        residual: frozen part of the global update that it left behind.
        on_round: called with the outcome of every round, before the next begins.
        on_left_out: called with round, client and reason whenever a reply is not used.

    Raises:
        ConfigError: if the method or an option is not known.
    """

    def __init__(
        self,
        initial: Adapter,
        method: str = "florana",
        options: Mapping[str, Any] | None = None,
        *,
        participation: float = 1.0,
        min_clients: int = 2,
        seed: int = 0,
        rounds_done: int = 0,
        residual: Mapping[str, Product] | None = None,
        on_round: Callable[[RoundOutcome], None] | None = None,
        on_left_out: Callable[[int, str, str], None] | None = None,
    ) -> None:
        build(method, options or {})
        super().__init__(
            fraction_train=participation,
            min_train_nodes=min_clients,
            min_available_nodes=min_clients,
            fraction_evaluate=0.0,
        )
        self._method, self._options = method, dict(options or {})
        self._adapter, self._residual = _as_sent(initial), dict(residual or {})
        self._min_clients, self._seed, self._rounds_done = min_clients, seed, rounds_done
        self._on_round = on_round or (lambda _outcome: None)
        self._on_left_out = on_left_out or (lambda _round, _client, _reason: None)
        self._bytes_down = 0

    def initial_arrays(self) -> ArrayRecord:
        """What ``start`` takes as ``initial_arrays``."""
        return pack(self._adapter, self._residual).array_records[ARRAYS]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global adapter to the clients drawn for this round."""
        del arrays  # the strategy's own copy carries the manifest too
        server_round += self._rounds_done
        content = pack(self._adapter, self._residual)
        content["config"] = ConfigRecord({**config, "server-round": server_round})
        nodes = sorted(grid.get_node_ids())
        size = max(1, round(self.fraction_train * len(nodes)))
        rng = generator(self._seed, "client sampling", server_round)
        drawn = sorted(rng.choice(len(nodes), size=size, replace=False))
        self._bytes_down = size * count_bytes(content)
        return self._construct_messages(content, [nodes[i] for i in drawn], MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Check the replies, aggregate the usable ones, and report the round.

        Raises:
            FederationError: if fewer than ``min_clients`` replies can be used, with every reason.
        """
        server_round += self._rounds_done
        used: dict[int, tuple[ClientUpdate, dict[str, float]]] = {}
        left_out: dict[str, str] = {}
        bytes_up = 0
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            client = f"node {reply.metadata.src_node_id}"
            try:
                if reply.has_error():
                    raise AdapterError(f"it failed: {reply.error.reason}")
                partition, metrics = _read_metrics(reply.content)
                client = f"client {partition}"
                if partition in used:
                    raise AdapterError("it replied twice")
                used[partition] = (self._update(partition, metrics, reply.content), metrics)
                bytes_up += count_bytes(reply.content)
            except AdapterError as error:
                left_out[client] = str(error)
                self._on_left_out(server_round, client, str(error))
        if len(used) < self._min_clients:
            reasons = "".join(f"\n  {client}: {reason}" for client, reason in left_out.items())
            raise FederationError(
                f"round {server_round}: {len(used)} usable replies, and federation.min_clients "
                f"= {self._min_clients}{reasons}"
            )
        updates = tuple(used[partition][0] for partition in sorted(used))
        result = aggregate(updates, self._method, residual=self._residual, **self._options)
        outcome = RoundOutcome(
            server_round,
            updates,
            self._residual,
            {update.client_id: metrics for update, metrics in used.values()},
            left_out,
            result,
            bytes_up,
            self._bytes_down,
        )
        self._adapter, self._residual = result.trained, dict(result.residual)
        self._on_round(outcome)
        return self.initial_arrays(), MetricRecord({"num-clients": len(updates)})

    def _update(
        self, partition: int, metrics: Mapping[str, float], content: RecordDict
    ) -> ClientUpdate:
        adapter, _ = unpack(content, self._adapter)
        check_compatible(adapter, self._adapter)
        check_finite(adapter)
        _check_ranks(adapter, self._adapter, card(self._method).mixed_ranks)
        return ClientUpdate(str(partition), metrics["num-examples"], adapter)


def _as_sent(adapter: Adapter) -> Adapter:
    """The adapter in float32, as it comes out of the records."""
    return adapter.with_tensors({name: t.float() for name, t in adapter.tensors().items()})


def _read_metrics(content: RecordDict) -> tuple[int, dict[str, float]]:
    record: Mapping[str, Any] | None = content.metric_records.get("metrics")
    if record is None or not {"partition-id", "num-examples"} <= record.keys():
        raise AdapterError("its reply lacks the metrics partition-id and num-examples")
    metrics = {key: value for key, value in record.items() if key != "partition-id"}
    partition, num_examples = record["partition-id"], metrics["num-examples"]
    if type(partition) is not int:
        raise AdapterError(f"its partition-id is {short(partition)}, expected a whole number")
    odd = [key for key, value in metrics.items() if type(value) not in (int, float)]
    if odd:
        raise AdapterError(f"its metric {short(odd[0])} is no single number")
    if not 0 < num_examples <= MAX_EXAMPLES:
        raise AdapterError(
            f"its num-examples is {short(num_examples)}, expected a number above 0, at most {MAX_EXAMPLES:.0e}"
        )
    return partition, metrics


def _check_ranks(adapter: Adapter, reference: Adapter, mixed: bool) -> None:
    """One rank for all, or, where the method takes unlike ranks, none that would widen the global pair."""
    for name, pair in adapter.pairs.items():
        expected = reference.pairs[name].rank
        if pair.rank > expected or (pair.rank < expected and not mixed):
            raise AdapterError(
                f"module {name} has rank {pair.rank}, expected {expected}{' or less' if mixed else ''}"
            )
