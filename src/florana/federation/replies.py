"""What a client's reply says, checked before it counts: the server trusts nothing in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from reprlib import repr as short
from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode

from florana import lowrank
from florana.adapter import EVERYTHING, Adapter, LoraPair, Plan
from florana.aggregators import card, check_compatible, check_finite, narrowed
from florana.errors import AdapterError
from florana.federation.manifest import blank_adapter, read_manifest, sent_parts
from florana.federation.records import Held, unpack
from florana.federation.views import metrics_in

MAX_EXAMPLES = 1e15
"""More than any client has, and few enough that sums of them are exact and finite."""

IN_PART = "message objects are unavailable"
"""Of what Flower says of a reply that was not sent whole; its code is that of a message that expired."""

REASON_LENGTH = 400
"""Characters of an error that stand in the log; Ray's have whole paragraphs."""

CAUSES = {
    ErrorCode.MESSAGE_UNAVAILABLE: "no reply came before its message expired (federation.deadline_seconds)",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "its reply was lost on the way, or came after its message expired",
    ErrorCode.NODE_UNAVAILABLE: "its SuperNode is gone",
    ErrorCode.CLIENT_APP_CRASHED: "its process died: it was killed, or out of memory",
}
"""What Flower's error codes mean to people; it says "Message Unavailable" of a client that was too slow."""


def match(
    sent: Iterable[Message], replies: Iterable[Message], stray: Callable[[Message], None]
) -> Iterator[tuple[int, Message | None]]:
    """Every node that was asked with its reply, in the order of asking, then second replies.

    An error that the SuperLink makes for a node comes from node 1, so a reply belongs to the node whose
    message it answers. A node without a reply stands with None, one that replied twice stands twice. Replies are taken
    one by one, each when it is needed, and none is kept that was given: clients may make them as they are taken.

    Args:
        sent: the messages; a grid gives them their ids when it sends them, which may be with the first reply.
        replies: what came for them.
        stray: told of every reply to nothing.
    """
    asked, arriving = list(sent), iter(replies)
    waiting: dict[str, Message] = {}
    more: list[Message] = []
    for message in asked:
        while message.metadata.message_id not in waiting:
            reply = next(arriving, None)
            if reply is None:
                break
            answers = reply.metadata.reply_to_message_id
            if waiting.setdefault(answers, reply) is not reply:
                more.append(reply)
        yield message.metadata.dst_node_id, waiting.pop(message.metadata.message_id, None)
    nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in asked}
    for reply in (*waiting.values(), *more, *arriving):
        answers = reply.metadata.reply_to_message_id
        if answers in nodes:
            yield nodes[answers], reply
        else:
            stray(reply)


def content_of(reply: Message | None) -> RecordDict:
    """The content of a reply.

    Raises:
        AdapterError: if there is none, saying why.
    """
    if reply is None:
        raise AdapterError("no reply came in time")
    if reply.has_error():
        cause, reason = CAUSES.get(reply.error.code, "it failed"), str(reply.error.reason)
        if IN_PART in reason:
            cause = "its reply came in part"
        raise AdapterError(f"{cause}: {_shortened(reason)}")
    return reply.content


def _shortened(reason: str) -> str:
    """On one line, without its middle: Ray's end with what the client raised, after its whole traceback."""
    line, first = " ".join(reason.split()), REASON_LENGTH // 4
    if len(line) <= REASON_LENGTH:
        return line
    return f"{line[:first]} [...] {line[first - REASON_LENGTH :]}"


