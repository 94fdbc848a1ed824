"""``florana run``: a whole federated run, or the rest of one."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florana.errors import ConfigError

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
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with the run in DIR after an interruption."),
    ] = None,
    report: Annotated[
        bool, typer.Option(help="Write report.html and its figures into the run's folder.")
    ] = True,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard scalars into the run's folder.")
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

    if resume is not None and (config, override, method, seed, output, engine) != (None,) * 6:
        raise ConfigError(
            "--resume takes everything from the run's folder; leave out the other arguments"
        )
    given = list(override or [])
    given += [f"method.name={method}"] if method is not None else []
    given += [f"seed={seed}"] if seed is not None else []
    given += [f"federation.engine={engine}"] if engine is not None else []
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress())
        watchers = [progress.watch]
        if tensorboard:
            from florana.report import TensorBoardWatcher

            watchers.append(stack.enter_context(TensorBoardWatcher()).watch)

        def watch(event: Event) -> None:
            for watcher in watchers:
                watcher(event)

        if resume is not None:
            from florana.experiments import runner

            summary, folder = runner.resume(resume, watch), resume
        else:
            from florana.config import load_config

            checked = load_config(config, given)
            if output is not None:
                checked = checked.model_copy(update={"output": str(output)})
            from florana.experiments import runner

            summary = runner.start(checked, watch)
            folder = progress.folder
        if report:
            from florana.report import write_run_report

            progress.note("writing the report")
            write_run_report(folder)
        progress.finished(summary, folder, report)
