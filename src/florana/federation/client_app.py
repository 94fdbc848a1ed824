"""The client's side of a round: take the global adapter, train, test, send back what the plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from florana.adapter import EVERYTHING, Adapter, Part, Plan
from florana.config import Codec
from florana.errors import AdapterError
from florana.federation.codec import CODECS
from florana.federation.manifest import MANIFEST, describe
from florana.federation.records import ARRAYS, Held, pack, pack_lossy, unpack
from florana.federation.views import arrays_in, configs_in

HELD = "held"
HELD_ROUND = "held-round"
HOME = "home"
LEFT_OUT = "left-out"
"""Names in ``context.state``: the last global model and its round, the parts kept at home, the codec's error."""


class LocalResult(NamedTuple):
    """What a client hands back: its adapter, the size of its training data, and its metrics."""

    adapter: Adapter
    num_examples: int
    metrics: Mapping[str, float]


TrainClient = Callable[[Held, Plan, int, int], LocalResult]
"""(where to start, plan, round, partition) -> local result."""

ScoreClient = Callable[[Held, int], Mapping[str, float]]
"""(a model, partition) -> what it scores on the client's own held-out data."""

NO_SCORES: Mapping[str, float] = MappingProxyType({})


def build_client_app(
    template: Adapter, train_client: TrainClient, score_client: ScoreClient | None = None
) -> ClientApp:
    """A Flower ClientApp that answers ``train`` messages, and ``evaluate`` messages if it can score.

    Training and the test of the client's own model go in one message, since on other engines every
    message starts a process. What the client must remember (the global parts that the server will not send
    again, and the parts that the plan keeps at home) is in Flower's ``context.state``.

    Args:
        template: an adapter of the shape that this federation trains.
        train_client: does the work, knows the client's data and nothing of Flower.
        score_client: tests a model on the client's own held-out data.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        content = answer_train(
            message.content, context.state, partition, template, train_client, score_client
        )
        return Message(content, reply_to=message)

    if score_client is not None:

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            partition = int(context.node_config["partition-id"])
            content = answer_evaluate(
                message.content, context.state, partition, template, score_client
            )
            return Message(content, reply_to=message)

    return app


def answer_train(
    content: RecordDict,
    state: RecordDict,
    partition: int,
    template: Adapter,
    train_client: TrainClient,
    score_client: ScoreClient | None = None,
) -> RecordDict:
    """A client's part of a round: take the global model, train, and say what the plan asks for.

    Args:
        content: the server's message.
        state: what this client kept; what it has to keep now is written into it.
        partition: which client this is.
        template: an adapter of the shape that this federation trains.
        train_client: does the work.
        score_client: tests the received model as well, where the message asks for it.

    Raises:
        AdapterError: if the message does not fit what is held here.
    """
    task = receive(content, state, partition, template)
    asked = score_client is not None and configs_in(content)["config"].get("score")
    received = score_client(task.start, partition) if score_client and asked else {}
    result = train_client(task.start, task.plan, task.server_round, partition)
    return reply(task, result, state, received)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a client is asked for in a round.

    Args:
        start: where training starts: the global model, with what is kept at home in its place.
        plan: what is trained and sent.
        server_round: the round.
        partition: which client this is.
        came: the global model as it came.
        codec: the number format that the server asks for.
    """

    start: Held
    plan: Plan
    server_round: int
    partition: int
    came: Held
    codec: Codec


def receive(content: RecordDict, state: RecordDict, partition: int, template: Adapter) -> Task:
    """The first half of a client's part of a round: read the message, and keep what it says to keep.

    Args:
        content: the server's message.
        state: what this client kept; what it has to keep now is written into it.
        partition: which client this is.
        template: an adapter of the shape that this federation trains.

    Raises:
        AdapterError: if the message does not fit what is held here.
    """
    config = configs_in(content)["config"]
    plan, server_round = read_plan(config), _round_of(config)
    came = _receive(content, state, template)
    if config["keep"]:
        _remember(state, HELD, pack(came.adapter, came.residual))
        state[HELD_ROUND] = ConfigRecord({"round": server_round - 1})
    start = own_model(came, state, template)
    return Task(start, plan, server_round, partition, came, _read_codec(config))


def reply(
    task: Task,
    result: LocalResult,
    state: RecordDict,
    received: Mapping[str, float] = NO_SCORES,
) -> RecordDict:
    """The second half: keep what stays at home, and send back what the plan says.

    Args:
        task: what was asked for.
        result: what training made of it.
        state: what this client kept; what it has to keep now is written into it.
        received: what the received model scored here, where that was asked for.
    """
    if task.plan.home:
        _remember(state, HOME, pack(result.adapter, parts=task.plan.home))
    content = _reply(result.adapter, task.came.adapter, task.plan, task.codec, state)
    content["metrics"] = MetricRecord(
        {
            "num-examples": result.num_examples,
            "partition-id": task.partition,
            **result.metrics,
            **received,
        }
    )
    return content