def read_adapter(content: RecordDict, start: Adapter, plan: Plan, method: str) -> Adapter:
    """The adapter that a client trained.

    A reply in few bits may be a difference to what the client was sent; of a client of a smaller rank that was its share
    of the start.

    Args:
        content: its reply.
        start: what the round began with; gives the parts that the client did not send.
        plan: what it was asked to train and send.
        method: name of the method; it says whether smaller ranks than the start's are welcome.

    Raises:
        AdapterError: if it sent other parts, does not fit the start, or holds NaN or infinity.
    """
    parts = sent_parts(content)
    if parts != plan.sent:
        raise AdapterError(
            f"it sent the parts {', '.join(sorted(parts)) or 'none'}, "
            f"the plan asks for {', '.join(sorted(plan.sent)) or 'none'}"
        )
    came = blank_adapter(read_manifest(content), start)
    ranks = [min(came.pairs[name].rank, pair.rank) for name, pair in start.pairs.items()]
    adapter = unpack(content, start, Held(narrowed(start, method, ranks))).adapter
    check_compatible(adapter, start)
    check_finite(adapter)
    _check_ranks(adapter, start, card(method).mixed_ranks)
    _check_bases(adapter, start)
    if plan.sent != EVERYTHING:
        _check_scalings(adapter, start)
    return adapter


def check_step(adapter: Adapter, start: Adapter, max_norm: float | None) -> None:
    r"""Refuse a client that moved too far: :math:`\lVert \Delta W - \Delta W_{start} \rVert_F` over all modules.

    Args:
        adapter: what it trained.
        start: what the round began with.
        max_norm: the largest such norm; None for no bound.

    Raises:
        AdapterError: if it is above.
    """
    if max_norm is None:
        return
    steps = [
        lowrank.distance(pair.product, start.pairs[name].product)
        for name, pair in adapter.pairs.items()
    ]
    size = math.sqrt(sum(step**2 for step in steps))
    if not size <= max_norm:
        raise AdapterError(
            f"its training changed ΔW by {size:.4g}, more than federation.max_norm = {max_norm:g}"
        )


def read_metrics(
    content: RecordDict, wanted: Collection[str] = ("num-examples",)
) -> tuple[int, dict[str, float]]:
    """Partition and numbers that a client reports.

    Args:
        content: its reply.
        wanted: counts that have to be there, each above 0.

    Raises:
        AdapterError: if one is missing or is no plain number.
    """
    record: Mapping[str, Any] | None = metrics_in(content).get("metrics")
    if record is None or not {"partition-id", *wanted} <= record.keys():
        raise AdapterError(f"its reply lacks the metrics partition-id and {' and '.join(wanted)}")
    metrics = {key: value for key, value in record.items() if key != "partition-id"}
    partition = record["partition-id"]
    if type(partition) is not int:
        raise AdapterError(f"its partition-id is {short(partition)}, expected a whole number")
    odd = [key for key, value in metrics.items() if type(value) not in (int, float)]
    if odd:
        raise AdapterError(f"its metric {short(odd[0])} is no single number")
    for count in wanted:
        if not 0 < metrics[count] <= MAX_EXAMPLES:
            raise AdapterError(
                f"its {count} is {short(metrics[count])}, expected a number above 0, "
                f"at most {MAX_EXAMPLES:.0e}"
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


def _check_bases(adapter: Adapter, reference: Adapter) -> None:
    """A core is averaged between the bases that the server knows, and nowhere else."""
    for name, pair in adapter.pairs.items():
        came, expected = _width(pair), _width(reference.pairs[name])
        if came != expected:
            said = f"has a basis of width {came}" if came else "has no basis"
            wanted = f"one of width {expected}" if expected else "none"
            raise AdapterError(f"module {name} {said}, expected {wanted}")


def _width(pair: LoraPair) -> int | None:
    return None if pair.basis is None else pair.basis.shape[1]


def _check_scalings(adapter: Adapter, reference: Adapter) -> None:
    """A factor is averaged beside one that the others hold fixed, so it must be scaled as theirs are."""
    for name, pair in adapter.pairs.items():
        expected = reference.pairs[name]
        if (pair.alpha, pair.rslora) != (expected.alpha, expected.rslora):
            raise AdapterError(
                f"module {name} has scaling {pair.scaling:g}, expected {expected.scaling:g}"
            )
