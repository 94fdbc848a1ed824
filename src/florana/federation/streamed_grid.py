"""A grid whose clients are asked a few at a time, so that a server which takes in replies one by one holds few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class StreamedGrid(Grid):
    """Another grid, whose :meth:`send_and_receive` sends messages as their replies are asked for.

    It suits clients in this process, which work only when they are asked. On a network all are asked at once, or
    they would wait for each other.

    Args:
        grid: does the work.
        at_once: how many clients are asked at a time.
    """

    def __init__(self, grid: Grid, at_once: int = 1) -> None:
        self._grid, self._at_once = grid, at_once

    def set_run(self, run: Run) -> None:
        """Hand the run on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The other grid's run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that are there."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take the replies that are there."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """The replies, in the order of the messages; each is made when it is asked for, and not kept."""
        waiting = iter(messages)
        while some := list(islice(waiting, self._at_once)):
            yield from self._grid.send_and_receive(some, timeout=timeout)
