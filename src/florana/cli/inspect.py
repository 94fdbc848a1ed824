"""``florana inspect``: what adapters have in common, and what one adapter in their place would lose."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from florana.errors import ConfigError
from florana.garbage import importing


def inspect(
    adapters: Annotated[
        list[Path], typer.Argument(help="PEFT adapter folders, one per client.", show_default=False)
    ],
    ranks: Annotated[
        str | None,
        typer.Option(help="Ranks of the result, such as 4,8,16; by default to past the clients'."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="One per adapter, numbers of examples or shares; equal by default."),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, such as fedit,florana-opt, or all.")
    ] = "all",
    base: Annotated[
        Path | None, typer.Option(help="Folder of the base model; needed for DoRA and HiRA.")
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(help="The base model's name, where adapters call one model by several."),
    ] = None,
    missing: Annotated[
        str, typer.Option(help="A module that an adapter lacks: refuse, zero or mean.")
    ] = "refuse",
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=NUMBER",
            help="How large an adapter's files may be, such as file_bytes=20000000000 or tensors=500.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this .png or .svg file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, modules included.")] = False,
) -> None:
    """Tell what adapters have in common, who is unlike the others, and what each method would lose at each rank.

    Nothing is trained and nothing but the plot is written. The result is on stdout, progress on stderr.
    """
    with importing("florana.folders.inspect"):
        from florana.cli._folders import limits, numbers, progress, show
        from florana.cli._inspect_text import text
        from florana.folders.inspect import inspect_folders
        from florana.folders.missing import CHOICES

    choice = next((known for known in CHOICES if known == missing), None)
    if choice is None:
        raise ConfigError(f"--missing is {missing!r}; expected one of {', '.join(CHOICES)}")
    if plot is not None:
        _check_plot(plot)
    with progress("reading headers") as watch:
        found = inspect_folders(
            adapters,
            numbers("--ranks", ranks, int),
            weights=numbers("--weights", weights, float),
            methods=None if methods == "all" else [m.strip() for m in methods.split(",")],
            base=base,
            missing=choice,
            base_name=base_name,
            limits=limits(limit),
            progress=watch,
        )
    show(
        json.dumps(found.as_dict(), indent=2, allow_nan=False)
        if as_json
        else text(found, _has_blocks())
    )
    if plot is not None:
        from florana.folders.inspect_plot import save_plot

        save_plot(found, plot)
        typer.echo(f"plot: {plot}", err=True)


def _check_plot(path: Path) -> None:
    """Before the work, not after it."""
    if path.suffix.lower() not in {".png", ".svg"}:
        raise ConfigError(f"--plot is {str(path)!r}; expected a file that ends in .png or .svg")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot is {str(path)!r}, and there is no such folder; make it first")


def _has_blocks() -> bool:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return sys.stdout.isatty() and encoding == "utf8"
