"""``florana eval``: a finished model, measured by lm-evaluation-harness."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florana.errors import ConfigError
from florana.garbage import importing

if TYPE_CHECKING:
    from florana.harness import Score

ADAPTERS = ("final", "best")
LEFT = (0, 1, 4)
"""Columns of words; the others are numbers."""
WIDE = 200
"""Columns of a table that goes into a file."""


def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or a PEFT adapter.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,...", help="The harness's tasks or groups.", show_default=False
        ),
    ],
    adapter: Annotated[
        str, typer.Option(help="Which of a run's adapters: final or best.")
    ] = "final",
    base: Annotated[bool, typer.Option("--base", help="Measure the base model too.")] = False,
    include_path: Annotated[
        list[Path] | None, typer.Option(help="Folder with task files of your own (YAML).")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            min=0, help="Worked examples in each prompt; by default the task's.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most examples of each task, to try things out.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    chat: Annotated[
        bool, typer.Option("--chat", help="Write prompts with the tokenizer's chat template.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Base model of a PEFT adapter, a name or a folder; by default the one it names."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, parts of groups included.")
    ] = False,
) -> None:
    """Measure a finished model by lm-evaluation-harness, on its tasks or your own.

    The numbers are added to RUN/evaluation.json, which florana report shows. Needs pip install 'florana[eval]'.

    florana eval runs/gsm8k-florana-seed0 --tasks gsm8k,mmlu --base
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # bars are for people
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.captureWarnings(True)
    if adapter not in ADAPTERS:
        raise ConfigError(f"--adapter is {adapter!r}; expected one of {', '.join(ADAPTERS)}")
    with importing("florana.harness"):
        from florana.harness import Request, evaluate

    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    request = Request(names, tuple(include_path or ()), num_fewshot, limit, batch_size, chat)
    scores = evaluate(folder, request, adapter=adapter, with_base=base, base_model=base_model)
    if as_json:
        typer.echo(json.dumps([asdict(score) for score in scores], indent=2))
    else:
        _show(scores, folder)


def _show(scores: list[Score], folder: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from florana.harness import HEADER, lines

    table = Table(box=None, pad_edge=False)
    for position, name in enumerate(HEADER):
        table.add_column(name, justify="left" if position in LEFT else "right", no_wrap=True)
    for line in lines(scores):
        *cells, difference = map(escape, line.cells())
        style = {True: "green", False: "red", None: "default"}[line.better]
        table.add_row(*cells, f"[{style}]{difference}[/]")
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    console.print(table)
    if any(score.limit for score in scores):
        console.print("\nWith --limit only the first examples were asked: a trial, no result.")
    console.print(f"\nAdded to {escape(str(folder / 'evaluation.json'))}", soft_wrap=True)
