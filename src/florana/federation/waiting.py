"""Messages that have no reply yet, and what becomes of one whose reply is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode


class Waiting:
    """Messages without a reply, each under the id that it was last sent with.

    Args:
        sent: the messages, which have their ids.
    """

    def __init__(self, sent: Iterable[Message]) -> None:
        self._first = {message.metadata.message_id: message for message in sent}

    @property
    def messages(self) -> Mapping[str, Message]:
        """Id that a message was last sent with -> the message as it was first sent."""
        return self._first

    def take(self, reply: Message) -> tuple[Message, Message] | None:
        """The message that this answers and its reply, for which nobody waits any more; None if nobody did."""
        answered = reply.metadata.reply_to_message_id
        message = self._first.pop(answered, None)
        if message is None:
            return None
        if message.metadata.message_id != answered:
            reply = Message(reply.error if reply.has_error() else reply.content, reply_to=message)
        return message, reply

    def once_more(self, message_id: str, elapsed: float) -> Message | None:
        """A message to send again, to expire when the first does; None if it was, or if there is no time left.

        Args:
            message_id: its id.
            elapsed: seconds since it was first sent.
        """
        message = self._first[message_id]
        left = message.metadata.ttl - elapsed
        if message.metadata.message_id != message_id or left <= 0:
            return None
        told = message.metadata
        return Message(
            message.content, told.dst_node_id, told.message_type, ttl=left, group_id=told.group_id
        )

    def sent_again(self, message_id: str, new_id: str) -> None:
        """Wait for the reply to ``new_id`` in place of that to ``message_id``."""
        self._first[new_id] = self._first.pop(message_id)

    def give_up(self, message_id: str) -> tuple[Message, Message]:
        """A message and the error that stands for its reply, for which nobody waits any more."""
        message = self._first.pop(message_id)
        reason = "the node is done with this message, and its reply is not here"
        return message, Message(
            Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason), reply_to=message
        )
