"""One line for one mistake, with the nearest key that exists."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from florana.config.run import RunConfig

EXPECTED = "Input should be "
"""How nearly all of pydantic's messages begin."""


def explain(error: ValidationError) -> list[str]:
    """One line for each mistake, also where a key takes one of several types and pydantic tells what each expects."""
    lines: dict[tuple[str, str], list[str]] = {}
    for one in error.errors():
        if one["type"] == "extra_forbidden":
            lines[_unknown(one["loc"]), ""] = []
            continue
        came = "" if isinstance(one["input"], Mapping) else f", got {one['input']!r}"
        expected = lines.setdefault((f"{_key(one['loc'])}: ", came), [])
        message = one["msg"].removeprefix("Value error, ")
        expected.append(message.removeprefix(EXPECTED) if expected else message)
    return [f"{key}{', or '.join(expected)}{came}" for (key, came), expected in lines.items()]


def _key(loc: tuple[int | str, ...]) -> str:
    """Section, key, and the place in a list; what else pydantic names is a type that a key may have."""
    return ".".join(str(p) for depth, p in enumerate(loc) if depth < 2 or isinstance(p, int))


def _unknown(loc: tuple[int | str, ...]) -> str:
    """One line for a key that there is not."""
    section: type[BaseModel] = RunConfig
    for part in loc[:-1]:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        section = annotation
    close = difflib.get_close_matches(str(loc[-1]), list(section.model_fields), n=1, cutoff=0.5)
    meant = [*_elsewhere(str(loc[-1])), *close]
    hint = (
        f", did you mean {meant[0]!r}?" if meant else f"; known: {', '.join(section.model_fields)}"
    )
    return f"unknown key {'.'.join(map(str, loc))!r}{hint}"


def _elsewhere(key: str) -> list[str]:
    """Full names of the keys of that name in any section."""
    sections = {name: type(value) for name, value in RunConfig() if isinstance(value, BaseModel)}
    return [f"{name}.{key}" for name, section in sections.items() if key in section.model_fields]
