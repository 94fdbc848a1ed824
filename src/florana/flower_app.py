"""The Flower app: a ``ServerApp`` and a ``ClientApp`` that read everything from their context.

``florana app DIR CONFIG`` writes a project of a few lines that points here, and ``flwr run DIR`` runs it on a simulation
or on any SuperLink. The run's configuration is in ``context.run_config``, a node's own settings are in
``context.node_config``, see :class:`florana.experiments.node.NodeSettings`.

What leaves a node: the factors and heads that the method's plan sends, in the form of :func:`florana.federation.pack`, and the
numbers ``partition-id``, ``num-examples``, ``train-loss``, ``score``, ``loss`` and ``metric:NAME`` of its own model on its own held-out
data, ``seconds``, and where the server cannot test, ``received-score``, ``received-loss``, ``received-metric:NAME`` and
``test-examples`` of the global model there. Nothing else: no text, no label, no count of labels.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from florana.app_config import RESUME, read_run_config
from florana.errors import ConfigError, FloranaError
from florana.garbage import importing, process_is_ours

if TYPE_CHECKING:
    from florana.experiments.events import Event
    from florana.experiments.node import Node

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Do a run on whatever federation ``grid`` is."""
    _settle()
    with importing("florana.experiments.deployed"):
        from rich.console import Console

        from florana.cli._progress import Progress
        from florana.experiments.deployed import serve
        from florana.report import write_run_report
        from florana.report.prometheus import PrometheusWatcher

    run_config = dict(context.run_config)
    resume = str(run_config.pop(RESUME, "") or "")
    config = read_run_config(run_config)
    console = Console(highlight=False, width=110, force_terminal=False)
    file = PrometheusWatcher()
    with Progress(console) as progress:

        def watch(event: Event) -> None:
            progress.watch(event)
            file.watch(event)

        try:
            given = Path(resume) if resume else None
            summary, folder = serve(grid, config, given, watch)
        except FloranaError as error:  # Flower adds a traceback and marks the run as failed
            console.print(f"florana: {error}", markup=False, soft_wrap=True)
            raise
        write_run_report(folder)
        progress.finished(summary, folder, report=True)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Say which partition this node is; before anything heavy is loaded."""
    partition = context.node_config.get("partition-id")
    if type(partition) is not int:
        raise ConfigError(
            f"this node's partition-id is {partition!r}; start it with: flower-supernode "
            "--node-config 'partition-id=0 ...'"
        )
    who = MetricRecord({"partition-id": partition})
    return Message(RecordDict({"metrics": who}), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round, and test in the same message."""
    from florana.experiments.deadline import within

    with within(message.metadata.ttl):
        content = _node(context).train(message.content)
    return Message(content, reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on the node's own held-out data."""
    return Message(_node(context).evaluate(message.content), reply_to=message)


def _node(context: Context) -> Node:
    _settle()
    run_config = dict(context.run_config)
    run_config.pop(RESUME, None)
    config = read_run_config(run_config)
    with importing("florana.experiments.node"):
        from florana.experiments.node import open_node
    return open_node(config, context.node_config)


def _settle() -> None:
    """Keep what libraries warn of out of the node's log; the process is here for florana alone."""
    process_is_ours()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.captureWarnings(True)
