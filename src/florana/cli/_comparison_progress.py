"""What ``florana compare`` shows on stderr: a bar over all runs, one for each that is going, a line per end."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from florana.experiments.comparison.items import RunKey
from florana.experiments.comparison.progress import (
    ComparisonEvent,
    Planned,
    RoundDone,
    RunFailed,
    RunFinished,
    RunStarted,
)


class ComparisonProgress:
    """A watcher for :func:`florana.experiments.compare.compare`; plain lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            speed_estimate_period=3600,
            disable=not self._console.is_terminal,
        )
        self._all = self._bar.add_task("reading configurations", total=None, told="")
        self._going: dict[RunKey, TaskID] = {}
        self._done = self._total = 0

    def __enter__(self) -> ComparisonProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def watch(self, event: ComparisonEvent) -> None:
        """Show one event."""
        match event:
            case Planned():
                self._plan(event)
            case RunStarted():
                self._going[event.key] = self._bar.add_task(
                    f"  {escape(str(event.key))}",
                    total=event.rounds,
                    completed=event.rounds_done,
                    told=f"round {event.rounds_done} of {event.rounds}",
                )
                self._bar.advance(self._all, event.rounds_done)
            case RoundDone():
                self._bar.advance(self._all)
                self._bar.update(
                    self._going[event.key],
                    completed=event.server_round,
                    told=f"round {event.server_round} of {event.rounds}",
                )
            case RunFinished():
                self._end(event.key, f"{_score(event)}, {event.seconds:.0f} s")
            case RunFailed():
                self._end(event.key, f"[red]failed:[/] {escape(event.message)}")

    def _plan(self, event: Planned) -> None:
        self._done, self._total = event.finished, event.total
        going_on = f", {event.interrupted} interrupted" if event.interrupted else ""
        self._print(
            f"{event.total} runs, {event.finished} of them finished{going_on}; "
            f"{event.jobs} at a time, threads of each: {event.threads}"
        )
        self._bar.update(self._all, description="all runs", total=event.rounds, told=self._so_far())

    def _end(self, key: RunKey, told: str) -> None:
        self._done += 1
        if key in self._going:
            self._bar.remove_task(self._going.pop(key))
        self._bar.update(self._all, told=self._so_far())
        self._print(f"{self._so_far()}  {escape(str(key))}: {told}")

    def _so_far(self) -> str:
        return f"{self._done} of {self._total}"

    def _print(self, text: str) -> None:
        self._bar.console.print(text, soft_wrap=True)


def _score(event: RunFinished) -> str:
    """The final score under its name."""
    told = "–" if event.score is None else event.metric.text(event.score)
    return f"{event.metric.label} {told}"
