"""What the commands on adapter folders share: lists of numbers, a bar on stderr, text on any stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

import typer

from florana.errors import ConfigError

if TYPE_CHECKING:
    from florana.peft_io import Limits

T = TypeVar("T", int, float)

SECONDS_BETWEEN = 10.0
"""How often progress is told where stderr is no terminal."""

Watch = Callable[[int, int, str], None]


def numbers(option: str, said: str | None, kind: Callable[[str], T]) -> list[T] | None:
    """Numbers with commas between them.

    Raises:
        ConfigError: if a part is none.

    Example:
        >>> numbers("--ranks", "4,8", int), numbers("--weights", None, float)
        ([4, 8], None)
    """
    if said is None:
        return None
    try:
        return [kind(part) for part in said.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{option} is {said!r}; expected numbers with commas between them, such as 4,8,16"
        ) from error


def limits(said: Sequence[str] | None) -> Limits | None:
    """``KEY=NUMBER`` of :class:`florana.peft_io.Limits`, each; None where nothing is said.

    Raises:
        ConfigError: if a key is not known or a number is none.
    """
    if not said:
        return None
    from florana.peft_io import Limits

    known = [field.name for field in fields(Limits)]
    values: dict[str, int] = {}
    for part in said:
        key, _, number = part.partition("=")
        if key not in known or not number.isascii() or not number.isdigit():
            raise ConfigError(
                f"--limit is {part!r}; expected KEY=NUMBER, with KEY one of {', '.join(known)}"
            )
        values[key] = int(number)
    return Limits(**values)


def show(text: str) -> None:
    """Print on stdout; a character that its encoding lacks becomes a question mark, not an error."""
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "replace").decode(encoding))


@contextmanager
def progress(start: str) -> Iterator[Watch]:
    """A bar on stderr that is gone when the work is done; where stderr is no terminal, a line now and then.

    Args:
        start: what is done before the first call: reading headers.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from florana.folders._text import plain

    console = Console(stderr=True)
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    told = time.monotonic()
    with bar:
        task = bar.add_task(start, total=None)

        def watch(done: int, total: int, name: str) -> None:
            nonlocal told
            bar.update(task, completed=done, total=total, description=escape(plain(name)))
            if bar.disable and time.monotonic() > told + SECONDS_BETWEEN:
                told = time.monotonic()
                typer.echo(f"{done} of {total} done, next {plain(name)}", err=True)

        yield watch
