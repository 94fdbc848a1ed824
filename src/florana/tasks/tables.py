"""Examples from rows: which column is the text, the label, the prompt, and what is wrong with a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from florana.errors import DataError
from florana.tasks.dataset import TextDataset
from florana.tasks.rows import Row, plain, read
from florana.tasks.templates import filled, template_columns

BINS = 5
"""Quantile bins of a regression's values, which partitions go by as by labels."""

Columns = str | Sequence[str]


def load(
    source: str,
    *,
    text: Columns,
    label: Columns,
    text_pair: Columns | None = None,
    group: str | None = None,
    label_names: Sequence[str] | None = None,
) -> TextDataset:
    """Labelled texts from a jsonl or csv file, a folder of them, or a hub data set ``owner/name[:config][@split]``.

    Args:
        source: file, folder or hub name. A path that exists wins over a hub name.
        text: column of the text; of several names the first that is there.
        label: column of the label, of any JSON type; classes are sorted.
        text_pair: column of the second sentence, if any.
        group: column to partition clients by, if any.
        label_names: classes to use, such as those of the training data; by default those found. Data whose labels are
            all numbers from 0, none of them a name of a class, mean classes by their place.

    Raises:
        DataError: naming file, line and column of what is missing or malformed.
    """
    table = _Table.of(source, text, text_pair, label, group)
    said = table.column(table.label)
    names = list(label_names) if label_names is not None else sorted(set(said), key=_label_order)
    return TextDataset(
        source,
        table.column(table.text),
        _indices(said, names, source),
        names,
        table.column(table.text_pair) if table.text_pair else None,
        table.column(group) if group else None,
    )


def load_values(
    source: str,
    *,
    text: Columns,
    label: Columns,
    text_pair: Columns | None = None,
    group: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> TextDataset:
    """Texts with a number each, for a regression.

    Their ``labels``, which partitions go by, are bins of equal counts (quantiles) of the values.

    Args:
        source: file, folder or hub name, as in :func:`load`.
        text: column of the text; of several names the first that is there.
        label: column of the value, a number or its text.
        text_pair: column of the second sentence, if any.
        group: column to partition clients by, if any.
        value_range: least and greatest value that may occur, if that is known.

    Raises:
        DataError: naming file, line and column of what is missing, malformed or out of range.
    """
    table = _Table.of(source, text, text_pair, label, group)
    values = np.array(
        [_number(v, value_range, n, table) for n, v in enumerate(table.column(table.label), 1)]
    )
    labels, names = quantile_bins(values)
    return TextDataset(
        source,
        table.column(table.text),
        labels,
        names,
        table.column(table.text_pair) if table.text_pair else None,
        table.column(group) if group else None,
        values=values,
    )


def load_responses(
    source: str,
    *,
    prompt: str | Callable[[Row], str],
    response: str,
    reference: str | Callable[[Row], str] | None = None,
    group: str | None = None,
) -> TextDataset:
    """Prompts with the responses that a causal model is to write.

    Its ``labels``, which partitions go by, are the values of the column ``group``, or all 0.

    Args:
        source: file, folder or hub name, as in :func:`load`.
        prompt: a template over columns, such as ``"Question: {question}"``, or a function of a row; empty for plain text.
        response: likewise.
        reference: likewise, or a function of a row: what the scorer of generated answers needs.
        group: column to partition clients by, if any.

    Raises:
        DataError: naming file, example and column of what is missing or empty.
    """
    templates = [t for t in (prompt, response, reference) if isinstance(t, str)]
    needed = [name for template in templates for name in template_columns(template)]
    rows = read(source)
    _check_columns(rows, [*dict.fromkeys(needed), *([group] if group else [])], source)
    groups = [plain(row[group]) for row in rows] if group else None
    names = sorted(set(groups)) if groups else ["all"]
    index = {name: i for i, name in enumerate(names)}
    said = [filled(response, row) for row in rows]
    for number, text in enumerate(said, start=1):
        if not text.strip():
            raise DataError(f"{source}, example {number}: the response is empty")
    references = None
    if reference is not None:
        references = [_made(reference, row, n, source) for n, row in enumerate(rows, 1)]
    labels = [index[g] for g in groups] if groups else [0] * len(rows)
    return TextDataset(
        source,
        [_made(prompt, row, n, source) for n, row in enumerate(rows, 1)],
        np.array(labels, dtype=np.int64),
        names,
        groups=groups,
        responses=said,
        references=references,
    )


def quantile_bins(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], list[str]]:
    """Bins of about equal counts, at most five, fewer where values are tied; and what to call them.

    Args:
        values: n numbers.

    Example:
        >>> quantile_bins(np.array([0.0, 1.0, 2.0, 3.0, 4.0]))[1]
        ['0 to 0.8', '0.8 to 1.6', '1.6 to 2.4', '2.4 to 3.2', '3.2 to 4']
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)))
    labels = np.searchsorted(edges[1:-1], values, side="right").astype(np.int64)
    names = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    return labels, names or [f"{edges[0]:.4g}"]


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows whose columns are all there, and what these are called."""

    source: str
    rows: Sequence[Row]
    text: str
    text_pair: str | None
    label: str

    @classmethod
    def of(
        cls,
        source: str,
        text: Columns,
        text_pair: Columns | None,
        label: Columns,
        group: str | None,
    ) -> _Table:
        rows = read(source)
        first = rows[0]
        pair = None if text_pair is None else _the_first(text_pair, first, source)
        table = cls(
            source, rows, _the_first(text, first, source), pair, _the_first(label, first, source)
        )
        wanted = (table.text, table.label, pair, group)
        _check_columns(rows, [c for c in wanted if c is not None], source)
        return table

    def column(self, name: str) -> list[str]:
        """A column as texts."""
        return [plain(row[name]) for row in self.rows]


