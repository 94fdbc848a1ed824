"""``florana compare``: methods side by side on the same tasks, seeds, data and start."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florana.errors import ConfigError
from florana.garbage import importing

if TYPE_CHECKING:
    from florana.experiments.comparison.value import Comparison

QUICKSTART = "quickstart"
"""Label of the task when no CONFIG is given."""

METHODS = "fedit,florana,florana-opt,ideal"
SEEDS = "0,1,2"


def compare(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CONFIG]...",
            help="TOML files of florana run, one task each; without one the quickstart's task.",
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="M,M,...",
            help="Methods, each NAME or NAME:key=value[:key=value...]; see florana methods. A key without "
            f"a dot is an option of the method, one with a dot a key of the configuration. Default: {METHODS}",
            show_default=False,
        ),
    ] = METHODS,
    seeds: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            help=f"Seeds of everything random. Default: {SEEDS}",
            show_default=False,
        ),
    ] = SEEDS,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="M",
            help="Method that the others are compared with. Default: fedit, which is plain averaging",
            show_default=False,
        ),
    ] = "fedit",
    reach: Annotated[
        float | None,
        typer.Option(
            help="Score whose cost in megabytes is told; by default 95 % of the baseline's final one."
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key in all runs."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at a time; by default one per core, or one on an accelerator."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(help="Folder of the comparison. Default: runs/compare", show_default=False),
    ] = Path("runs/compare"),
    report: Annotated[
        bool, typer.Option(help="Write report.html and its figures into the folder.")
    ] = True,
) -> None:
    """Compare methods: the same partition, first adapter and batches for all, seed by seed.

    Runs every task with every method and seed, and prints one table. What is finished is not done again and what
    was interrupted goes on, so the same command can be given again at any time.

    florana compare sst2.toml --methods fedit,florana --seeds 0,1,2
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

    from florana.cli._comparison_progress import ComparisonProgress

    with ComparisonProgress() as progress:
        with importing("florana.experiments.compare"):
            from florana.experiments.compare import compare as do_compare
            from florana.experiments.comparison.items import split_items

        comparison = do_compare(
            _by_stem(configs) if configs else {QUICKSTART: ()},
            split_items(methods),
            _whole_numbers(seeds),
            output,
            jobs=jobs,
            watch=progress.watch,
            overrides=override or (),
            baseline=baseline,
            reach=reach,
            command=shlex.join(["florana", *sys.argv[1:]]),
        )
    if report:
        from florana.report import write_comparison_report

        write_comparison_report(comparison.folder)
    _print(comparison, report)


def _print(comparison: Comparison, report: bool) -> None:
    """The table on stdout; on stderr where it is and what failed, which makes the exit code 1."""
    from florana.experiments.comparison.render import to_markdown

    typer.echo(to_markdown(comparison), nl=False)
    names = f"{'report.html, ' if report else ''}comparison.md, .csv, .json and runs.jsonl"
    typer.echo(f"{names} are in {comparison.folder}", err=True)
    for failure in comparison.failures:
        typer.echo(f"failed: {failure.key}: {failure.message}", err=True)
    if comparison.failures:
        typer.echo("florana: the same command again tries what failed once more", err=True)
        raise typer.Exit(1)


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    """A task for every file, named after it."""
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise ConfigError(
                f"{named[path.stem]} and {path} would both be task {path.stem!r}; rename one file"
            )
        named[path.stem] = path
    return named


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--seeds {text!r}: expected whole numbers with commas between, such as 0,1,2"
        ) from error
