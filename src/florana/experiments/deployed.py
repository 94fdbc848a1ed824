"""A run whose grid comes from outside: a SuperLink's, or that of ``flwr run`` on a simulation."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from florana.config import RunConfig
from florana.errors import RunError
from florana.experiments.checkpoint import Checkpoint
from florana.experiments.events import ClientReplied, Summary
from florana.experiments.run_folder import RunFolder, refuse_used
from florana.experiments.runner import finished, new_folder, reopen
from florana.experiments.server import ServerHalf, Watch
from florana.experiments.setup import prepare_server
from florana.federation.watched_grid import OnReply, WatchedGrid

FREE = ("output", "device", "threads")
"""Keys that a resumed run may change: they decide where it computes, not what."""


def serve(grid: Grid, config: RunConfig, resume: Path | None, watch: Watch) -> tuple[Summary, Path]:
    """Do a run, or the rest of one.

    Args:
        grid: the federation.
        config: the checked configuration.
        resume: folder of a run to go on with; None for a new run.
        watch: told everything that happens.

    Raises:
        FloranaError: if the run cannot be set up, or cannot go on. All finished rounds are saved.
    """
    if resume is None and config.output is not None:
        refuse_used(Path(config.output))
    if resume is not None:
        folder = RunFolder.open(resume)
        _check_same_config(folder, config)
        summary = finished(folder)
        if summary is not None:
            return summary, folder.path
    side = prepare_server(config)
    if resume is None:
        folder = new_folder(config, side.provenance)
    watched = WatchedGrid(grid, tell_replies(watch))
    with folder.held():
        first = Checkpoint(side.first)
        checkpoint = first if resume is None else reopen(folder, config, side)
        return ServerHalf(side, folder, watch).finish(checkpoint, watched), folder.path


def tell_replies(watch: Watch) -> OnReply:
    """Tell the watcher of every reply to a ``train`` or ``evaluate`` message."""

    def on_reply(message: Message, reply: Message, seconds: float) -> None:
        config = message.content.config_records.get("config")
        server_round = None if config is None else config.get("server-round")
        if not isinstance(server_round, int):
            return
        client = f"node {message.metadata.dst_node_id}"
        if not reply.has_error():
            said = reply.content.metric_records.get("metrics")
            client = f"client {said and said.get('partition-id')} on {client}"
        if message.metadata.message_type == MessageType.EVALUATE:  # after the last round
            server_round, client = server_round - 1, f"{client}, testing the result,"
        watch(ClientReplied(server_round, client, seconds, reply.has_error()))

    return on_reply


def _check_same_config(folder: RunFolder, config: RunConfig) -> None:
    """Refuse to go on with the checkpoint of another run."""
    before = folder.read_config().model_dump(mode="json", exclude=set(FREE))
    now = config.model_dump(mode="json", exclude=set(FREE))
    for section in before:
        if section != "simulation" and before[section] != now[section]:
            raise RunError(
                f"{folder.path} holds the run of another configuration: its {section} was {before[section]}, here it is "
                f"{now[section]}; give the same configuration, or leave resume out to start anew"
            )
