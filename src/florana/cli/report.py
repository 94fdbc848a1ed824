"""``florana report``: the page of a run or a comparison that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from florana.garbage import importing


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder that florana run or florana compare has made, finished or not.",
        ),
    ],
) -> None:
    """Write DIR/report.html, which needs no network, and DIR/figures/ with every figure as PNG and SVG.

    florana report runs/docstrings-florana-seed0
    """
    with importing("florana.report"):
        from florana.report import write_report

    typer.echo(f"{write_report(folder)}")
