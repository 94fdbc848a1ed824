"""A run whose grid comes from outside: a SuperLink's, or that of ``flwr run`` on a simulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from florana.config import RunConfig
from florana.errors import RunError
from florana.experiments.checkpoint import Checkpoint
from florana.experiments.events import ClientReplied, Note, Summary, Watch
from florana.experiments.run_folder import RunFolder, refuse_used
from florana.experiments.runner import finished, new_folder, reopen
from florana.experiments.server import ServerHalf
from florana.experiments.setup import prepare_server
from florana.federation.views import configs_in, metrics_in
from florana.federation.watched_grid import OnReply, WatchedGrid

FREE: dict[str, Any] = {
    "output": True,
    "device": True,
    "threads": True,
    "simulation": True,
    "federation": {"wait_seconds", "deadline_seconds"},
}
"""Keys that a resumed run may change: they decide where it computes and how long it waits, not what it computes."""


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
    in_turn = not isinstance(grid, InMemoryGrid)  # that is Flower's simulation
    watched = WatchedGrid(grid, tell_replies(watch), on_lost=_tell_lost(watch) if in_turn else None)
    with folder.held():
        first = Checkpoint(side.first)
        checkpoint = first if resume is None else reopen(folder, config, side)
        return ServerHalf(side, folder, watch).finish(checkpoint, watched), folder.path


def tell_replies(watch: Watch) -> OnReply:
    """Tell the watcher of every reply to a ``train`` or ``evaluate`` message."""

    def on_reply(message: Message, reply: Message, seconds: float) -> None:
        config = configs_in(message.content).get("config")
        server_round = None if config is None else config.get("server-round")
        if not isinstance(server_round, int):
            return
        client = f"node {message.metadata.dst_node_id}"
        if not reply.has_error():
            said = metrics_in(reply.content).get("metrics")
            client = f"client {said and said.get('partition-id')} on {client}"
        if message.metadata.message_type == MessageType.EVALUATE:  # after the last round
            server_round, client = server_round - 1, f"{client}, testing the result,"
        watch(ClientReplied(server_round, client, seconds, reply.has_error()))

    return on_reply


def _tell_lost(watch: Watch) -> Callable[[Message], None]:
    """Tell the watcher of every message that is sent again."""

    def on_lost(message: Message) -> None:
        node = message.metadata.dst_node_id
        watch(
            Note(
                f"node {node}'s reply was lost on its way; the node is asked to do this round again"
            )
        )

    return on_lost


def _check_same_config(folder: RunFolder, config: RunConfig) -> None:
    """Refuse to go on with the checkpoint of another run."""
    before = _fixed(folder.read_config())
    now = _fixed(config)
    changed = [key for key in before if before[key] != now.get(key)]
    if changed:
        said = "; ".join(
            f"{key} was {before[key]!r}, here it is {now.get(key)!r}" for key in changed
        )
        raise RunError(
            f"{folder.path} holds the run of another configuration: {said}; give the same configuration, or leave "
            "resume out to start anew"
        )


def _fixed(config: RunConfig) -> dict[str, Any]:
    """What a resumed run must not change: full name of the key -> value."""
    sections = config.model_dump(mode="json", exclude=FREE)
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat |= (
            {f"{name}.{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat
