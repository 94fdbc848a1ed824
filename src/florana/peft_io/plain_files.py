"""Plain files and the JSON in them, opened and parsed with suspicion."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mode
from typing import Any, BinaryIO

from florana.errors import AdapterError
from florana.peft_io.limits import Limits
from florana.peft_io.settings import short


def open_plain(file: Path, limit: int) -> tuple[BinaryIO, os.stat_result]:
    """Open a plain file for reading, without a buffer: no link to one, and no pipe, which would block.

    Args:
        file: its path. Folders on the way may be links; the file may not.
        limit: its largest size in bytes.

    Returns:
        The open file, and its status when it was opened.

    Raises:
        AdapterError: if it is missing, of another kind, or too large.
    """
    with _system_errors():
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                raise AdapterError(
                    f"is no plain file or too large ({status.st_size:,} bytes); expected a plain file of at most {limit:,} bytes"
                )
            return os.fdopen(descriptor, "rb", buffering=0), status
        except BaseException:
            os.close(descriptor)
            raise


def read_at(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill a buffer with a file's bytes from an offset on.

    By ``pread`` and not by a memory map: pages of a map count as this process's memory, and a file that is cut short
    under a map kills the process (SIGBUS), where ``pread`` tells.

    Raises:
        AdapterError: if the file ends before, since it was cut short meanwhile, or cannot be read.
    """
    with _system_errors():
        while buffer:
            count = os.preadv(descriptor, [buffer], offset)  # at most 2 GiB at once
            if count == 0:
                raise AdapterError(
                    f"ended at byte {offset:,}; expected {len(buffer):,} more; something cut it short, save it again"
                )
            buffer, offset = buffer[count:], offset + count


def read_json(file: Path, limits: Limits, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a plain file.

    Numbers may be NaN or infinite, as Python writes them; which values are of use, the allow-list says.

    Raises:
        AdapterError: if it is too large or too deep, has a name twice, or is no JSON object.
    """
    stream, status = open_plain(file, max_bytes)
    with stream:
        text = bytearray(status.st_size)
        read_at(stream.fileno(), memoryview(text), 0)
    try:
        value = json.loads(text.decode(), object_pairs_hook=_without_duplicates, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"is not valid: {error}; expected JSON; save it again") from error
    if not isinstance(value, dict):
        raise AdapterError(f"holds {short(value)}; expected a JSON object; save it again")
    if not _is_within(value, limits.depth):
        raise AdapterError(
            f"has objects and lists more than {limits.depth} deep; expected plain settings in JSON; save it again"
        )
    return value


def _is_within(value: dict[str, Any], depth: int) -> bool:
    level: list[Any] = [value]
    for _ in range(depth):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for vs in inner for v in vs if isinstance(v, dict | list)]
        if not level:
            return True
    return False


def _integer(text: str) -> int:
    # no setting is larger, and a number beyond float64 raises OverflowError wherever it meets one
    if len(text) > 20:
        raise ValueError(f"it has a whole number of {len(text):,} characters")
    return int(text)


def _without_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        name = mode(name for name, _ in items)
        raise AdapterError(f"{short(name)} comes twice; expected it once; save it again")
    return found


@contextmanager
def _system_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        came = "is a symbolic link" if is_link else f"cannot be read ({error.strerror})"
        raise AdapterError(f"{came}; expected a plain file; save the adapter again") from error
