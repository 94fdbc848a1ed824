"""``florana run`` on Flower's simulation: clients in parallel, in Ray's processes, for the time of the run."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from florana.app_config import Flat, write_run_config
from florana.config import RunConfig
from florana.errors import ConfigError, FederationError
from florana.experiments.deployed import tell_replies
from florana.experiments.events import Summary, Watch
from florana.experiments.flower_log import flower_log_in
from florana.federation.watched_grid import WatchedGrid


def on_ray(
    config: RunConfig, folder: Path, watch: Watch, work: Callable[[Grid], Summary]
) -> Summary:
    """Start Ray and Flower's simulation, do the server's work on its grid, and end both.

    The server half runs in this process, the clients in Ray's. We use Flower's ``run_simulation``, which starts no
    SuperLink: nothing is left behind, and an error of the server half arrives here.

    Args:
        config: the run's; ``config.simulation`` says what a client gets of the machine.
        folder: the run's; clients keep what they must under ``nodes/`` in it, so that a resumed run finds it.
        watch: told everything that happens.
        work: the server half.

    Raises:
        ConfigError: if Ray is not installed.
        FloranaError: what the server half raises.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "federation.engine = 'simulation' runs on Ray, which is not installed: pip install 'florana[simulation]'"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from flwr.simulation import run_simulation

    stop, made = threading.Event(), list[Summary]()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        made.append(work(WatchedGrid(grid, tell_replies(watch), stop)))

    shares = config.simulation
    init = {"num_cpus": shares.cpus, "num_gpus": shares.gpus}
    backend: Any = {
        "client_resources": {
            "num_cpus": shares.client_cpus,
            "num_gpus": shares.client_gpus,
            "max_restarts": -1,  # of Ray's actor; or one that died would fail all that it is given
            "max_task_retries": 1,  # or it would fail what it is given while it starts again
        },
        "init_args": {
            "logging_level": "ERROR",
            "log_to_driver": False,
            **{name: count for name, count in init.items() if count is not None},
        },
    }
    try:
        with flower_log_in(folder / "flower.log"):
            run_simulation(
                server_app,
                simulated_client_app(config, folder / "nodes"),
                num_supernodes=config.federation.clients,
                backend_config=backend,
            )
    except RuntimeError as error:  # Flower's, whatever the cause
        raise FederationError(
            f"Flower's simulation broke down: {error.__cause__ or error}; does a client's share, "
            f"simulation.client_cpus = {shares.client_cpus:g} and client_gpus = {shares.client_gpus:g}, fit into this "
            f"machine? {folder / 'flower.log'} says more; go on with: florana run --resume {folder}"
        ) from error
    finally:
        stop.set()  # the server half is in a thread, which must not wait for clients that are gone
    if not made:
        raise FederationError(
            f"Flower's simulation ended before the run did; {folder / 'flower.log'} says why"
        )
    return made[0]


ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set before Ray starts: nothing is reported to anybody."""


def simulated_client_app(config: RunConfig, state: Path) -> ClientApp:
    """The app of :mod:`florana.flower_app` with this configuration, since a simulation hands none over.

    Args:
        config: the run's.
        state: where the clients keep what they must.
    """
    run_config: Flat = write_run_config(config)
    own: dict[str, Any] = {
        "state": str(state.absolute()),
        "threads": max(1, int(config.simulation.client_cpus)),
    }

    def filled(context: Context) -> Context:
        node_config = {**context.node_config, **own}
        return Context(
            context.run_id, context.node_id, node_config, context.state, dict(run_config)
        )

    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        from florana.flower_app import client_app

        return client_app(message, filled(context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from florana.flower_app import client_app

        return client_app(message, filled(context))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        from florana.flower_app import client_app

        return client_app(message, filled(context))

    return app
