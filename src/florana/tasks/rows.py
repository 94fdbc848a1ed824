"""Rows of the user's own files, or of the Hugging Face hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from florana.errors import DataError
from florana.tasks import plain_text

Row = Mapping[str, Any]


def read(source: str) -> list[Row]:
    """Read a jsonl, csv or txt file, a folder of them, or a hub data set ``owner/name[:config][@split]``.

    Args:
        source: file, folder or hub name. A path that exists wins over a hub name.

    Raises:
        DataError: naming file and line of what is missing or malformed.
    """
    path = Path(source).expanduser()
    if path.exists():
        rows = [row for file in _files(path) for row in _read(file)]
    else:
        rows = _from_hub(source)
    if not rows:
        raise DataError(f"{source}: no examples")
    return rows


def plain(value: object) -> str:
    """A value of a row as text: itself, or its JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.iterdir())
    # beside tables a text is a licence or a note, and nothing to learn from
    found = [p for p in files if p.suffix in {".jsonl", ".csv"}]
    found = found or [p for p in files if p.suffix == ".txt"]
    if not found:
        raise DataError(f"{path} holds no .jsonl, .csv or .txt file")
    return found


def _read(path: Path) -> Iterable[Row]:
    if path.suffix == ".txt":
        return plain_text.read(path)
    if path.suffix not in {".jsonl", ".csv"}:
        raise DataError(f"{path} is none of .jsonl, .csv and .txt")
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets write a mark
            if path.suffix == ".csv":
                return list(csv.DictReader(lines))
            return _read_jsonl(path, lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 {path.suffix[1:]}: {error}") from error


def _read_jsonl(path: Path, lines: Iterable[str]) -> Iterable[Row]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", error)
            raise DataError(f"{path}, line {number}: not JSON ({why})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _from_hub(source: str) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source!r} is neither a file nor a folder; to read it from the hub install florana[hub]"
        ) from error
    name, _, split = source.partition("@")
    name, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the hub client raises a different class for every cause
        raise DataError(f"cannot load {source!r} from the hub: {error}") from error
    return list(loaded)
