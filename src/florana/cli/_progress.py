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

from florana.cli._partition_text import partition_of, partition_table
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
from florana.tasks.metrics import METRICS, Metric
from florana.tasks.partition import in_words

HEADER = """\
        held-out text                  aggregation error        megabytes
round  global   loss  clients    gap    used  average  optimum      up   down"""
LEGEND = """\
global, loss: {metric} and loss of the global model on text that no client saw
clients: mean {metric} of their own models on their own held-out text, before
         aggregation; gap: how much better they are than global
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
        self._metric = METRICS["accuracy"]  # until the run says which

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
        metric = self._metric
        others = "".join(
            f", {METRICS[name].label} {METRICS[name].text(value)}"
            if name in METRICS
            else f", {name} {value:.3f}"
            for name, value in summary.metrics.items()
        )
        self._print()
        self._print(
            f"[bold]Global model: {metric.label} {metric.text(summary.score)}[/]{others}, loss {summary.loss:.3f}"
        )
        lead = metric.lead(summary.score, summary.best_client_score)
        self._print(
            f"Best single client's own model: {metric.text(summary.best_client_score)} ({summary.best_client}); "
            f"global is {metric.lead_text(lead)} {'better' if lead >= 0 else 'worse'}"
        )
        self._print(
            f"Best round: {summary.best_round}, {metric.label} {metric.text(summary.best_score)}"
        )
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
        self._metric = Metric(**provenance["metric"])
        self.folder, self._per_round = event.folder, sampled_clients(config.federation)
        self._console.print(_plan(provenance, config, event))
        self._print()
        partition = partition_of(provenance)
        if partition is not None:
            self._console.print(partition_table(partition))
            self._print()
        self._print(LEGEND.format(metric=self._metric.label))
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
            f"{row.server_round:>5}  {_number(row.score, 6)} {_number(row.loss, 6)}  {_number(row.client_score, 7)}"
            f" {_number(row.gap, 6)}  {_number(row.error_used, 6)}  {_number(row.error_average, 7)}"
            f"  {_number(row.error_optimum, 7)}  {row.bytes_up / 1e6:>6.2f} {row.bytes_down / 1e6:>6.2f}"
        )
        self._bar.update(self._task, description="between rounds")

    def _print(self, text: str = "") -> None:
        self._bar.console.print(text, soft_wrap=True)


def _number(value: float | None, width: int) -> str:
    if value is None:
        return f"{'–':>{width}}"
    digits = 3 if abs(value) < 100 else 1 if abs(value) < 10_000 else 0  # perplexities can be large
    return f"{value:>{width}.{digits}f}"


def _plan(provenance: Mapping[str, Any], config: RunConfig, event: Prepared) -> Table:
    """What is about to be done, as two columns."""
    federation, training, data = config.federation, config.training, provenance["data"]
    sizes = [sum(counts) for counts in provenance["partition"]]
    length = f"{training.steps} steps" if training.steps else f"{training.epochs} epochs"
    options = "".join(f", {key} = {value}" for key, value in config.method.options.items())
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    rows = {
        "model": f"{provenance['base_model']['name']} (SHA-256 {provenance['base_model']['sha256'][:12]}…, checked)",
        "data": f"{data['name']}: {_how_many(data)}{_asked(provenance, config)}",
        "clients": f"{federation.clients}, {_who_takes_part(federation.participation)}, "
        + (
            f"{in_words(federation.model_dump())}, {min(sizes)} to {max(sizes)} examples each"
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


def _how_many(data: Mapping[str, Any]) -> str:
    """Examples to train and to test, as far as this process has any."""
    counts = {"to train": data["examples"], "to test": data["test_examples"]}
    return "".join(f"{count} {what}, " for what, count in counts.items() if count)


def _asked(provenance: Mapping[str, Any], config: RunConfig) -> str:
    """What is asked of a text, and how it is judged."""
    kinds = {
        "classification": f"{len(provenance['labels'])} labels",
        "regression": "a value each",
        "causal": "responses to prompts",
    }
    return f"{kinds[config.data.family]}, judged by {Metric(**provenance['metric']).label}"


def _who_takes_part(participation: float) -> str:
    """Who takes part in a round, in words."""
    return "all in every round" if participation == 1 else f"{participation:.0%} of them in a round"
