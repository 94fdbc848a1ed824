"""Labelled text from the user's own files or from the Hugging Face hub."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florana.errors import DataError
from florana.tasks.dataset import TextDataset

Row = Mapping[str, Any]


def load(
    source: str,
    *,
    text: str,
    label: str,
    text_pair: str | None = None,
    group: str | None = None,
    label_names: Sequence[str] | None = None,
) -> TextDataset:
    """Read a jsonl or csv file, a folder of them, or a hub data set ``owner/name[:config][@split]``.

    Args:
        source: file, folder or hub name. A path that exists wins over a hub name.
        text: column of the text.
        label: column of the label, of any JSON type; classes are sorted.
        text_pair: column of the second sentence, if any.
        group: column to partition clients by, if any.
        label_names: classes to use, such as those of the training data; by default those found.

    Raises:
        DataError: naming file, line and column of what is missing or malformed.
    """
    path = Path(source).expanduser()
    if path.exists():
        rows = [row for file in _files(path) for row in _read(file)]
    else:
        rows = _from_hub(source)
    columns = [c for c in (text, label, text_pair, group) if c is not None]
    _check_columns(rows, columns, source)
    values = [_plain(row[label]) for row in rows]
    names = list(label_names) if label_names is not None else sorted(set(values), key=_label_order)
    unseen = sorted(set(values) - set(names))
    if unseen:
        raise DataError(f"{source}: labels {unseen[:5]} do not occur in the training data")
    index = {name: i for i, name in enumerate(names)}
    return TextDataset(
        source,
        [str(row[text]) for row in rows],
        np.array([index[value] for value in values], dtype=np.int64),
        names,
        [str(row[text_pair]) for row in rows] if text_pair else None,
        [_plain(row[group]) for row in rows] if group else None,
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in {".jsonl", ".csv"})
    if not found:
        raise DataError(f"{path} holds no .jsonl or .csv file")
    return found


def _read(path: Path) -> Iterable[Row]:
    if path.suffix not in {".jsonl", ".csv"}:
        raise DataError(f"{path} is neither .jsonl nor .csv")
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


def _check_columns(rows: Sequence[Row], columns: Sequence[str], source: str) -> None:
    if not rows:
        raise DataError(f"{source}: no examples")
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if column not in row:
                raise DataError(
                    f"{source}, example {number}: no column {column!r}; it has {', '.join(map(str, row))}"
                )
            if row[column] is None:
                raise DataError(f"{source}, example {number}: column {column!r} holds no value")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _label_order(name: str) -> tuple[int, float, str]:
    """Numbers by value, then words by letter."""
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    return (0, number, name) if math.isfinite(number) else (1, 0.0, name)
