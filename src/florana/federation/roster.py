"""Who is there: the nodes of a federation, the partition that each stands for, and waiting for enough of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from reprlib import repr as short

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from florana.errors import FederationError
from florana.federation.views import metrics_in

POLL_SECONDS = 0.5
"""Between two looks at who is there."""

ASK_SECONDS = 300.0
"""A node that has not said within this time who it is, is asked again in the next round."""

Tell = Callable[[str], None]


class Roster:
    """The nodes that may take part, and their partitions.

    Args:
        ask: whether nodes are asked for their partition before they are drawn for the first time. Node ids are
            drawn by Flower at random; a run that asks draws the same clients on every engine, and can
            refuse a node that stands for another one. Clients must answer ``query`` messages then.
        expected: number of partitions. The first round of a server waits for all of them, as long as it may.
        wait_seconds: longest wait for enough nodes, in every round.
        tell: told what happens, one line each.
    """

    def __init__(self, ask: bool, expected: int | None, wait_seconds: float, tell: Tell) -> None:
        self._ask, self.expected = ask, expected
        self._wait_seconds, self._tell = wait_seconds, tell
        self._partitions: dict[int, int] = {}
        self._silent: set[int] = set()
        self._failed: set[int] = set()
        self._begun = False

    def partition_of(self, node: int) -> int | None:
        """The partition that a node stands for, if it is known."""
        return self._partitions.get(node)

    def name_of(self, node: int) -> str:
        """The node, for people: by its partition where nodes were asked."""
        partition = self._partitions.get(node)
        return f"node {node}" if partition is None or not self._ask else f"client {partition}"

    def claim(self, node: int, partition: int) -> str | None:
        """Note that a node stands for a partition, or say why it cannot."""
        known = self._partitions.get(node)
        if known is not None and known != partition:
            return f"it says it is partition {partition}, and was {known} before"
        self._partitions[node] = partition
        self._failed.discard(node)
        return None

    def note_failure(self, node: int) -> None:
        """Let another node that stands for the same partition go first, until this one is used again."""
        self._failed.add(node)

    def gather(self, grid: Grid, needed: int, server_round: int) -> list[int]:
        """Wait for enough nodes; those that may be drawn, in the order of their partitions.

        Args:
            grid: knows who is connected.
            needed: fewest nodes to begin with.
            server_round: for messages.

        Raises:
            FederationError: if there are fewer after the longest wait.
        """
        began, told = time.monotonic(), -1
        self._silent.clear()
        while True:
            nodes = self._usable(grid)
            wanted = needed if self._begun else max(needed, self.expected or 0)
            late = time.monotonic() - began > self._wait_seconds
            if len(nodes) >= wanted or (late and len(nodes) >= needed):
                if len(nodes) < wanted:
                    self._tell(
                        f"round {server_round}: going on with {len(nodes)} of {wanted} nodes"
                    )
                self._begun = True
                return nodes
            if late:
                raise FederationError(
                    f"round {server_round}: {len(nodes)} nodes are connected after {self._wait_seconds:g} s, "
                    f"the round needs {needed} (federation.min_clients over federation.participation); all "
                    "earlier rounds are saved: bring more nodes back and resume the run"
                )
            if len(nodes) != told:
                self._tell(
                    f"round {server_round}: {len(nodes)} nodes of {wanted} are connected; waiting up to "
                    f"{self._wait_seconds:g} s for the others"
                )
                told = len(nodes)
            time.sleep(POLL_SECONDS)

    def _usable(self, grid: Grid) -> list[int]:
        online = sorted(grid.get_node_ids())
        if not self._ask:
            return online
        unknown = [n for n in online if n not in self._partitions and n not in self._silent]
        if unknown:
            self._ask_nodes(grid, unknown)
        # Who came first stands for its partition, unless it failed last, as one that was restarted under a new
        # id, whose old id counts as connected for a while.
        known = [node for node in self._partitions if node in online]
        first: dict[int, int] = {}
        for node in sorted(known, key=lambda node: node in self._failed):
            first.setdefault(self._partitions[node], node)
        return [first[partition] for partition in sorted(first)]

    def _ask_nodes(self, grid: Grid, nodes: list[int]) -> None:
        content = RecordDict({"config": ConfigRecord({"ask": "partition-id"})})
        ttl = min(ASK_SECONDS, max(self._wait_seconds, 1.0))
        asked = [
            Message(content, node, MessageType.QUERY, ttl=ttl, group_id="partitions")
            for node in nodes
        ]
        replies = list(grid.send_and_receive(asked, timeout=ttl + 5))
        node_of = {m.metadata.message_id: m.metadata.dst_node_id for m in asked}
        heard = {node_of.get(reply.metadata.reply_to_message_id): reply for reply in replies}
        for node in nodes:
            said = self._read(heard.get(node))
            if isinstance(said, int):
                self._partitions[node] = said
                self._tell(f"node {node} is client {said}")
            else:
                self._silent.add(node)
                self._tell(f"node {node} cannot take part: {said}")

    def _read(self, reply: Message | None) -> int | str:
        """The partition in a reply, or what is wrong with it."""
        if reply is None:
            return "it did not say which partition it is"
        if reply.has_error():
            return str(reply.error.reason)
        record: Mapping[str, object] = metrics_in(reply.content).get("metrics", {})
        partition = record.get("partition-id")
        if type(partition) is not int or partition < 0:
            return f"its partition-id is {short(partition)}, expected a whole number from 0"
        if self.expected is not None and partition >= self.expected:
            return f"its partition-id is {partition}, and federation.clients is {self.expected}"
        return partition