def answer_evaluate(
    content: RecordDict,
    state: RecordDict,
    partition: int,
    template: Adapter,
    score_client: ScoreClient,
) -> RecordDict:
    """What the message's global model, with what is kept at home in its place, scores here.

    Raises:
        AdapterError: if the message does not fit what is held here.
    """
    start = own_model(_receive(content, state, template), state, template)
    return RecordDict(
        {"metrics": MetricRecord({"partition-id": partition, **score_client(start, partition)})}
    )


def _receive(content: RecordDict, state: RecordDict, template: Adapter) -> Held:
    """The global model, made of what came and what is held here."""
    _check_held(state, configs_in(content)["config"])
    return unpack(content, template, _recall(state, HELD, template))


def _round_of(config: ConfigRecord) -> int:
    server_round = config.get("server-round")
    if type(server_round) is not int:
        raise AdapterError(f"the message's server-round is {server_round!r}, expected a number")
    return server_round


def _reply(
    trained: Adapter, received: Adapter, plan: Plan, codec: Codec, state: RecordDict
) -> RecordDict:
    """The factors that the plan asks for, in the number format that the server asks for."""
    if codec == "float32":
        return pack(trained, parts=plan.sent)
    alike = describe(trained) == describe(received)
    carried = arrays_in(state).get(LEFT_OUT)
    lossy = pack_lossy(
        trained,
        codec,
        plan.sent,
        reference=received if alike else None,
        carried=torch.from_numpy(carried[LEFT_OUT].numpy().copy()) if carried else None,
    )
    if lossy.carried is not None:
        state[LEFT_OUT] = ArrayRecord({LEFT_OUT: Array(lossy.carried.numpy())})
    return lossy.content


def own_model(received: Held, state: RecordDict, template: Adapter) -> Held:
    """The global model with what the client keeps at home in its place.

    Args:
        received: the global model.
        state: the client's ``context.state``.
        template: an adapter of the shape that this federation trains.
    """
    home = _recall(state, HOME, template, received)
    return received if home is None else replace(received, adapter=home.adapter)


def write_plan(plan: Plan) -> dict[str, str]:
    """The plan as entries of a message's config record."""
    return {"train": _joined(plan.train), "home": _joined(plan.home)}


def read_plan(config: ConfigRecord) -> Plan:
    """The plan that a message asks for.

    Raises:
        AdapterError: if it names parts that are not known.
    """
    train, home = (_split(str(config.get(key, ""))) for key in ("train", "home"))
    return Plan(train, home)


NOTHING = "none"
"""Stands for no part; Flower cannot count the bytes of an empty string."""


def _read_codec(config: ConfigRecord) -> Codec:
    codec = config.get("uplink", "float32")
    if codec not in CODECS:
        raise AdapterError(f"the server asks for the codec {codec!r}; known: {', '.join(CODECS)}")
    return codec


def _joined(parts: frozenset[Part]) -> str:
    return ",".join(sorted(parts)) or NOTHING


def _split(text: str) -> frozenset[Part]:
    known: dict[str, Part] = {part: part for part in EVERYTHING}
    names = [name for name in text.split(",") if name != NOTHING]
    odd = [name for name in names if name not in known]
    if odd:
        raise AdapterError(f"the server's plan names {odd[0]!r}; known: {', '.join(sorted(known))}")
    return frozenset(known[name] for name in names)


def _check_held(state: RecordDict, config: ConfigRecord) -> None:
    """Refuse what builds on another global model: delivered twice, it would be added twice."""
    expected: Any = config.get("builds-on", -1)
    held: Any = configs_in(state)[HELD_ROUND]["round"] if HELD_ROUND in state else None
    if expected != -1 and held != expected:
        here = "nothing" if held is None else f"that after round {held}"
        raise AdapterError(
            f"the message builds on the global model after round {expected}, and {here} is held here; it must "
            "be sent whole"
        )


def _remember(state: RecordDict, what: str, content: RecordDict) -> None:
    state[f"{what}-{ARRAYS}"] = arrays_in(content)[ARRAYS]
    state[f"{what}-{MANIFEST}"] = configs_in(content)[MANIFEST]


def _recall(
    state: RecordDict, what: str, template: Adapter, held: Held | None = None
) -> Held | None:
    if f"{what}-{MANIFEST}" not in state:
        return None
    content = RecordDict(
        {
            ARRAYS: arrays_in(state)[f"{what}-{ARRAYS}"],
            MANIFEST: configs_in(state)[f"{what}-{MANIFEST}"],
        }
    )
    return unpack(content, template, held)
