"""The client's side of a round: take the global adapter, train, test, send the factors back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from florana.adapter import Adapter
from florana.federation.records import pack, unpack
from florana.lowrank import Product


class LocalResult(NamedTuple):
    """What a client hands back: its adapter, the size of its training data, and its metrics."""

    adapter: Adapter
    num_examples: int
    metrics: Mapping[str, float]


TrainClient = Callable[[Adapter, Mapping[str, Product], int, int], LocalResult]
"""(global adapter, residual, round, partition) -> local result."""


def build_client_app(template: Adapter, train_client: TrainClient) -> ClientApp:
    """A Flower ClientApp that answers ``train`` messages.

    Training and the test of the client's own model go in one message, since on other engines every
    message starts a process.

    Args:
        template: an adapter of the shape that this federation trains.
        train_client: does the work, knows the client's data and nothing of Flower.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        adapter, residual = unpack(message.content, template)
        server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        partition = int(context.node_config["partition-id"])
        result = train_client(adapter, residual, server_round, partition)
        content: RecordDict = pack(result.adapter)
        content["metrics"] = MetricRecord(
            {"num-examples": result.num_examples, "partition-id": partition, **result.metrics}
        )
        return Message(content, reply_to=message)

    return app
