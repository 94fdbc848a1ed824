"""A grid that tells of every reply when it comes, and can be stopped while it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from florana.errors import FederationError
from florana.federation.relay_grid import RelayGrid

OnReply = Callable[[Message, Message, float], None]
"""(message, its reply, seconds from the one to the other) -> nothing."""

POLL_SECONDS = 0.25


class WatchedGrid(RelayGrid):
    """Another grid with a watched :meth:`send_and_receive`.

    Args:
        grid: does the work.
        on_reply: told of every reply.
        stop: once set, waiting ends with an error.
    """

    def __init__(self, grid: Grid, on_reply: OnReply, stop: threading.Event | None = None) -> None:
        super().__init__(grid)
        self._on_reply = on_reply
        self._stop = stop or threading.Event()

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that are connected.

        Raises:
            FederationError: if the run is to stop.
        """
        if self._stop.is_set():
            raise FederationError("the run was stopped")
        return self._grid.get_node_ids()

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
