"""A run's numbers in TensorBoard: a watcher for :mod:`florana.experiments.runner` that writes scalars.

Needs the package ``tensorboard``, which is not installed with florana unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from florana.errors import ConfigError, RunError
from florana.experiments.events import ClientLeftOut, Event, Prepared, RoundRow

TAGS = {
    "score": "global/score",
    "loss": "global/loss",
    "client_score": "clients/mean_score",
    "worst_client": "clients/worst_score",
    "gap": "clients/gap",
    "error_used": "error/used",
    "error_average": "error/average",
    "error_optimum": "error/optimum",
}
"""Field of a round's row → name of its scalar; bytes and clients left out have their own."""


class TensorBoardWatcher:
    """Writes every round's numbers as scalars, with the round as their step.

    Tags are ``global/score`` (of the metric that judges the run), ``global/loss`` (nats), ``global/`` and the name of each further metric, ``clients/mean_score``, ``clients/worst_score``,
    ``clients/gap``, ``clients/left_out`` (how many, where there are any), ``error/used``, ``error/average``, ``error/optimum`` and
    ``megabytes/up`` and ``megabytes/down`` (10⁶ bytes since round 0, all clients). What a round does not have is not
    written. A run that is resumed tells its earlier rounds again, and these replace what it wrote before.

    Args:
        folder: gets the event files; by default ``tensorboard/`` in the run's folder.

    Raises:
        ConfigError: if the package ``tensorboard`` is not installed.
        RunError: by :meth:`watch`, if a round comes before the run's plan or after :meth:`close`.

    Example:
        ``with TensorBoardWatcher() as board: runner.start(config, board.watch)``
    """

    def __init__(self, folder: Path | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "TensorBoard logging needs the package tensorboard, which is not installed here: "
                f"pip install 'florana[tensorboard]' ({error})"
            ) from error
        self._open, self._folder = SummaryWriter, folder
        self._writer: SummaryWriter | None = None
        self._sent = {"up": 0, "down": 0}
        self._left_out: dict[int, int] = {}

    def __enter__(self) -> TensorBoardWatcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def watch(self, event: Event) -> None:
        """Write what an event has of numbers."""
        match event:
            case Prepared():
                self._begin(self._folder or event.folder / "tensorboard")
            case ClientLeftOut():
                count = self._left_out.get(event.server_round, 0)
                self._left_out[event.server_round] = count + 1
            case RoundRow():
                self._write(event)
            case _:
                pass

    def close(self) -> None:
        """Finish the event file; nothing is written after this."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self, folder: Path) -> None:
        self.close()
        self._sent = {"up": 0, "down": 0}
        # What an interrupted run wrote before is told again from round 0, and replaces it.
        self._writer = self._open(str(folder), purge_step=0)

    def _write(self, row: RoundRow) -> None:
        if self._writer is None:
            raise RunError(
                f"round {row.server_round} came while no event file was open; expected the run's plan first"
            )
        self._sent["up"] += row.bytes_up
        self._sent["down"] += row.bytes_down
        for tag, value in self._scalars(row):
            self._writer.add_scalar(tag, value, row.server_round)
        self._writer.flush()

    def _scalars(self, row: RoundRow) -> Iterator[tuple[str, float]]:
        for name, tag in TAGS.items():
            value = getattr(row, name)
            if value is not None:
                yield tag, value
        for name, value in row.metrics.items():
            yield f"global/{name}", value
        for way, sent in self._sent.items():
            yield f"megabytes/{way}", sent / 1e6
        if row.server_round in self._left_out:
            yield "clients/left_out", float(self._left_out[row.server_round])
