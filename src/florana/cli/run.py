"""``florana run``: a whole federated run, or the rest of one."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florana.errors import ConfigError
from florana.garbage import importing

if TYPE_CHECKING:
    from florana.experiments.events import Event


def run(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file; without one the defaults are run.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a key, e.g. federation.rounds=3."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Aggregation method; see florana methods.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default a free one under runs/.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where the clients are: local, in this process, or simulation, Flower's, in parallel.",
        ),
    ] = None,
    clients_at_once: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Clients of engine local that are trained in one pass of the base; auto measures how many pay.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with the run in DIR after an interruption."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check data, partition, tokens and modules, show them, and train nothing.",
        ),
    ] = False,
    report: Annotated[
        bool, typer.Option(help="Write report.html and its figures into the run's folder.")
    ] = True,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard scalars into the run's folder.")
    ] = False,
    prometheus: Annotated[
        bool,
        typer.Option(
            "--prometheus",
            help="Keep metrics.prom, for Prometheus, up to date in the run's folder.",
        ),
    ] = False,
) -> None:
    """Fine-tune a foundation model with LoRA over federated clients.

    Without arguments: all-MiniLM-L6-v2 on the docstrings of Python's standard library, ten clients with
    label skew. Works offline and takes a few minutes on two cores.
    """
    # Before transformers is imported: nothing here needs a network unless the config names a hub.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logging.captureWarnings(True)

    from florana.cli._progress import Progress

    if (
        resume is not None
        and (
            config,
            override,
            method,
            seed,
            output,
            engine,
            clients_at_once,
        )
        != (None,) * 7
    ):
        raise ConfigError(
            "--resume takes everything from the run's folder; leave out the other arguments"
        )
    given = list(override or [])
    given += [f"method.name={method}"] if method is not None else []
    given += [f"seed={seed}"] if seed is not None else []
    given += [f"federation.engine={engine}"] if engine is not None else []
    at_once = clients_at_once
    given += [f"federation.clients_at_once={at_once}"] if at_once is not None else []
    if dry_run:
        _rehearse(config, given, output, resume)
        return
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress())
        watchers = [progress.watch]
        if tensorboard:
            from florana.report import TensorBoardWatcher

            watchers.append(stack.enter_context(TensorBoardWatcher()).watch)
        if prometheus:
            from florana.report.prometheus import PrometheusWatcher

            watchers.append(PrometheusWatcher().watch)

        def watch(event: Event) -> None:
            for watcher in watchers:
                watcher(event)

        if resume is not None:
            with importing("florana.experiments.runner"):
                from florana.experiments import runner

            summary, folder = runner.resume(resume, watch), resume
        else:
            from florana.config import load_config

            checked = load_config(config, given)
            if output is not None:
                checked = checked.model_copy(update={"output": str(output)})
            if checked.data.source == "docstrings":
                from florana.tasks.ahead import read_ahead
                from florana.training import load_libraries

                read_ahead()
                load_libraries()  # takes about as long as that reading
            with importing("florana.experiments.runner"):
                from florana.experiments import runner

            summary = runner.start(checked, watch)
            folder = progress.folder
        if report:
            from florana.report import write_run_report

            progress.note("writing the report")
            write_run_report(folder)
        progress.finished(summary, folder, report)


def _rehearse(
    config: Path | None, given: list[str], output: Path | None, resume: Path | None
) -> None:
    """Check a new run without training, and show what it would be made of."""
    if resume is not None:
        raise ConfigError("--dry-run is of new runs; leave out --resume")

    from rich.console import Console

    from florana.cli._rehearsal_text import show_rehearsal
    from florana.config import load_config
    from florana.experiments.rehearsal import rehearse

    checked = load_config(config, given)
    if output is not None:
        checked = checked.model_copy(update={"output": str(output)})
    show_rehearsal(rehearse(checked), Console(highlight=False))
