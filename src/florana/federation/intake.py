"""The replies of a round, checked one by one: those that count, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Message

from florana.adapter import Adapter, ClientUpdate, Plan
from florana.aggregators import GlobalState
from florana.errors import AdapterError
from florana.federation.records import count_bytes
from florana.federation.replies import check_step, content_of, read_adapter, read_metrics
from florana.federation.roster import Roster
from florana.federation.spool import Spool


class Intake:
    """Takes in one reply after the other.

    Args:
        state: what the round began with.
        plan: what the clients were asked to train and send.
        method: name of the method.
        roster: knows which node is which client.
        max_norm: largest step that a client may make; None for any.
        spool: where adapters lie until they are aggregated; None keeps them in memory.
        on_left_out: called with client and reason for each reply that does not count.

    Attributes:
        left_out: client -> why its reply does not count.
        bytes_up: of the replies that count.
    """

    def __init__(
        self,
        state: GlobalState,
        plan: Plan,
        method: str,
        roster: Roster,
        *,
        max_norm: float | None,
        spool: Spool | None,
        on_left_out: Callable[[str, str], None],
    ) -> None:
        self._state, self._plan, self._method, self._roster = state, plan, method, roster
        self._max_norm, self._spool, self._on_left_out = max_norm, spool, on_left_out
        self._used: dict[int, tuple[ClientUpdate, dict[str, float]]] = {}
        self.left_out: dict[str, str] = {}
        self.bytes_up = 0

    def take(self, node: int, reply: Message | None) -> tuple[int, ...] | None:
        """Read a node's reply; the ranks of its adapter, or None if it does not count."""
        client = self._roster.name_of(node)
        try:
            content = content_of(reply)
            partition, metrics = read_metrics(content)
            if self._roster.expected is None:
                client = f"client {partition}"
            if partition in self._used:
                raise AdapterError("it replied twice")
            adapter = read_adapter(content, self._state.adapter, self._plan, self._method)
            check_step(adapter, self._state.adapter, self._max_norm)
            mistake = self._roster.claim(node, partition)
            if mistake is not None:
                raise AdapterError(mistake)
        except AdapterError as error:
            self.left_out[client] = str(error)
            self._on_left_out(client, str(error))
            if reply is None or reply.has_error():
                self._roster.note_failure(node)
            return None
        kept = adapter if self._spool is None else self._spool.keep(adapter)
        update = ClientUpdate(str(partition), metrics["num-examples"], kept)
        self._used[partition] = update, metrics
        self.bytes_up += count_bytes(content)
        return ranks_of(adapter)

    @property
    def updates(self) -> tuple[ClientUpdate, ...]:
        """What counts, by partition."""
        return tuple(self._used[partition][0] for partition in sorted(self._used))

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """client_id -> the numbers it reports, of those that count."""
        return {update.client_id: metrics for update, metrics in self._used.values()}


def ranks_of(adapter: Adapter) -> tuple[int, ...]:
    """The rank of every pair."""
    return tuple(pair.rank for pair in adapter.pairs.values())
