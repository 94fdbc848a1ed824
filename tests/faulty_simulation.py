"""``florana run --engine simulation`` with faults on order: python faulty_simulation.py ARGUMENTS of florana."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from florana.cli import main
from florana.config import RunConfig
from florana.experiments import simulation


def with_faults(config: RunConfig, state: Path) -> ClientApp:
    """The library's app, which looks for orders when a client has trained."""
    inner, app = ORIGINAL(config, state), ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return inner(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from faulty_app import watch_clients

        watch_clients()
        return inner(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return inner(message, context)

    return app


if __name__ == "__main__":
    ORIGINAL = simulation.simulated_client_app
    simulation.simulated_client_app = with_faults
    main()
