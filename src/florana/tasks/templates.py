"""Templates over the columns of a row: ``"Question: {question}"``."""

from __future__ import annotations

import string

from florana.errors import DataError
from florana.tasks.rows import Row, plain


def template_columns(template: str) -> list[str]:
    """The columns that a template names.

    Raises:
        DataError: if it is no template.

    Example:
        >>> template_columns("Q: {question} A: {answer}")
        ['question', 'answer']
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(
            f"the template {template!r} is malformed ({error}); a brace itself is written {{{{ or }}}}"
        ) from error
    named = [(name, form, conversion) for _, name, form, conversion in parts if name is not None]
    for name, form, conversion in named:
        if not name or form or conversion:
            raise DataError(
                f"the template {template!r} may hold names of columns in braces and nothing else there"
            )
    return [name for name, _, _ in named]


def filled(template: str, row: Row) -> str:
    """A template with a row's columns; nothing but their texts can be had from it."""
    parts = []
    for before, name, _, _ in string.Formatter().parse(template):
        parts.append(before)
        if name is not None:
            parts.append(plain(row[name]))
    return "".join(parts)
