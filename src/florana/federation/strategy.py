"""The server's side of a round, as a Flower strategy. There is no mathematics here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from flwr.supercore import log
from torch import Tensor

from florana.adapter import Adapter
from florana.aggregators import (
    GlobalState,
    aggregate,
    build,
    check_base_weights,
    check_server,
    first_state,
    plan_of,
)
from florana.config import Codec, ServerConfig
from florana.errors import AdapterError, FederationError
from florana.federation.client_app import write_plan
from florana.federation.intake import Intake
from florana.federation.outbox import Outbox, broadcast
from florana.federation.outcome import Known, RoundOutcome
from florana.federation.records import ARRAYS, count_bytes, pack
from florana.federation.replies import content_of, match, read_metrics
from florana.federation.roster import Roster
from florana.federation.spool import Spool
from florana.federation.views import arrays_in
from florana.seeding import generator

__all__ = ["Known", "LoraStrategy", "RoundOutcome"]


GRACE_SECONDS = 30.0
"""Beyond the deadline, until a message that nobody called overdue counts as such."""


class LoraStrategy(FedAvg):
    """FedAvg with the aggregation of LoRA factors done right.

    A client is sent the parts of the global model that changed since it last took part, and asked to
    train and send what the method's plan says. A reply that cannot be used (another base or shape, NaN, a
    client that raised) is left out by name, and the round goes on while ``min_clients`` remain.

    Args:
        initial: the adapter that the first round starts from, or the state after an earlier part of this run.
        method: aggregation method, a name from ``florana methods``.
        options: the method's options.
        server: add-ons to the method's target; none by default.
        base_weights: module -> frozen weight W (d_out, d_in) of the base model, for DoRA, HiRA, and methods
            whose start is made from it.
        participation: share of the clients drawn for a round.
        min_clients: fewest usable replies that a round needs.
        seed: of the client sampling.
        uplink: number format of the replies.
        downlink: number format of the messages to clients that hold the last global model.
        known: node -> what an earlier part of this run knew of it.
        memory: what an earlier part of this run remembered beside the state, as :attr:`memory`.
        partitions: number of partitions. If given, nodes are asked which one they are before they are first drawn,
            so that a run draws the same clients on every engine, and the first round waits for all of
            them; see :class:`~florana.federation.roster.Roster`.
        wait_seconds: longest wait for enough nodes, in every round.
        deadline_seconds: a client whose reply takes longer is left out; by default Flower's 12 hours.
        max_norm: largest ‖ΔW − ΔW_start‖_F, over all modules, that a client's training may make.
        spool: folder on a disk where the clients' updates lie while they are aggregated; None keeps them in memory.
        on_round: called with the outcome of every round, before the next begins.
        on_left_out: called with round, client and reason whenever a reply is not used.
        on_note: called with a line for people whenever nodes come, or are waited for.

    Raises:
        ConfigError: if the method or an option is not known, or the variant of LoRA or an add-on does not
            combine with the method.
        AggregationError: if frozen weights are needed and not given.
    """

    def __init__(
        self,
        initial: Adapter | GlobalState,
        method: str = "florana-blend",
        options: Mapping[str, Any] | None = None,
        *,
        server: ServerConfig | None = None,
        base_weights: Mapping[str, Tensor] | None = None,
        participation: float = 1.0,
        min_clients: int = 2,
        seed: int = 0,
        uplink: Codec = "float32",
        downlink: Codec = "float32",
        known: Mapping[int, Known] | None = None,
        memory: RecordDict | None = None,
        partitions: int | None = None,
        wait_seconds: float = 600.0,
        deadline_seconds: float | None = None,
        max_norm: float | None = None,
        spool: Path | None = None,
        on_round: Callable[[RoundOutcome], None] | None = None,
        on_left_out: Callable[[int, str, str], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self._built = build(method, options or {})
        self._server = server or ServerConfig()
        adapter = initial if isinstance(initial, Adapter) else initial.adapter
        check_server(self._server, method, adapter.variant)
        check_base_weights(adapter, base_weights)
        self._base_weights = base_weights
        super().__init__(
            fraction_train=participation,
            min_train_nodes=min_clients,
            min_available_nodes=min_clients,
            fraction_evaluate=0.0,
        )
        self._method, self._options = method, dict(options or {})
        self._state = (
            first_state(_as_sent(initial), self._built, base_weights)
            if isinstance(initial, Adapter)
            else initial
        )
        self._min_clients, self._seed = min_clients, seed
        self._rounds_done = self._state.server_round
        self._on_round = on_round or (lambda _outcome: None)
        self._on_left_out = on_left_out or (lambda _round, _client, _reason: None)
        self._uplink, self._downlink = uplink, downlink
        self._known, self._bytes_down = dict(known or {}), 0
        self._memory = memory or RecordDict()
        self._deadline, self._max_norm, self._spool = deadline_seconds, max_norm, spool
        tell = on_note or (lambda line: log(INFO, line))
        self._roster = Roster(partitions is not None, partitions, wait_seconds, tell)
        self._sent: list[Message] = []

    @property
    def known(self) -> Mapping[int, Known]:
        """Node -> what the server knows of it."""
        return dict(self._known)

    @property
    def memory(self) -> RecordDict:
        """With a lossy downlink the last message and what it left out; else empty."""
        return self._memory

    def initial_arrays(self) -> ArrayRecord:
        """What ``start`` takes as ``initial_arrays``."""
        return arrays_in(pack(self._state.adapter, self._state.residual))[ARRAYS]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send every client drawn for this round what it lacks of the global model."""
        del arrays  # the strategy's own state carries the manifest too
        server_round += self._rounds_done
        nodes = self._roster.gather(grid, self._nodes_needed, server_round)
        size = max(1, round(self.fraction_train * len(nodes)))
        rng = generator(self._seed, "client sampling", server_round)
        drawn = [nodes[i] for i in sorted(rng.choice(len(nodes), size=size, replace=False))]
        messages, sizes = self._messages(MessageType.TRAIN, drawn, server_round, config)
        self._bytes_down = sum(sizes)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: clients test in the same message in which they train; see :meth:`score_clients`."""
        del server_round, arrays, config, grid
        return []

    def score_clients(self, grid: Grid, config: ConfigRecord) -> dict[str, dict[str, float]]:
        """Have every client that is there test the global model on its own held-out data.

        Args:
            grid: the federation.
            config: what else to tell the clients.

        Returns:
            client_id -> the numbers it reports; clients that fail are left out by name.
        """
        done = self._state.server_round
        nodes = self._roster.gather(grid, self._min_clients, done)
        messages, _ = self._messages(MessageType.EVALUATE, nodes, done + 1, config)
        replies = grid.send_and_receive(messages, timeout=self._patience)
        scores = {}
        for node, reply in self._in_order(messages, replies, done):
            try:
                partition, metrics = read_metrics(content_of(reply), {"test-examples"})
                scores[str(partition)] = metrics
            except AdapterError as error:
                self._on_left_out(done, self._roster.name_of(node), str(error))
        return scores

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Do the rounds, as FedAvg does.

        Unlike there, ``timeout`` is by default that of the messages themselves: a timeout that is shorter
        than the clients' training would leave every round without replies.
        """
        limit: Any = self._patience if timeout is None else timeout
        return super().start(
            grid, initial_arrays, num_rounds, limit, train_config, evaluate_config, evaluate_fn
        )

    def _in_order(
        self, sent: Iterable[Message], replies: Iterable[Message], server_round: int
    ) -> Iterator[tuple[int, Message | None]]:
        """Every node that was asked with its reply; replies to nothing are told and dropped."""

        def tell(reply: Message) -> None:
            reason = "its reply answers no message of this round"
            self._on_left_out(server_round, f"node {reply.metadata.src_node_id}", reason)

        return match(sent, replies, tell)

    @property
    def _patience(self) -> float | None:
        """How long to wait for replies that Flower itself has not called overdue by then."""
        return None if self._deadline is None else self._deadline + GRACE_SECONDS

    @property
    def _nodes_needed(self) -> int:
        """Fewest nodes of which the share that is drawn can be ``min_clients``."""
        nodes = self._min_clients
        while self._roster.expected and round(self.fraction_train * nodes) < self._min_clients:
            nodes += 1
        return nodes

    def _messages(
        self, kind: str, nodes: list[int], server_round: int, config: ConfigRecord
    ) -> tuple[list[Message], list[int]]:
        """What these nodes lack of the global model, and the bytes of each message."""
        outbox = Outbox(self._method, self._built, self._state, self._downlink, self._memory)
        entries = {
            **config,
            "server-round": server_round,
            "keep": outbox.incremental,
            "uplink": self._uplink,
        }
        entries |= write_plan(plan_of(self._built, server_round))
        alike: dict[Known | None, list[int]] = {}
        for node in nodes:
            alike.setdefault(self._known.get(node), []).append(node)
        made: dict[int, tuple[Message, int]] = {}
        for known, group in alike.items():
            content = outbox.content_for(known)
            content["config"] = ConfigRecord({**entries, "builds-on": outbox.builds_on(known)})
            size = count_bytes(content)
            for node in group:
                made[node] = Message(content, node, kind, ttl=self._deadline), size
        self._sent = [made[node][0] for node in nodes]
        return self._sent, [made[node][1] for node in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Check the replies, aggregate the usable ones, and report the round.

        Raises:
            FederationError: if fewer than ``min_clients`` replies can be used, with every reason.
        """
        server_round += self._rounds_done
        plan = plan_of(self._built, server_round)
        intake = Intake(
            self._state,
            plan,
            self._method,
            self._roster,
            max_norm=self._max_norm,
            spool=None if self._spool is None else Spool(self._spool),
            on_left_out=lambda client, reason: self._on_left_out(server_round, client, reason),
        )
        for node, reply in self._in_order(self._sent, replies, server_round):
            self._known.pop(node, None)
            ranks = intake.take(node, reply)
            if ranks is not None:
                self._known[node] = Known(self._state.server_round, ranks)
        self._sent, updates = [], intake.updates
        if len(updates) < self._min_clients:
            reasons = "".join(f"\n  {who}: {why}" for who, why in intake.left_out.items())
            raise FederationError(
                f"round {server_round}: {len(updates)} usable replies, and federation.min_clients "
                f"= {self._min_clients}{reasons}"
            )
        before = self._state
        result = aggregate(
            updates,
            self._method,
            state=before,
            server=self._server,
            base_weights=self._base_weights,
            **self._options,
        )
        self._state = before.after(result)
        if self._downlink != "float32":
            self._state, self._memory = broadcast(
                before, self._state, result, self._downlink, self._memory
            )
        self._on_round(
            RoundOutcome(
                server_round,
                plan,
                before,
                updates,
                intake.metrics,
                intake.left_out,
                result,
                self._state,
                0 if plan.pooled else intake.bytes_up,
                0 if plan.pooled else self._bytes_down,
            )
        )
        return self.initial_arrays(), MetricRecord({"num-clients": len(updates)})


def _as_sent(adapter: Adapter) -> Adapter:
    """The adapter in float32, as it comes out of the records."""
    return adapter.with_tensors({name: t.float() for name, t in adapter.tensors().items()})