def _the_first(columns: Columns, row: Row, source: str) -> str:
    """Of several names of a column the one that the data have."""
    names = [columns] if isinstance(columns, str) else list(columns)
    found = [name for name in names if name in row]
    if not found:
        wanted = " or ".join(map(repr, names))
        raise DataError(
            f"{source}, example 1: no column {wanted}; it has {', '.join(map(str, row))}"
        )
    return found[0]


def _check_columns(rows: Sequence[Row], columns: Sequence[str], source: str) -> None:
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if column not in row:
                raise DataError(
                    f"{source}, example {number}: no column {column!r}; it has {', '.join(map(str, row))}"
                )
            if row[column] is None:
                raise DataError(f"{source}, example {number}: column {column!r} holds no value")


def _indices(said: Sequence[str], names: Sequence[str], source: str) -> NDArray[np.int64]:
    """Class of every label: by its name, or by its place where the data number their classes."""
    index = {name: i for i, name in enumerate(names)}
    found = set(said)
    if not found & index.keys() and found <= {str(i) for i in range(len(names))}:
        index = {str(i): i for i in range(len(names))}
    unseen = sorted(found - index.keys())
    if unseen:
        known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise DataError(
            f"{source}: labels {unseen[:5]} do not occur in the training data; known: {known}"
        )
    return np.array([index[value] for value in said], dtype=np.int64)


def _number(
    text: str, value_range: tuple[float, float] | None, number: int, table: _Table
) -> float:
    where = f"{table.source}, example {number}: column {table.label!r}"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where} holds {text!r}, expected a number")
    if value_range is not None and not value_range[0] <= value <= value_range[1]:
        low, high = value_range
        raise DataError(f"{where} holds {value:g}, data.value_range is {low:g} to {high:g}")
    return value


def _made(of: str | Callable[[Row], str], row: Row, number: int, source: str) -> str:
    """What a template or a function of a task's makes of a row."""
    if isinstance(of, str):
        return filled(of, row)
    try:
        return of(row)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{source}, example {number}: the task cannot read this row ({error!r}); it has "
            f"{', '.join(map(str, row))}"
        ) from error


def _label_order(name: str) -> tuple[int, float, str]:
    """Numbers by value, then words by letter."""
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    return (0, number, name) if math.isfinite(number) else (1, 0.0, name)
