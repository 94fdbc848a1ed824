"""A grid that tells of every reply when it comes, and can be stopped while it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from florana.errors import FederationError

OnReply = Callable[[Message, Message, float], None]
"""(message, its reply, seconds from the one to the other) -> nothing."""

POLL_SECONDS = 0.25


class WatchedGrid(Grid):
    """Another grid with a watched :meth:`send_and_receive`.

    Args:
        grid: does the work.
        on_reply: told of every reply.
        stop: once set, waiting ends with an error.
    """

    def __init__(self, grid: Grid, on_reply: OnReply, stop: threading.Event | None = None) -> None:
        self._grid, self._on_reply = grid, on_reply
        self._stop = stop or threading.Event()

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
        """Ids of the nodes that are connected.

        Raises:
            FederationError: if the run is to stop.
        """
        if self._stop.is_set():
            raise FederationError("the run was stopped")
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take the replies that are there."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for their replies, each at most once.

        Raises:
            FederationError: if the run is to stop.
        """
        sent = list(messages)
        began, replies = time.monotonic(), []
        self._grid.push_messages(sent)
        waiting = {message.metadata.message_id: message for message in sent}
        while waiting and (timeout is None or time.monotonic() - began < timeout):
            for reply in self._grid.pull_messages(list(waiting)):
                message = waiting.pop(reply.metadata.reply_to_message_id, None)
                if message is None:
                    continue
                replies.append(reply)
                self._on_reply(message, reply, time.monotonic() - began)
            if waiting and self._stop.wait(POLL_SECONDS):
                raise FederationError("the run was stopped while clients were at work")
        return replies
