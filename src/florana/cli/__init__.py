"""The command line: one subcommand, one file; nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer

from florana import __version__
from florana.cli import aggregate, compare, config, inspect, methods, report, run
from florana.cli import app as flower_app
from florana.cli import eval as evaluation
from florana.errors import FloranaError
from florana.garbage import process_is_ours

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="florana",
    help="Federated fine-tuning of foundation models with LoRA, aggregated nearly exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run.run)
app.command()(compare.compare)
app.command(name="app")(flower_app.write_app)
app.command()(report.report)
app.command(name="eval")(evaluation.evaluate)
app.command()(aggregate.aggregate)
app.command()(inspect.inspect)
app.command()(methods.methods)
app.command()(config.config)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"florana {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version_flag: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: an error that florana raises on purpose is one message and exit code 2."""
    process_is_ours()
    _guard(app)


def _guard(command: Callable[[], Any]) -> None:
    try:
        command()
    except FloranaError as error:
        typer.echo(f"florana: {error}", err=True)
        sys.exit(2)
    except SystemExit as ending:
        if ending.code == INTERRUPTED:  # typer makes it of a KeyboardInterrupt
            typer.echo(
                "florana: interrupted; go on with: florana run --resume DIR, or the same command again",
                err=True,
            )
            _leave(INTERRUPTED)
        raise


def _leave(code: int) -> None:
    """Leave now if threads would keep the process: Ray's wait for clients that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    others = (t for t in threading.enumerate() if t is not threading.current_thread())
    if any(not thread.daemon for thread in others):
        os._exit(code)
