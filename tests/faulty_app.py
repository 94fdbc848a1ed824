"""florana's Flower app, with faults on order: its processes raise, die, dawdle or wait where a test says so.

An order is a file in the folder ``$FLORANA_FAULTS``: its name says where, its content what. It is obeyed once, by
renaming it, so that a round that is done again goes well. Where:

- ``client-C-round-R``: client C has trained for round R, and has neither kept nor sent anything;
- ``start-R``: the server has aggregated round R, and has written nothing;
- ``write-R``: metrics.jsonl has round R's lines, the checkpoint is still that of the round before;
- ``done-R``: the checkpoint of round R is in place.

``ask-after`` holds the seconds after which nodes are asked if they are still at work.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from florana import flower_app

RAISE, KILL, DAWDLE, WAIT = "raise", "kill", "dawdle", "wait"
FOREVER = 600.0

server_app = ServerApp()
client_app = ClientApp()


class Faults:
    """The test's side of the orders.

    Args:
        folder: the value of ``$FLORANA_FAULTS``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def order(self, **what: str) -> None:
        """Give orders: ``order(client_1_round_2=KILL)``."""
        for where, order in what.items():
            (self.folder / where.replace("_", "-")).write_text(order)

    def obeyed(self, where: str) -> bool:
        """Whether an order was come to; one to wait is waiting then."""
        return (self.folder / f"{where.replace('_', '-')}.obeyed").exists()

    def let_go(self, where: str) -> None:
        """End a wait."""
        (self.folder / f"{where.replace('_', '-')}.go").touch()


def obey(where: str) -> None:
    """Do what was ordered for this place, if anything was."""
    path = Path(os.environ["FLORANA_FAULTS"]) / where
    try:
        path.rename(path.with_name(f"{where}.obeyed"))
    except FileNotFoundError:
        return
    order, began = path.with_name(f"{where}.obeyed").read_text(), time.monotonic()
    if order == RAISE:
        raise OSError(f"the disk is gone at {where}")
    if order == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    while order in (DAWDLE, WAIT) and time.monotonic() - began < FOREVER:
        if order == WAIT and path.with_name(f"{where}.go").exists():
            return
        time.sleep(0.1)


def before(owner: Any, name: str, place: Callable[..., str]) -> None:
    """Look for orders before every call of a function."""
    work = getattr(owner, name)

    def looked(*args: Any, **kwargs: Any) -> Any:
        obey(place(*args))
        return work(*args, **kwargs)

    setattr(owner, name, looked)


def after(owner: Any, name: str, place: Callable[..., str]) -> None:
    """Look for orders after every call of a function."""
    work = getattr(owner, name)

    def looked(*args: Any, **kwargs: Any) -> Any:
        made = work(*args, **kwargs)
        obey(place(*args))
        return made

    setattr(owner, name, looked)


def watch_clients() -> None:
    """Look for a client's orders when it has trained."""
    from florana.experiments.client import ClientWork

    if ClientWork.train.__name__ == "looked":
        return  # Ray's actors answer many messages
    after(ClientWork, "train", lambda *a: f"client-{a[5]}-round-{a[4]}")


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The library's server, which looks for orders."""
    from florana.experiments.run_folder import RunFolder
    from florana.experiments.server import ServerHalf
    from florana.federation import overdue

    ask_after = Path(os.environ["FLORANA_FAULTS"]) / "ask-after"
    if ask_after.exists():
        overdue.FIRST_QUESTION = float(ask_after.read_text())
    before(ServerHalf, "_finish_round", lambda *a: f"start-{a[1].server_round}")
    before(RunFolder, "write_checkpoint", lambda *a: f"write-{a[1].state.server_round}")
    after(RunFolder, "write_checkpoint", lambda *a: f"done-{a[1].state.server_round}")
    flower_app.server_app(grid, context)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """The library's client."""
    return flower_app.client_app(message, context)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """The library's client, which looks for orders."""
    watch_clients()
    return flower_app.client_app(message, context)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The library's client."""
    return flower_app.client_app(message, context)
