"""Whole runs from one command: new ones and interrupted ones, with clients here or on Flower's simulation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from florana.adapter import Plan
from florana.config import RunConfig, sampled_clients
from florana.errors import RunError
from florana.experiments.at_once import AtOnce
from florana.experiments.checkpoint import Checkpoint
from florana.experiments.events import ClientStarted, Summary, Watch
from florana.experiments.run_folder import RunFolder, free_folder, refuse_used
from florana.experiments.server import ServerHalf
from florana.experiments.setup import Experiment, ServerSide, prepare, prepare_server
from florana.federation.client_app import LocalResult, Task, build_client_app
from florana.federation.local_grid import LocalGrid
from florana.federation.records import Held
from florana.federation.streamed_grid import StreamedGrid
from florana.training.together import choose

AT_ONCE = "clients_at_once"
"""Entry of the provenance's machine: how many clients are trained at once. A resumed run does not measure it again."""


def start(config: RunConfig, watch: Watch) -> Summary:
    """Do a new run.

    Args:
        config: the checked configuration.
        watch: told everything that happens.

    Raises:
        FloranaError: if the run cannot be set up, or cannot go on.
    """
    if config.output is not None:
        refuse_used(Path(config.output))  # before a minute of set-up, not after it
    prepared = _prepare(config)
    if isinstance(prepared, Experiment):
        prepared.provenance["machine"][AT_ONCE] = _clients_at_once(prepared)
    folder = new_folder(config, prepared.provenance)
    with folder.held():
        return _finish(prepared, folder, Checkpoint(prepared.first), watch)


def resume(path: Path, watch: Watch) -> Summary:
    """Go on with a run that was interrupted; a finished one is only told again.

    Raises:
        RunError: if there is no run, its data or base model are no longer the same, or another process is at it.
    """
    folder = RunFolder.open(path)
    config, summary = folder.read_config(), finished(folder)
    if summary is not None:
        return summary
    before = folder.read_provenance()["machine"]
    prepared = _prepare(config.model_copy(update={"threads": before["threads"]}))
    prepared.provenance["machine"][AT_ONCE] = before.get(AT_ONCE, 1)
    with folder.held():
        return _finish(prepared, folder, reopen(folder, config, prepared), watch)


def new_folder(config: RunConfig, provenance: dict[str, Any]) -> RunFolder:
    """The folder of a new run: as told, or a free one under runs/."""
    stem = f"{Path(config.data.source).stem}-{config.method.name}-seed{config.seed}"
    path = Path(config.output) if config.output else free_folder(Path("runs"), stem)
    return RunFolder.create(path, config, provenance)


def finished(folder: RunFolder) -> Summary | None:
    """How the folder's run ended, if it has."""
    summary = folder.read_summary()
    return None if summary is None else Summary(**summary, seconds=0.0)


def reopen(folder: RunFolder, config: RunConfig, prepared: Experiment | ServerSide) -> Checkpoint:
    """Where an interrupted run stands; what a kill left half written is cut off.

    Raises:
        RunError: if data, base model, partition or libraries are others than the run began with.
    """
    before, now = folder.read_provenance(), prepared.provenance
    for key in ("data", "base_model", "partition", "versions"):
        if before[key] != now[key]:
            raise RunError(
                f"{folder.path} cannot be resumed: its {key} was {before[key]}, here it is {now[key]}; "
                f"start anew with: florana run {folder.path / 'config.toml'} --output NEW"
            )
    now["key"] = before.get("key", now["key"])
    folder.write_config(config)
    checkpoint = folder.read_checkpoint(prepared.first)
    if checkpoint is not None:
        folder.append_metrics([], after=checkpoint.metrics_size)
    return checkpoint or Checkpoint(prepared.first)


def _prepare(config: RunConfig) -> Experiment | ServerSide:
    return prepare(config) if config.federation.engine == "local" else prepare_server(config)


def _clients_at_once(experiment: Experiment) -> int:
    """As configured, or as many as the fastest of a few short trainings; no more than a round has."""
    wanted, most = experiment.config.federation.clients_at_once, _in_a_round(experiment)
    if wanted != "auto":
        return min(wanted, most)
    examples = [client.train for client in experiment.clients[:most]]
    return choose(experiment.model, examples, experiment.objective, experiment.training)


def _in_a_round(experiment: Experiment) -> int:
    return min(len(experiment.clients), sampled_clients(experiment.config.federation))


def _finish(
    prepared: Experiment | ServerSide, folder: RunFolder, checkpoint: Checkpoint, watch: Watch
) -> Summary:
    if isinstance(prepared, Experiment):
        return _finish_here(prepared, folder, checkpoint, watch)
    from florana.experiments.simulation import on_ray

    half = ServerHalf(prepared, folder, watch)
    return on_ray(prepared.config, folder.path, watch, lambda grid: half.finish(checkpoint, grid))


def _finish_here(
    experiment: Experiment, folder: RunFolder, checkpoint: Checkpoint, watch: Watch
) -> Summary:
    """Clients in this process, one after the other or in groups, on the server's own model."""
    work, seconds = experiment.work, 0.0

    def train_client(start: Held, plan: Plan, server_round: int, client: int) -> LocalResult:
        nonlocal seconds
        watch(ClientStarted(server_round, client))
        began = time.perf_counter()
        result = work.train(experiment.clients[client], start, plan, server_round, client)
        seconds += time.perf_counter() - began
        return result

    def spend(time_taken: float) -> None:
        nonlocal seconds
        seconds += time_taken

    def train_task(task: Task) -> LocalResult:
        return train_client(task.start, task.plan, task.server_round, task.partition)

    size = experiment.provenance["machine"][AT_ONCE]
    group = AtOnce(experiment, size, watch, train_task, spend) if size > 1 else None
    count = len(experiment.clients)
    app = build_client_app(experiment.model.initial, train_client)
    grid = LocalGrid(app, count, states=folder.client_states(checkpoint), group=group)
    half = ServerHalf(
        experiment.server,
        folder,
        watch,
        clients=count,
        states=lambda: grid.states,
        trained=lambda: seconds,
    )
    return half.finish(checkpoint, StreamedGrid(grid, max(1, size)))
