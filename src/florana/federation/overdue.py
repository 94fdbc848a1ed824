"""Finding out that a reply was lost on its way, for which Flower would wait until its message expires, twelve hours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

FIRST_QUESTION = 60.0
"""Seconds after which a node is asked for the first time, unless the others took longer than half of that."""

NO_ANSWER: Final = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
    }
)
"""Errors that the SuperLink makes by itself; all others come from the node."""


class Overdue:
    """Asks nodes that are long in answering, and knows by their answers which replies will not come.

    A SuperNode takes one message at a time, the oldest first. So a node that answers a question, with an error even, is
    done with everything that it was sent before, and a reply to that which has not come by then was lost: the SuperLink
    refused it, or the SuperNode was started anew meanwhile under the same key. Nodes are asked once a minute has passed
    and twice the time of the latest reply, and again each time that twice as long has passed.

    Args:
        grid: sends the questions.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._next = FIRST_QUESTION
        self._asked: dict[str, str] = {}

    @property
    def questions(self) -> Collection[str]:
        """Ids of the questions that are open."""
        return self._asked.keys()

    def ask(self, waiting: Mapping[str, Message], elapsed: float, latest: float) -> None:
        """Ask the nodes that ``waiting`` was sent to, if it is time to.

        Args:
            waiting: id -> message without a reply.
            elapsed: seconds since the messages were sent.
            latest: seconds from then until the latest reply; 0 without one.
        """
        if elapsed < max(self._next, 2 * latest):
            return
        content = RecordDict({"config": ConfigRecord({"ask": "partition-id"})})
        questions = {
            message_id: Message(content, message.metadata.dst_node_id, MessageType.QUERY)
            for message_id, message in waiting.items()
        }
        self._grid.push_messages(list(questions.values()))
        self._next = 2 * elapsed
        for message_id, question in questions.items():
            self._asked[question.metadata.message_id] = message_id

    def lost(self, reply: Message) -> str | None:
        """Id of the message whose reply is lost if it has not come with this one; None if this answers no question."""
        message_id = self._asked.pop(reply.metadata.reply_to_message_id, None)
        if reply.has_error() and reply.error.code in NO_ANSWER:
            return None
        return message_id
