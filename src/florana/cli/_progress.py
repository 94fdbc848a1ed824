"""What ``florana run`` shows: the plan, a live bar, a row per round, and where everything is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from florana.config import RunConfig, sampled_clients
from florana.experiments.events import (
    ClientLeftOut,
    ClientReplied,
    ClientStarted,
    ClientTested,
    Event,
    Note,
    Prepared,
    RoundRow,
    Summary,
)

HEADER = """\
        held-out text                  aggregation error        megabytes
round  global   loss  clients    gap    used  average  optimum      up   down"""
LEGEND = """\
global, loss: the global model on text that no client saw
clients: mean accuracy of their own models on their own held-out text, before
         aggregation; gap: clients minus global
error:   distance to the ideal update, relative to its size: of what was used,
         of plain averaging, and of the best pair of this rank"""


class Progress:
    """A watcher for :mod:`florana.experiments.runner` that writes to a terminal or a plain log."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            speed_estimate_period=120,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("loading data and model", total=None, left="")
        self.folder = Path()
        self._per_round = 0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def watch(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Prepared():
                self._show_plan(event)
            case ClientStarted():
                self._advance(f"round {event.server_round}, client {event.client}")
            case ClientTested():
                self._advance(f"testing client {event.client}'s own model")
            case ClientLeftOut():
                self._print(
                    f"[yellow]round {event.server_round}: {escape(event.client)} left out: {escape(event.reason)}"
                )
            case ClientReplied():
                self._show_reply(event)
            case Note():
                self._print(f"[dim]{escape(event.text)}")
            case RoundRow():
                self._show_round(event)
            case Summary():
                pass

    def note(self, description: str) -> None:
        """Say what takes a moment after the last round."""
        self._bar.update(self._task, description=description, left="")

    def finished(self, summary: Summary, folder: Path, report: bool) -> None:
        """Say how the run ended, where everything is, and how to load the adapter."""
        self._bar.stop()
        lead = summary.accuracy - summary.best_client_accuracy
        self._print()
        self._print(
            f"[bold]Global model: accuracy {summary.accuracy:.3f}[/], loss {summary.loss:.3f}"
        )
        self._print(
            f"Best single client's own model: {summary.best_client_accuracy:.3f} ({summary.best_client}); "
            f"global is {100 * lead:+.1f} points"
        )
        self._print(f"Best round: {summary.best_round}, accuracy {summary.best_accuracy:.3f}")
        self._print()
        self._print(f"Everything is in {folder}")
        if report:
            self._print("  report.html       the run on one page; its figures are in figures/")
        self._print("  final/ best/      adapters, as PEFT folders")
        self._print("  metrics.jsonl     one line per round and client")
        self._print("  provenance.json   config, seed, versions, data fingerprint")
        self._print("Load the global model, a PeftModel, with")
        self._print(f"  florana.load_model({str(folder)!r})")
        if summary.seconds:
            self._print(f"[dim]{summary.rounds} rounds, {summary.seconds:.0f} s")

    def _show_plan(self, event: Prepared) -> None:
        provenance, config = event.provenance, RunConfig.model_validate(event.provenance["config"])
        self.folder, self._per_round = event.folder, sampled_clients(config.federation)
        self._console.print(_plan(provenance, config, event))
        self._print()
        self._print(LEGEND)
        self._print()
        self._print(f"[bold]{HEADER}")
        self._bar.update(
            self._task,
            description="evaluating the start",
            total=self._per_round * (config.federation.rounds + 1),  # the last tests every client
            completed=self._per_round * event.rounds_done,
        )

    def _advance(self, description: str) -> None:
        left = self._bar.tasks[self._task].time_remaining
        self._bar.update(
            self._task,
            advance=1,
            description=description,
            left=f"about {left:.0f} s left" if left is not None else "",
        )

    def _show_reply(self, event: ClientReplied) -> None:
        said = "failed" if event.failed else "replied"
        text = f"round {event.server_round}: {event.client} {said} after {event.seconds:.1f} s"
        if not self._console.is_terminal:
            self._print(escape(text))
        self._advance(text)

    def _show_round(self, row: RoundRow) -> None:
        self._print(
            f"{row.server_round:>5}  {row.accuracy:>6.3f} {row.loss:>6.3f}  {_number(row.client_accuracy, 7)}"
            f" {_number(row.gap, 6)}  {_number(row.error_used, 6)}  {_number(row.error_average, 7)}"
            f"  {_number(row.error_optimum, 7)}  {row.bytes_up / 1e6:>6.2f} {row.bytes_down / 1e6:>6.2f}"
        )
        self._bar.update(self._task, description="between rounds")

    def _print(self, text: str = "") -> None:
        self._bar.console.print(text, soft_wrap=True)


def _number(value: float | None, width: int) -> str:
    return f"{value:>{width}.3f}" if value is not None else f"{'–':>{width}}"


def _plan(provenance: Mapping[str, Any], config: RunConfig, event: Prepared) -> Table:
    """What is about to be done, as two columns."""
    federation, training, data = config.federation, config.training, provenance["data"]
    sizes = [sum(counts) for counts in provenance["partition"]]
    skew = f" {federation.dirichlet_alpha:g}" if federation.partition == "dirichlet" else ""
    length = f"{training.steps} steps" if training.steps else f"{training.epochs} epochs"
    options = "".join(f", {key} = {value}" for key, value in config.method.options.items())
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    rows = {
        "model": f"{provenance['base_model']['name']} (SHA-256 {provenance['base_model']['sha256'][:12]}…, checked)",
        "data": f"{data['name']}: {data['examples']} to train, {data['test_examples']} to test, "
        f"{len(provenance['labels'])} labels",
        "clients": f"{federation.clients}, {_who_takes_part(federation.participation)}, "
        + (
            f"{federation.partition}{skew}, {min(sizes)} to {max(sizes)} examples each"
            if sizes
            else "each with data of its own"
        ),
        "LoRA": f"rank {config.lora.rank}, alpha {config.lora.alpha:g} on {', '.join(config.lora.target_modules)}",
        "training": f"{federation.rounds} rounds of {length} of {training.batch_size * training.accumulation}, "
        f"learning rate {training.learning_rate:g}",
        "server": f"{config.method.name}{options}",
        "run": f"{event.folder}, seed {config.seed}, {provenance['machine']['device']}, "
        f"{provenance['machine']['threads']} threads"
        + (f", going on after round {event.rounds_done}" if event.rounds_done else ""),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _who_takes_part(participation: float) -> str:
    """Who takes part in a round, in words."""
    return "all in every round" if participation == 1 else f"{participation:.0%} of them in a round"
