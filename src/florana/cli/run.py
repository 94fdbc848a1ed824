"""``florana run``: a whole federated run, or the rest of one."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from florana.errors import ConfigError


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
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with the run in DIR after an interruption."),
    ] = None,
) -> None:
    """Fine-tune a foundation model with LoRA over federated clients.

    Without arguments: all-MiniLM-L6-v2 on the docstrings of Python's standard library, ten clients with
    label skew, FLoRA-NA on the server. Works offline and takes a few minutes on two cores.
    """
    # Before transformers is imported: nothing here needs a network unless the config names a hub.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logging.captureWarnings(True)

    from florana.cli._progress import Progress

    if resume is not None:
        if config is not None or override or method or seed is not None or output is not None:
            raise ConfigError(
                "--resume takes everything from the run's folder; leave out the other arguments"
            )
        with Progress() as progress:
            from florana.experiments import runner

            progress.finished(runner.resume(resume, progress.watch), resume)
        return
    given = list(override or [])
    given += [f"method.name={method}"] if method is not None else []
    given += [f"seed={seed}"] if seed is not None else []
    with Progress() as progress:
        from florana.config import load_config

        checked = load_config(config, given)
        if output is not None:
            checked = checked.model_copy(update={"output": str(output)})
        from florana.experiments import runner

        progress.finished(runner.start(checked, progress.watch))
